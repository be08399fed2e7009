package usage

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-edge/holdfast/link/wire"
)

func TestRead(t *testing.T) {
	proc, sys := t.TempDir(), t.TempDir()
	put := func(root, name, text string) {
		t.Helper()
		name = filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	put(proc, "meminfo", "MemTotal:  500000 kB\nMemFree: 1 kB\nMemAvailable: 200000 kB\nSUnreclaim: 10 kB\nKernelStack: 5 kB\nPageTables: 3 kB\nPercpu: 2 kB\nSwapTotal: 100 kB\nSwapFree: 40 kB\nHugePages_Total: 0\n")
	put(sys, "block/zram0/mm_stat", "61440 20000 24576 0 24576 0 0 0 0\n")
	process := func(pid int, line, group, sizes string) {
		dir := strconv.Itoa(pid) + "/"
		put(proc, dir+"cmdline", line)
		put(proc, dir+"cgroup", group)
		if sizes != "" {
			put(proc, dir+"smaps_rollup", "5500-7fff ---p 00000000 00:00 0 [rollup]\n"+sizes)
		}
	}
	process(1, "/sbin/init\x00", "0::/\n", "Pss: 9 kB\nPss_Anon: 7 kB\nPss_File: 2 kB\nPss_Shmem: 0 kB\nSwapPss: 1 kB\n")
	process(2, "", "0::/\n", "")                  // kthreadd
	process(3, "/usr/lib/gone\x00", "0::/\n", "") // it ended while we looked
	process(40, "/usr/lib/holdfast/kube\x00control-plane\x00--config\x00x\x00", "0::/system\n", "Pss_Anon: 90 kB\nPss_File: 50 kB\nPss_Shmem: 1 kB\n")
	process(41, "/usr/lib/holdfast/containerd\x00--config\x00x\x00", "0::/system\n", "Pss_Anon: 20 kB\nPss_File: 10 kB\n")
	process(50, "/pause\x00", "0::/kubepods/besteffort/pod1/abc\n", "Pss_Anon: 1 kB\n")
	process(51, "/hello\x00serve\x00", "4:memory:/kubepods/pod1/def\n", "Pss_Anon: 4 kB\nPss_File: 3 kB\n")

	got, err := Read(proc, sys)
	if err != nil {
		t.Fatal(err)
	}
	const k = 1 << 10
	want := wire.Memory{
		Total: 500000 * k, Available: 200000 * k, Kernel: 20 * k, Swap: 100 * k, Swapped: 60 * k, Compressed: 24576,
		Programs: []wire.Program{
			{Name: "kube control-plane", Processes: 1, Anonymous: 90 * k, Files: 51 * k},
			{Name: "containerd", Processes: 1, Anonymous: 20 * k, Files: 10 * k},
			{Name: "init", Processes: 1, Anonymous: 7 * k, Files: 2 * k, Swapped: 1 * k},
			{Name: "pods", Processes: 2, Anonymous: 5 * k, Files: 3 * k},
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}

	put(proc, "meminfo", "nothing\n")
	if _, err := Read(proc, sys); err == nil {
		t.Error("a meminfo without a total was believed")
	}
}

// Of this very process the kernel says the same as it says to everybody.
func TestReadKernel(t *testing.T) {
	m, err := Read("/proc", "/sys")
	if err != nil {
		t.Fatal(err)
	}
	own, err := Name("/proc/self")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range m.Programs {
		if p.Name == own && p.Processes > 0 && p.Anonymous > 100<<10 && p.Files > 100<<10 && p.Anonymous < m.Total {
			return
		}
	}
	t.Errorf("no sensible word of %q in %+v", own, m)
}
