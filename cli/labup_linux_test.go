package cli

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-edge/holdfast/lab"
)

func TestMemoryFlag(t *testing.T) {
	for text, want := range map[string]memory{"1Gi": 1 << 30, "640Mi": 640 << 20, "512Mi": 512 << 20, "1073741824": 1 << 30} {
		var m memory
		if err := m.Set(text); err != nil || m != want {
			t.Errorf("%s: got %d, %v", text, m, err)
		}
	}
	for text, want := range map[string]string{
		"1024": "1Ki of memory are too little: a machine needs at least 512Mi", "511Mi": "at least 512Mi", "0": "at least 512Mi",
		"1G": "is no size", "-1": "is no size", "": "is no size", "a lot": "is no size",
	} {
		m := memory(7)
		if err := m.Set(text); err == nil || !strings.Contains(err.Error(), want) || m != 7 {
			t.Errorf("%s: got %d, %v, want %q", text, m, err, want)
		}
	}
}

// A machine that cannot be started is told of at once, and given up when that stays.
func TestWatchBoxes(t *testing.T) {
	setUp := func(t *testing.T) (*env, *bytes.Buffer, lab.Lab, *lab.Wanted, string) {
		l, out := lab.Lab{Dir: t.TempDir()}, &bytes.Buffer{}
		w := &lab.Wanted{}
		w.Add("paris", "m1", 1, l.Dir)
		m := w.Add("berlin", "m1", 1<<10, l.Dir)
		m.Runtime = lab.Virtual
		if err := os.MkdirAll(l.MachineDir(*m), 0o700); err != nil {
			t.Fatal(err)
		}
		return &env{err: out}, out, l, w, filepath.Join(l.MachineDir(*m), "trouble")
	}
	say := func(t *testing.T, file, text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("it stays", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			e, out, l, w, file := setUp(t)
			ctx, stop := e.watchBoxes(t.Context(), l, w)
			defer stop()
			say(t, file, "QEMU has no disk")
			select {
			case <-ctx.Done():
			case <-time.After(time.Minute):
				t.Fatal("waited for a minute")
			}
			stop()
			if got := strings.Count(out.String(), "machine berlin.m1 cannot be started: QEMU has no disk; it is tried again"); got != 1 {
				t.Errorf("told %d times: %s", got, out)
			}
			err := boxTrouble(ctx, ctx.Err())
			told, _ := errors.AsType[*Error](err)
			if err == nil || err.Error() != "machine berlin.m1 cannot be started: QEMU has no disk" || told == nil || !strings.Contains(told.Hint, "berlin.m1.log") || Code(err) != CodeFailed {
				t.Errorf("got %v, %+v", err, told)
			}
		})
	})
	t.Run("it passes", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			e, out, l, w, file := setUp(t)
			ctx, stop := e.watchBoxes(t.Context(), l, w)
			for range 3 {
				say(t, file, "it is already running")
				time.Sleep(troublePatience - time.Second)
				os.Remove(file)
				time.Sleep(time.Second)
			}
			if ctx.Err() != nil || out.Len() == 0 {
				t.Errorf("%v, %s", ctx.Err(), out)
			}
			stop()
			other := errors.New("another")
			if err := boxTrouble(ctx, other); err != other || boxTrouble(ctx, nil) != nil {
				t.Errorf("got %v", err)
			}
		})
	})
}
