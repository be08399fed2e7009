//go:build site

package site

import (
	"bytes"
	"encoding/json"
	"image/png"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-edge/holdfast/lab"
)

// TestVirtualSite is a site on the OS image in a virtual machine with UEFI, Secure
// Boot and a TPM: from blank to its app, through a power cut without a hub, and
// away without a trace. Nothing here is held against the clock: without KVM all is slow.
func TestVirtualSite(t *testing.T) {
	s := newShop(t)
	s.patience = 20
	if cache, err := os.UserCacheDir(); err == nil { // Debian's packages are fetched once for all
		s.more = append(s.more, "XDG_CACHE_HOME="+cache)
	}
	began := time.Now()
	t.Log("\n" + s.run(t, "lab", "up", siteName, "--listen", s.hub, "--runtime", string(lab.Virtual)))
	m := s.machine(t)
	if !m.Virtual() {
		t.Fatalf("the machine is %+v", m)
	}
	s.answers(t)
	t.Logf("the app answered %v after it was asked for", time.Since(began))
	if err := s.well(); err != nil {
		t.Error(err)
	}

	shot := filepath.Join(s.work, "screen.png")
	s.run(t, "lab", "screenshot", siteName, shot)
	if b, err := os.ReadFile(shot); err != nil {
		t.Error(err)
	} else if _, err := png.Decode(bytes.NewReader(b)); err != nil {
		t.Errorf("the screenshot: %v", err)
	}
	if console := s.run(t, "lab", "console", siteName); !strings.Contains(console, s.lab.Code(m)) {
		t.Error("the console does not show the code that the machine was adopted by")
	}

	s.run(t, "lab", "stop", "hub")
	var cut struct{ Lost, Torn, Kept int }
	if err := json.Unmarshal([]byte(s.run(t, "lab", "power-cut", siteName, "--seed", "7", "--output", "json")), &cut); err != nil {
		t.Error(err)
	}
	off := time.Now()
	t.Logf("power cut: %+v", cut)
	within(t, s.patience*comeBack, func() error {
		if _, err := s.answer(); err == nil && time.Since(off) < 2*time.Second {
			t.Error("the app answers a moment after the power cut")
		} else if err != nil {
			return err
		}
		return nil
	})
	t.Logf("the app answers %v after a power cut, without the hub", time.Since(off))
	s.run(t, "lab", "start", "hub")
	within(t, s.patience*comeBack, s.well)
	s.answers(t)

	s.run(t, "lab", "down")
	for _, p := range everything() {
		line, _ := os.ReadFile(filepath.Join("/proc", p.name(), "cmdline"))
		if bytes.Contains(line, []byte(s.work)) {
			t.Errorf("process %s is left: %s", p.name(), bytes.ReplaceAll(line, []byte{0}, []byte{' '}))
		}
	}
	if _, err := os.Stat(s.lab.Dir); err == nil {
		t.Error("the lab's folder is left")
	}
	if _, err := os.Stat(filepath.Join(m.Folder, "swtpm")); err != nil {
		t.Errorf("the TPM ended with the lab: %v", err)
	}
}
