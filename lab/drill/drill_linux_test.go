package drill

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-edge/holdfast/link/wire"
	"github.com/holdfast-edge/holdfast/osimage/build"
	"github.com/holdfast-edge/holdfast/osimage/gpt"
)

// etcd is an API server with one ConfigMap.
type etcd struct {
	mu    sync.Mutex
	there bool
	n     uint64
	drop  bool // says that it has written, and has not
}

func (e *etcd) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	e.mu.Lock()
	defer e.mu.Unlock()
	var m configMap
	json.NewDecoder(r.Body).Decode(&m)
	if r.Method == http.MethodGet && !e.there {
		http.Error(w, "none", http.StatusNotFound)
		return
	}
	if r.Method != http.MethodGet && !e.drop {
		e.there = true
		e.n, _ = strconv.ParseUint(m.Data["n"], 10, 64)
	}
	json.NewEncoder(w).Encode(configMap{Data: map[string]string{"n": strconv.FormatUint(e.n, 10)}})
}

// fakeSite has an API and nothing else.
type fakeSite struct{ url string }

func (s fakeSite) API(context.Context, func() time.Time) (*API, error) {
	return &API{URL: s.url, HTTP: http.DefaultClient}, nil
}
func (fakeSite) Free(context.Context) (bool, error) { return false, nil }
func (fakeSite) Unlock(context.Context) error       { return nil }

func (fakeSite) Status(context.Context) (wire.MachineStatus, uint64, error) {
	return wire.MachineStatus{}, 0, errors.ErrUnsupported
}
func (fakeSite) Ask(context.Context) (wire.Report, error) {
	return wire.Report{}, errors.ErrUnsupported
}
func (fakeSite) Change(context.Context, string) (uint64, string, error) {
	return 0, "", errors.ErrUnsupported
}
func (fakeSite) BuildOS(context.Context, string, string, func(*build.Options) error) (*OSBuild, error) {
	return nil, errors.ErrUnsupported
}
func (fakeSite) ReleaseOS(context.Context, *OSBuild, Timing) (uint64, error) {
	return 0, errors.ErrUnsupported
}

