package store

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/version"
)

// before is the minor before this program's own.
func before(t *testing.T) string {
	t.Helper()
	own, err := parseMinor(Minor())
	must(t, err)
	return fmt.Sprintf("%d.%d", own[0], own[1]-1)
}

func settles(t *testing.T, m *Member, at string) Versions {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		v := m.Versions()
		if v.Cluster == at && v.Storage == at {
			return v
		}
		if time.Now().After(deadline) {
			t.Fatalf("versions = %+v, want cluster and storage at %s", v, at)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// A held member's data stays in the old dialect, and rises once it is not.
func TestHold(t *testing.T) {
	t.Cleanup(func() { must(t, speak("")) })
	c, old := member(t), before(t)
	c.Speak = old
	put := func(m *Member, key string) {
		client, err := m.Client()
		must(t, err)
		defer client.Close()
		_, err = client.Put(t.Context(), key, "value")
		must(t, err)
	}
	for i := range 2 {
		m := begin(t, c)
		if v := settles(t, m, old); v.Program != program || v.Speaks != old || v.Members != 1 || v.Downgrade {
			t.Errorf("held, start %d: %+v", i, v)
		}
		put(m, fmt.Sprint(i))
		m.Close()
	}
	c.Speak = ""
	m := begin(t, c)
	if v := settles(t, m, Minor()); v.Speaks != Minor() {
		t.Errorf("lifted: %+v", v)
	}
	put(m, "last")
	m.Close()

	// Held again it would be an old program on new data, and says so.
	c.Speak = old
	ended := make(chan int, 16)
	func() {
		defer func() { _ = recover() }()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		m, err := Start(ctx, c, func(code int) { ended <- code })
		if err == nil {
			m.Close()
			t.Error("a hold below the data's own version was granted")
		}
	}()
	select {
	case code := <-ended:
		if code != ExitNewer {
			t.Errorf("exit code %d, want %d", code, ExitNewer)
		}
	default:
		t.Errorf("did not end the process with %d", ExitNewer)
	}
}

func TestSpeakRefuses(t *testing.T) {
	t.Cleanup(func() { must(t, speak("")) })
	for _, minor := range []string{"3", "x.y", "3.1", "2.6", "4.0", "3.99", "3.-1"} {
		if err := speak(minor); err == nil {
			t.Errorf("held at %q: granted", minor)
		} else if !strings.Contains(err.Error(), minor) {
			t.Errorf("held at %q: %v does not say so", minor, err)
		}
		if version.Version != program {
			t.Errorf("held at %q: refused, yet etcd says that it is %s", minor, version.Version)
		}
	}
	must(t, speak(Minor()))
	if version.Version != program {
		t.Errorf("its own minor is a hold: %s", version.Version)
	}
}
