// Package tpmtest starts software TPMs (swtpm) for tests and ends them, with power cuts and resets; it leaves out what a test asks of them.
package tpmtest

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/holdfast-edge/holdfast/machine/metal/tpm"
)

// Chip is a TPM whose memory outlives its power.
type Chip struct {
	t      testing.TB
	dir    string
	Socket string // of the running swtpm
	cmd    *exec.Cmd
	boots  int
}

// New is a new TPM, switched on.
func New(t testing.TB) *Chip {
	t.Helper()
	dir, err := os.MkdirTemp("", "swtpm") // short: a socket's path has at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	c := &Chip{t: t, dir: dir}
	t.Cleanup(func() {
		c.PowerCut()
		os.RemoveAll(dir)
	})
	c.PowerOn()
	return c
}

// PowerOn starts the TPM with its PCRs at zero.
func (c *Chip) PowerOn() {
	c.t.Helper()
	c.boots++
	c.Socket = filepath.Join(c.dir, fmt.Sprint("s", c.boots))
	c.cmd = exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+c.dir, "--flags", "not-need-init,startup-clear",
		"--server", "type=unixio,path="+c.Socket, "--ctrl", "type=unixio,path="+c.Socket+".ctrl")
	if err := c.cmd.Start(); err != nil {
		c.t.Fatalf("start swtpm (apt install swtpm): %v", err)
	}
	deadline := time.Now().Add(20 * time.Second)
	for {
		conn, err := net.Dial("unix", c.Socket)
		if err == nil {
			conn.Close()
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("swtpm does not come up: %v", err)
		}
		time.Sleep(time.Millisecond) // the process tells nobody when it listens
	}
}

// PowerCut ends the TPM at once.
func (c *Chip) PowerCut() {
	if c.cmd != nil {
		c.cmd.Process.Kill()
		c.cmd.Wait()
		c.cmd = nil
	}
}

// Reset is a power cut with the power coming back.
func (c *Chip) Reset() {
	c.t.Helper()
	c.PowerCut()
	c.PowerOn()
}

// Open opens the TPM; the test's end closes it.
func (c *Chip) Open() *tpm.TPM {
	c.t.Helper()
	t, err := tpm.Open(c.Socket)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { t.Close() })
	return t
}