func TestCounterFindsWhatWasLost(t *testing.T) {
	e := &etcd{}
	server := httptest.NewServer(e)
	defer server.Close()
	c := &counter{site: fakeSite{server.URL}, now: time.Now}
	if err := c.open(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := c.count(t.Context(), 5); got != 5 {
		t.Fatalf("counted %d, want 5", got)
	}
	if err := c.check(t.Context()); err != nil {
		t.Errorf("all is there, and check says %v", err)
	}
	e.n = 3
	if err := c.check(t.Context()); !errors.Is(err, ErrBroken) || !strings.Contains(err.Error(), "2 acknowledged writes") {
		t.Errorf("two writes are lost, and check says %v", err)
	}
	e.n = 6
	if err := c.check(t.Context()); !errors.Is(err, ErrBroken) {
		t.Errorf("it counts more than was written, and check says %v", err)
	}
	e.there = false
	if err := c.check(t.Context()); !errors.Is(err, ErrBroken) {
		t.Errorf("the counter is gone, and check says %v", err)
	}
	server.Close()
	if err := c.check(t.Context()); err == nil || errors.Is(err, ErrBroken) {
		t.Errorf("nobody answers, and check says %v: that alone breaks no promise", err)
	}
}

func TestCounterGoesOn(t *testing.T) {
	e := &etcd{there: true, n: 41}
	server := httptest.NewServer(e)
	defer server.Close()
	c := &counter{site: fakeSite{server.URL}, now: time.Now}
	if err := c.open(t.Context()); err != nil {
		t.Fatal(err)
	}
	e.drop = true
	c.count(t.Context(), 1)
	if err := c.check(t.Context()); !errors.Is(err, ErrBroken) {
		t.Errorf("a write that was only said to be done: %v, want %v", err, ErrBroken)
	}
}

func TestLook(t *testing.T) {
	file := filepath.Join(t.TempDir(), "disk")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const size = 8 << 20
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	p := part{f, gpt.Partition{First: 2048, Last: size/512 - 1}}
	noise := make([]byte, 2<<20)
	rand.Read(noise)
	if _, err := p.WriteAt(noise, 1<<20); err != nil {
		t.Fatal(err)
	}
	l, err := look(p, 0)
	if err != nil || l.bytes != int64(len(noise)) || l.entropy < 7.99 {
		t.Errorf("noise: %+v, %v; want %d bytes of 8 bits", l, err, len(noise))
	}
	for _, at := range []int64{1<<20 + 4096, 2<<20 - 5} { // the second lies over the end of a piece
		if _, err := p.WriteAt([]byte("-----BEGIN EC PRIVATE KEY"), at); err != nil {
			t.Fatal(err)
		}
		if _, err := look(p, 0); !errors.Is(err, ErrBroken) {
			t.Errorf("a key at %d: %v, want %v", at, err, ErrBroken)
		}
		if _, err := p.WriteAt(noise, 1<<20); err != nil {
			t.Fatal(err)
		}
	}
	for i := range noise {
		noise[i] &= 0x7f
	}
	p.WriteAt(noise, 1<<20)
	if _, err := look(p, 0); !errors.Is(err, ErrBroken) {
		t.Errorf("7 bits a byte: %v, want %v", err, ErrBroken)
	}
}

func TestStep(t *testing.T) {
	var told []Step
	d := &drill{Options: Options{Patience: time.Minute, Done: func(s Step) { told = append(told, s) }}, verdict: &Verdict{Drill: "x", Machine: "m"}}
	ok := func(context.Context) (string, string, error) { return "so", "nothing", nil }
	if err := d.step(t.Context(), "a", "b", ok); err != nil {
		t.Error(err)
	}
	bad := func(context.Context) (string, string, error) { return "", "", broken("it did") }
	if err := d.step(t.Context(), "a", "b", bad); !errors.Is(err, ErrBroken) {
		t.Errorf("a broken promise gives %v", err)
	}
	if len(told) != 2 || !told[0].Kept || told[1].Kept || told[0].Lost != "nothing" {
		t.Errorf("told %+v", told)
	}
	if text := d.verdict.String(); !strings.Contains(text, "BROKEN: 1 of 2") {
		t.Errorf("the verdict says %s", text)
	}
	d.Patience = time.Millisecond
	err := d.step(t.Context(), "wait", "b", func(ctx context.Context) (string, string, error) {
		return "", "", until(ctx, func(context.Context) error { return errors.New("not yet") })
	})
	if !errors.Is(err, ErrBroken) || !strings.Contains(err.Error(), "not yet") {
		t.Errorf("a machine that never comes back gives %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	err = d.step(ctx, "interrupted", "b", func(ctx context.Context) (string, string, error) {
		cancel()
		return "", "", ctx.Err()
	})
	if !errors.Is(err, context.Canceled) || errors.Is(err, ErrBroken) || len(d.verdict.Steps) != 3 {
		t.Errorf("an interruption gives %v and %d steps; it says nothing of the machine", err, len(d.verdict.Steps))
	}
}

func TestNext(t *testing.T) {
	for _, c := range []struct {
		now  string
		used []string
		want string
	}{
		{"0.1.0", nil, "0.1.1"},
		{"0.1.9", []string{"0.1.10", "0.1.2"}, "0.1.11"},
		{"1.36.9", []string{"1.35.20", "0.36.30", "1.36.3-system", "junk", "1.36"}, "1.36.10"},
	} {
		if got := next(c.now, c.used); got != c.want {
			t.Errorf("next(%s, %q) = %s, want %s", c.now, c.used, got, c.want)
		}
	}
}

func TestEveryDrillIsThere(t *testing.T) {
	for _, k := range Kinds() {
		if kinds[k.Name] == nil {
			t.Errorf("no drill %s", k.Name)
		}
	}
	if len(kinds) != len(Kinds()) {
		t.Errorf("%d drills are listed, and %d are there", len(Kinds()), len(kinds))
	}
}
