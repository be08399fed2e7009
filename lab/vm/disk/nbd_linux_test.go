package disk

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// TestQEMUIsContent lets QEMU's own tool use the disk: its reads see its writes,
// and a cut loses what it did not flush.
func TestQEMUIsContent(t *testing.T) {
	path, d := blank(t, 64<<20)
	socket := filepath.Join(t.TempDir(), "nbd")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	served := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			defer c.Close()
			err = d.Serve(c)
		}
		served <- err
	}()
	// Quitting flushes, so the cut comes while qemu-io sleeps.
	args := []string{"-f", "raw", "-t", "writeback"}
	for _, c := range []string{
		"write -P 1 0 1M",
		"flush",
		"read -P 1 0 1M",
		"write -P 2 2M 64k",
		"write -f -P 3 3M 64k",
		"write -z 0 64k",
		"discard 512k 4k",
		"read -P 2 2M 64k",
		"read -P 0 0 64k",
		"read -P 1 64k 64k",
		"write -z 8M 8M",
		"write -P 5 32M 64k",
		"sleep 60000",
	} {
		args = append(args, "-c", c)
	}
	cmd := exec.Command("qemu-io", append(args, "nbd:unix:"+socket)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatalf("qemu-io (package qemu-utils): %v", err)
	}
	for end := time.Now().Add(20 * time.Second); d.Counts().Writes < 7; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			cmd.Process.Kill()
			cmd.Wait()
			t.Fatalf("qemu-io did not write all: %+v\n%s", d.Counts(), out.String())
		}
	}
	c, err := PowerCut(0, d)
	if err != nil {
		t.Fatal(err)
	}
	cmd.Process.Kill()
	cmd.Wait()
	if err := <-served; err != nil {
		t.Error(err)
	}
	if bytes.Contains(out.Bytes(), []byte("failed")) {
		t.Errorf("qemu-io says:\n%s", out.String())
	}
	if c.Lost != 1 { // the zeros at 8M were big, which writes out what was before
		t.Errorf("cut: %+v, want one lost write", c)
	}
	for _, want := range []string{"read -P 0 0 64k", "read -P 1 64k 64k", "read -P 2 2M 64k", "read -P 3 3M 64k", "read -P 0 32M 64k"} {
		out, err := exec.Command("qemu-io", "-f", "raw", "-c", want, path).CombinedOutput()
		if err != nil || bytes.Contains(out, []byte("failed")) {
			t.Errorf("%s: %v\n%s", want, err, out)
		}
	}
}

func be(values ...any) []byte {
	var b bytes.Buffer
	for _, v := range values {
		binary.Write(&b, binary.BigEndian, v)
	}
	return b.Bytes()
}

func hello() []byte {
	return be(uint32(3), uint64(magicOption), uint32(99), uint32(0), uint64(magicOption), uint32(optGo), uint32(6), [6]byte{})
}

func request(kind, flags uint16, off uint64, n uint32) []byte {
	return be(uint32(magicRequest), flags, kind, uint64(7), off, n)
}

// stream is a client that says all it has to say and then leaves.
type stream struct {
	io.Reader
	io.Writer
}

func TestBadClients(t *testing.T) {
	for name, c := range map[string]struct {
		say  []byte
		fine bool // ends as a client that left
	}{
		"nothing":             {nil, true},
		"leaves":              {append(hello(), request(cmdLeave, 0, 0, 0)...), true},
		"no option":           {be(uint32(3), uint64(1), uint32(1), uint32(0)), false},
		"a huge option":       {be(uint32(3), uint64(magicOption), uint32(1), uint32(1<<31)), false},
		"no request":          {append(hello(), make([]byte, 28)...), false},
		"a huge read":         {append(hello(), request(cmdRead, 0, 0, 1<<31)...), false},
		"a huge write":        {append(hello(), request(cmdWrite, 0, 0, 1<<31)...), false},
		"beyond the end":      {append(hello(), request(cmdRead, 0, 1<<20, 512)...), true},
		"an offset below 0":   {append(hello(), request(cmdRead, 0, 1<<63, 512)...), true},
		"clear below 0":       {append(hello(), request(cmdTrim, 0, 1<<63+1<<62, 4<<20)...), true},
		"an unknown command":  {append(hello(), request(77, 0, 0, 0)...), true},
		"half a write":        {append(hello(), append(request(cmdWrite, 0, 0, 512), 1, 2, 3)...), false},
		"abort":               {be(uint32(3), uint64(magicOption), uint32(optAbort), uint32(0)), true},
		"the old way to ask":  {be(uint32(0), uint64(magicOption), uint32(optExportName), uint32(1), byte('x')), true},
		"half of a handshake": {be(uint16(3)), false},
	} {
		t.Run(name, func(t *testing.T) {
			_, d := blank(t, 1<<20)
			err := d.Serve(stream{bytes.NewReader(c.say), io.Discard})
			if (err == nil) != c.fine {
				t.Errorf("got %v, want fine %t", err, c.fine)
			}
		})
	}
}

// FuzzServe: no client harms the server, or anything outside of the disk.
func FuzzServe(f *testing.F) {
	f.Add(append(hello(), request(cmdRead, 0, 0, 512)...))
	f.Add(append(append(hello(), request(cmdWrite, flagFUA, 512, 4)...), 1, 2, 3, 4))
	f.Add(append(hello(), request(cmdZeroes, 0, 0, 1<<20)...))
	f.Add(be(uint32(0), uint64(magicOption), uint32(optExportName), uint32(0)))
	f.Fuzz(func(t *testing.T, say []byte) {
		path, d := blank(t, 1<<20)
		d.Serve(stream{bytes.NewReader(say), io.Discard})
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		if again, err := Open(path); err != nil || again.Size() != 1<<20 {
			t.Errorf("the disk has changed its size: %v", err)
		} else {
			again.Close()
		}
	})
}
