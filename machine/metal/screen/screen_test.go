package screen

import (
	"bytes"
	"strings"
	"testing"
)

func TestWholeOnGlassChangesOnTheLine(t *testing.T) {
	var glass, line bytes.Buffer
	s := New(&glass, &line)
	s.Write([]byte("Holdfast 1\n\n  machine  abc\n  fault    E17 no address on port 1\n█▀▀█\n"))
	s.Write([]byte("Holdfast 1\n\n  machine  abc\n  fault    E17 no address on port 1\n█▀▀█\n")) // the same: nothing
	s.Write([]byte("Holdfast 1\n\n  machine  abc\n  release  7\n█▀▀█\n"))
	s.Write([]byte("Holdfast 1\n\n  machine  abc\n  fault    E17 no address on port 1\n"))
	want := "holdfast: Holdfast 1\nholdfast: machine  abc\nholdfast: fault    E17 no address on port 1\nholdfast: release  7\nholdfast: fault    E17 no address on port 1\n"
	if line.String() != want {
		t.Errorf("on the line:\n%s\nwant:\n%s", &line, want)
	}
	if n := strings.Count(glass.String(), clear); n != 3 {
		t.Errorf("the screen was drawn %d times, want 3", n)
	}
	if !strings.Contains(glass.String(), "█▀▀█") {
		t.Error("the screen has no QR code")
	}
	s.Again()
	if !strings.HasSuffix(glass.String(), clear+"Holdfast 1\r\n\r\n  machine  abc\r\n  fault    E17 no address on port 1") {
		t.Error("the last picture is not shown again")
	}
}

func TestNoDevices(t *testing.T) {
	s := New(nil, nil)
	if _, err := s.Write([]byte("x\n")); err != nil {
		t.Error(err)
	}
	s.Again()
}

// TestNothingScrollsAway: the top says who the machine is.
func TestNothingScrollsAway(t *testing.T) {
	var glass bytes.Buffer
	New(&glass, nil).Write([]byte("Holdfast\n\n" + strings.Repeat("line\n", 20) + "\n" + strings.Repeat("code\n", 3) + "end\n"))
	got := strings.Split(strings.TrimPrefix(glass.String(), clear), "\r\n")
	if len(got) != 25 || got[0] != "Holdfast" || got[24] != "end" {
		t.Errorf("%d lines: %q", len(got), got)
	}
	if got := fit(strings.Split("a b c d", " "), 3); len(got) != 3 || got[0] != "a" {
		t.Errorf("got %q", got)
	}
}
