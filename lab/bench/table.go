package main

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"time"
)

// table is the answer: rows in groups, in the order in which they were measured.
type table struct {
	intro string
	rows  [][2]string
}

func (t *table) head(o options, version string) {
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	t.intro = fmt.Sprintf("Measured by `make bench` on %s: %d cores (%s), Linux %s, holdfast %s, one site (%s), at rest for %s, idle for %s.",
		time.Now().UTC().Format(time.DateOnly), runtime.NumCPU(), runtime.GOARCH, strings.TrimSpace(string(kernel)), version, o.site, short(o.rest), short(o.window))
}

// short is a duration without zeros at its end.
func short(d time.Duration) string {
	s := d.String()
	s = strings.TrimSuffix(s, "m0s") + map[bool]string{true: "m"}[strings.HasSuffix(s, "m0s")]
	return s
}

func (t *table) group(name string) { t.rows = append(t.rows, [2]string{"**" + name + "**", ""}) }

func (t *table) row(what, format string, a ...any) {
	figure := fmt.Sprintf(format, a...)
	t.rows = append(t.rows, [2]string{what, figure})
	say("%s: %s", what, figure)
}

func (t *table) write(w io.Writer) {
	fmt.Fprintf(w, "%s\n\n| what | measured |\n|---|---|\n", t.intro)
	for _, r := range t.rows {
		fmt.Fprintf(w, "| %s | %s |\n", strings.ReplaceAll(r[0], "|", "\\|"), strings.ReplaceAll(r[1], "|", "\\|"))
	}
}

// mib is so many MiB.
func mib(bytes float64) string { return fmt.Sprintf("%.0f", bytes/(1<<20)) }

// hourly is what a count in a window makes in an hour.
func hourly(n uint64, window time.Duration) float64 {
	return float64(n) * float64(time.Hour) / float64(window)
}
