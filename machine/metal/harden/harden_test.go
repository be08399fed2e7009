package harden

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// kspp are the settings that the Kernel Self-Protection Project recommends
// (its page Recommended_Settings, section sysctls).
var kspp = map[string]string{
	"kernel.kptr_restrict":             "2",
	"kernel.dmesg_restrict":            "1",
	"kernel.perf_event_paranoid":       "3",
	"kernel.kexec_load_disabled":       "1",
	"kernel.randomize_va_space":        "2",
	"kernel.yama.ptrace_scope":         "3",
	"user.max_user_namespaces":         "0",
	"dev.tty.ldisc_autoload":           "0",
	"dev.tty.legacy_tiocsti":           "0",
	"kernel.unprivileged_bpf_disabled": "1",
	"kernel.warn_limit":                "1",
	"kernel.oops_limit":                "1",
	"net.core.bpf_jit_harden":          "2",
	"vm.unprivileged_userfaultfd":      "0",
	"fs.protected_symlinks":            "1",
	"fs.protected_hardlinks":           "1",
	"fs.protected_fifos":               "2",
	"fs.protected_regular":             "2",
	"fs.suid_dumpable":                 "0",
	"kernel.io_uring_disabled":         "2",
	"kernel.modules_disabled":          "1",
	"vm.mmap_min_addr":                 "65536",
	"vm.mmap_rnd_bits":                 "32",
	"vm.mmap_rnd_compat_bits":          "16",
	"kernel.ctrl-alt-del":              "0",
	"kernel.sysrq":                     "0",
}

// apart are those that we do otherwise, and why.
var apart = map[string]string{
	"kernel.yama.ptrace_scope": "1: crash handlers in apps are parents, or are asked for",
	"user.max_user_namespaces": "pods may have user namespaces, which protect more than they open",
	"kernel.warn_limit":        "a warning of a driver is no reason to stop a site",
	"kernel.oops_limit":        "panic_on_oops stops at the first",
	"kernel.modules_disabled":  "a network card may be plugged in later; only signed modules load",
}

func TestWhatTheProjectAsksFor(t *testing.T) {
	have := map[string]string{}
	for _, s := range Settings() {
		name := strings.ReplaceAll(s.Name, "/", ".")
		if _, twice := have[name]; twice {
			t.Errorf("%s is there twice", name)
		}
		if s.Why == "" || s.Value == "" {
			t.Errorf("%s has no value or no reason", name)
		}
		have[name] = s.Value
	}
	for name, want := range kspp {
		got, ok := have[name]
		if apart[name] != "" {
			if ok && got == want {
				t.Errorf("%s is as recommended: it needs no exception", name)
			}
			continue
		}
		if got != want {
			t.Errorf("%s: got %q, want %q or a reason", name, got, want)
		}
	}
}

// TestKubeletFindsItsOwn: the kubelet refuses to start, or writes, where these differ.
func TestKubeletFindsItsOwn(t *testing.T) {
	have := map[string]string{}
	for _, s := range Settings() {
		have[s.Name] = s.Value
	}
	for name, want := range map[string]string{
		"vm/overcommit_memory": "1", "vm/panic_on_oom": "0", "kernel/panic": "10", "kernel/panic_on_oops": "1",
		"kernel/keys/root_maxkeys": "1000000", "kernel/keys/root_maxbytes": "25000000",
	} {
		if have[name] != want {
			t.Errorf("%s: got %q, want %q", name, have[name], want)
		}
	}
}

func TestApply(t *testing.T) {
	root := t.TempDir()
	write := func(name, text string, mode os.FileMode) {
		path := filepath.Join(root, name)
		os.MkdirAll(filepath.Dir(path), 0o755)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	write("kernel/one", "0\n", 0o644)
	if err := os.MkdirAll(filepath.Join(root, "kernel/stuck"), 0o755); err != nil { // cannot be written, as root either
		t.Fatal(err)
	}
	err := Apply(root, []Setting{
		{"kernel/one", "1", "", false},
		{"kernel/stuck", "1", "", true},
		{"kernel/stuck", "7", "", false},
		{"no/such/folder", "1", "", true},
		{"no/such/thing", "1", "", false},
	})
	if got, _ := os.ReadFile(filepath.Join(root, "kernel/one")); strings.TrimSpace(string(got)) != "1" {
		t.Errorf("kernel/one: got %q", got)
	}
	if err == nil || !strings.Contains(err.Error(), "kernel.stuck to 7") || !strings.Contains(err.Error(), "no.such.thing") || strings.Contains(err.Error(), "folder") {
		t.Errorf("got %v", err)
	}
}
