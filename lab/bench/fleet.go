package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-edge/holdfast/fleet/fleetgen"
)

// measureFleet times check and diff on a generated fleet, as whole commands.
func measureFleet(ctx context.Context, o options, s *shop, t *table) error {
	dir := filepath.Join(s.work, "many")
	if err := fleetgen.WriteDir(dir, o.sites); err != nil {
		return err
	}
	git := func(args ...string) error {
		_, err := s.command(ctx, "git", append([]string{"-C", dir, "-c", "user.name=bench", "-c", "user.email=bench@localhost"}, args...)...)
		return err
	}
	say("committing %d generated sites", o.sites)
	for _, args := range [][]string{{"init", "-q"}, {"add", "-A"}, {"commit", "-q", "-m", "many sites"}} {
		if err := git(args...); err != nil {
			return err
		}
	}
	t.group(fmt.Sprintf("A fleet of %d generated sites, whole commands", o.sites))
	if err := s.time(ctx, t, "`holdfast check`, every site rendered", "--fleet", dir, "check"); err != nil {
		return err
	}
	file := filepath.Join(dir, filepath.FromSlash(fleetgen.SiteDir(o.sites/2)), "site.yaml")
	if err := replaceIn(file, "City", "Town"); err != nil {
		return err
	}
	return s.time(ctx, t, "`holdfast diff` of a change of one line", "--fleet", dir, "diff", "--base", "HEAD")
}

// time runs a command of holdfast and writes how long it took, and how much of
// that it worked: the rest is what else goes on at this computer.
func (s *shop) time(ctx context.Context, t *table, what string, args ...string) error {
	cmd := exec.CommandContext(ctx, s.holdfast, args...)
	cmd.Dir, cmd.Env = s.work, s.environment()
	began := time.Now()
	if out, err := cmd.CombinedOutput(); err != nil {
		return errors.Join(ctx.Err(), fmt.Errorf("holdfast %s: %w%s", strings.Join(args, " "), err, tail(out)))
	}
	worked := cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	t.row(what, "**%.1f s** (%.1f s of processors)", time.Since(began).Seconds(), worked.Seconds())
	return nil
}

func replaceIn(file, old, new string) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	changed := bytes.Replace(data, []byte(old), []byte(new), 1)
	if bytes.Equal(changed, data) {
		return fmt.Errorf("%s does not contain %q", file, old)
	}
	return os.WriteFile(file, changed, 0o644)
}

// measureCode runs the Go benchmarks of package release, on 10 000 sites.
func measureCode(ctx context.Context, t *table) error {
	cmd := exec.CommandContext(ctx, "go", "test", "-run", "^$", "-bench", "^Benchmark(Cut|Accept|OneLine|Import)$", "-benchtime", "5x", "./release")
	cmd.Stderr = os.Stderr
	say("%s", strings.Join(cmd.Args, " "))
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("%s: %w%s", strings.Join(cmd.Args, " "), err, tail(out))
	}
	all := parseBench(string(out))
	t.group("One of 10 000 generated sites, in Go benchmarks")
	for _, row := range []struct{ name, what string }{
		{"Import", "all sites read as Git objects"},
		{"Cut", "cut the slice of one site"},
		{"Accept", "judge it, as a machine does"},
	} {
		t.row(row.what, "%.1f ms", all[row.name]["ns/op"]/1e6)
	}
	t.row("slice of one site", "%.0f B; a change of one line in it %.0f B", all["Cut"]["slice-bytes"], all["OneLine"]["bytes"])
	return nil
}

// parseBench reads what go test -bench prints: name -> unit -> value.
func parseBench(out string) map[string]map[string]float64 {
	all := map[string]map[string]float64{}
	for line := range strings.Lines(out) {
		fields := strings.Fields(line)
		if len(fields) < 4 || !strings.HasPrefix(fields[0], "Benchmark") {
			continue
		}
		name, _, _ := strings.Cut(strings.TrimPrefix(fields[0], "Benchmark"), "-")
		all[name] = map[string]float64{}
		for i := 2; i+1 < len(fields); i += 2 {
			if v, err := strconv.ParseFloat(fields[i], 64); err == nil {
				all[name][fields[i+1]] = v
			}
		}
	}
	return all
}
