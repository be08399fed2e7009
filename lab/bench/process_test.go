package main

import (
	"os"
	"slices"
	"testing"
	"time"
)

func TestParseStat(t *testing.T) {
	got, ok := parseStat("42 (a (b) c) S 7 42 42 0 -1 4194560 1 2 3 4 150 50 0 0 20 0 1 0 100")
	if want := (process{42, 7, "a (b) c", 200}); !ok || got != want {
		t.Errorf("got %+v %t, want %+v", got, ok, want)
	}
	for _, bad := range []string{"", "42", ") (", "42 (a) S 7", "x (a) S 7 42 42 0 -1 4194560 1 2 3 4 150 50 0"} {
		if got, ok := parseStat(bad); ok {
			t.Errorf("%q was read as %+v", bad, got)
		}
	}
}

func TestCalled(t *testing.T) {
	for _, c := range []struct {
		comm string
		args []string
		want string
	}{
		{"kube", []string{"/opt/holdfast/kube", "control-plane", "--config", "x"}, "kube control-plane"},
		{"machined", []string{"/proc/self/exe", "inner"}, "machined inner"},
		{"pause", []string{"/pause"}, "pause"},
		{"kthread", []string{""}, "kthread"},
		{"coredns", []string{"coredns", "-conf"}, "coredns"},
	} {
		if got := called(c.comm, c.args); got != c.want {
			t.Errorf("called(%q, %q) = %q, want %q", c.comm, c.args, got, c.want)
		}
	}
}

func TestBelow(t *testing.T) {
	all := map[int]process{1: {pid: 1}, 2: {pid: 2, parent: 1}, 3: {pid: 3, parent: 2}, 4: {pid: 4, parent: 1}}
	if got := below(all, 2); len(got) != 1 || got[0].pid != 3 {
		t.Errorf("below 2 is %+v, want 3 alone", got)
	}
}

func TestRenamed(t *testing.T) {
	all := map[int]process{2: {2, 1, "containerd-shim-runc-v2", 0}, 3: {3, 2, "1.0.0", 0}, 4: {4, 2, "pause", 0}, 5: {5, 1, "kube node", 0}}
	var got []string
	for _, p := range renamed(below(map[int]process{1: {pid: 1}, 2: all[2], 3: all[3], 4: all[4], 5: all[5]}, 1), all) {
		got = append(got, p.name)
	}
	if want := []string{"containerd-shim-runc-v2", "apps' containers", "pause", "kube node"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestRollup(t *testing.T) {
	got := parseRollup("00400000-7ffd [rollup]\nRss:  2048 kB\nPss:  1024 kB\nAnonymous:  512 kB\n")
	if want := (memory{2 << 20, 1 << 20, 512 << 10}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestSelf(t *testing.T) {
	if _, ok := processes()[os.Getpid()]; !ok {
		t.Error("this process is not among the processes")
	}
}

func TestShort(t *testing.T) {
	for d, want := range map[time.Duration]string{2 * time.Minute: "2m", 90 * time.Second: "1m30s", time.Hour: "1h0m", 5 * time.Second: "5s"} {
		if got := short(d); got != want {
			t.Errorf("short(%v) = %q, want %q", d, got, want)
		}
	}
}

func TestParseBench(t *testing.T) {
	const out = "goos: linux\nBenchmarkCut-2   \t     520\t   2241000 ns/op\t     12345 slice-bytes\nPASS\n"
	got := parseBench(out)
	if got["Cut"]["ns/op"] != 2241000 || got["Cut"]["slice-bytes"] != 12345 {
		t.Errorf("got %v", got)
	}
}
