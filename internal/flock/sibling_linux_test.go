package flock

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestSiblingComesBackWithWhatItInherits(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "handed on"), []byte("here"), 0o600); err != nil {
		t.Fatal(err)
	}
	inherit, err := os.Open(filepath.Join(dir, "handed on"))
	if err != nil {
		t.Fatal(err)
	}
	defer inherit.Close()
	lock := filepath.Join(dir, "sibling.lock")
	// Each life tells the descriptor that it was given, and reads it anew; a blank in an argument stays.
	script := filepath.Join(dir, "a script")
	if err := os.WriteFile(script, []byte(`echo "$1 $2 $3 $(cat /proc/self/fd/"$3")"`), 0o700); err != nil {
		t.Fatal(err)
	}
	line := CommandLine("/bin/sh", script, "two words")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		done <- Sibling{Lock: lock, Command: ParseCommand(line), Inherit: inherit, Flag: "--fd"}.Keep(ctx)
	}()
	const twice = "two words --fd 3 here\ntwo words --fd 3 here\n"
	for {
		log, _ := os.ReadFile(filepath.Join(dir, "sibling.log"))
		if len(log) >= len(twice) {
			if string(log[:len(twice)]) != twice {
				t.Errorf("two lives said %q, want %q", log, twice)
			}
			break
		}
		if ctx.Err() != nil {
			t.Fatalf("two lives said %q, want %q", log, twice)
		}
		time.Sleep(10 * time.Millisecond)
	}
	cancel()
	<-done
}
