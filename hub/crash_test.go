package hub

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-edge/holdfast/fleet/fleetgen"
	"github.com/holdfast-edge/holdfast/hub/push"
	"github.com/holdfast-edge/holdfast/hub/store"
	"github.com/holdfast-edge/holdfast/link"
	"github.com/holdfast-edge/holdfast/link/linktest"
	"github.com/holdfast-edge/holdfast/link/operator"
	"github.com/holdfast-edge/holdfast/link/wire"
	"github.com/holdfast-edge/holdfast/release"
)

// childEnv makes the test binary a hub: its value is the folder with key, seed and data.
const childEnv = "HOLDFAST_TEST_HUB"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		if err := runChild(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func runChild(dir string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	signer, err := link.LoadOrCreateKey(filepath.Join(dir, "key"))
	if err != nil {
		return err
	}
	id, err := link.NewIdentity(signer)
	if err != nil {
		return err
	}
	text, err := os.ReadFile(filepath.Join(dir, "seed.json"))
	if err != nil {
		return err
	}
	cfg := Config{Addr: "127.0.0.1:0", DataDir: filepath.Join(dir, "data"), Identity: id, Log: quiet()}
	if err := json.Unmarshal(text, &cfg.Seed); err != nil {
		return err
	}
	h, err := New(cfg)
	if err != nil {
		return err
	}
	fmt.Println(h.Addrs()[0])
	return h.Run(ctx)
}

// child is a hub in a process of its own.
type child struct {
	cmd  *exec.Cmd
	addr string
}

func startChild(t *testing.T, dir string) *child {
	t.Helper()
	c := &child{cmd: exec.Command(os.Args[0])}
	c.cmd.Env = append(os.Environ(), childEnv+"="+dir)
	c.cmd.Stderr = os.Stderr
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		c.kill()
		t.Fatalf("the hub did not start: %v", err)
	}
	c.addr = strings.TrimSpace(line)
	return c
}

func (c *child) kill() {
	c.cmd.Process.Kill()
	c.cmd.Wait()
}

func TestKillNine(t *testing.T) {
	dir := t.TempDir()
	signer, err := link.LoadOrCreateKey(filepath.Join(dir, "key"))
	if err != nil {
		t.Fatal(err)
	}
	key, err := link.NewIdentity(signer)
	if err != nil {
		t.Fatal(err)
	}
	w := newWorldWith(t, 30, key)
	id := linktest.NewIdentity(t)
	w.adopt(0, id.ID())
	seed, _ := json.Marshal(w.seed)
	if err := os.WriteFile(filepath.Join(dir, "seed.json"), seed, 0o600); err != nil {
		t.Fatal(err)
	}
	var hub *child
	var mu sync.Mutex
	where := func() string { mu.Lock(); defer mu.Unlock(); return hub.addr }
	setHub := func(c *child) { mu.Lock(); defer mu.Unlock(); hub = c }
	setHub(startChild(t, dir))
	defer func() { hub.kill() }()
	m := startFake(t, w, where, id)

	var acked, reported atomic.Uint64
	blobs := map[string]bool{} // acknowledged; owned by the pushing goroutine
	progress := make(chan struct{}, 1)
	// A round ends by kill -9 so long after its start, or after its first release.
	round := func(afterRelease bool, delay time.Duration) {
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { // releases
			for ctx.Err() == nil {
				tag := w.last
				if tag == nil || tag.Payload.N <= acked.Load() {
					w.files["notes/"+fmt.Sprint(w.clock.Unix())] = random(t, 20<<10)
					w.files[fleetgen.SiteDir(0)+"/patches/x"] = random(t, 1000)
					tag = w.release()
				}
				c, err := operator.Open(ctx, operator.ClientConfig{Fleet: fleetID, Dial: link.DialConfig{Address: where(), Pins: []link.Pin{key.Pin()}}})
				if err != nil {
					return
				}
				if _, err := push.Release(ctx, c.HTTP, "https://"+link.Host, w.objects, tag.Raw); err == nil {
					acked.Store(tag.Payload.N)
					select {
					case progress <- struct{}{}:
					default:
					}
				} else if r, refused := wire.AsRefusal(err, http.StatusConflict); refused {
					t.Errorf("release %d after a crash: %v", tag.Payload.N, r)
				}
				c.Close()
			}
		})
		wg.Go(func() { // reports, each the whole
			for ctx.Err() == nil {
				u := wire.Update{Seq: reported.Load() + 1, State: &wire.State{Phase: wire.OK}}
				call, stop := context.WithTimeout(ctx, time.Second)
				err := wire.Call(call, link.Client(m.keeper.OpenControl, time.Second), http.MethodPost, "http://"+link.Host+wire.PathReport, &u, nil)
				stop()
				if err == nil {
					reported.Store(u.Seq)
				}
			}
		})
		wg.Go(func() { // blobs
			c, err := operator.Open(ctx, operator.ClientConfig{Fleet: fleetID, Signer: sshKey("ops"), Roles: []string{operator.Operate}, Dial: link.DialConfig{Address: where(), Identity: id, Pins: []link.Pin{key.Pin()}}})
			if err != nil {
				return
			}
			defer c.Close()
			for ctx.Err() == nil {
				blob := random(t, 200<<10)
				digest := sha256.Sum256(blob)
				name := hex.EncodeToString(digest[:])
				req, _ := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+link.Host+"/v2/app/blobs/uploads/?digest=sha256:"+name, bytes.NewReader(blob))
				if resp, err := c.HTTP.Do(req); err == nil {
					io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
					if resp.StatusCode == http.StatusCreated {
						blobs[name] = true
					}
				}
			}
		})
		if afterRelease {
			select {
			case <-progress:
			case <-time.After(time.Minute):
				t.Error("no release was taken in a minute")
			}
		}
		time.Sleep(delay) // not a wait for anything: the instant is what is tried
		hub.kill()
		cancel()
		wg.Wait()
	}
	for i := range 12 {
		select {
		case <-progress:
		default:
		}
		round(i%2 == 0, time.Duration(rand.IntN(300))*time.Millisecond)
		checkData(t, w, filepath.Join(dir, "data"), acked.Load(), reported.Load(), string(id.ID()), blobs)
		if t.Failed() {
			t.Fatalf("after kill %d", i+1)
		}
		setHub(startChild(t, dir))
	}
	t.Logf("12 kills: %d releases, %d reports, %d blobs were acknowledged", acked.Load(), reported.Load(), len(blobs))
	if acked.Load() < 6 || reported.Load() < 3 || len(blobs) < 3 {
		t.Error("too little was acknowledged for this to mean anything")
	}
	// It goes on: the machine comes to the newest release by itself.
	w.files["last"] = []byte("x")
	for w.last.Payload.N <= acked.Load() {
		w.release()
	}
	c, err := operator.Open(t.Context(), operator.ClientConfig{Fleet: fleetID, Dial: link.DialConfig{Address: hub.addr, Pins: []link.Pin{key.Pin()}}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := push.Release(t.Context(), c.HTTP, "https://"+link.Host, w.objects, w.last.Raw); err != nil {
		t.Fatal(err)
	}
	m.waitRelease(w.last.Payload.N)
}

// checkData opens what a killed hub left: all that was acknowledged is there, and
// what is there is whole.
func checkData(t *testing.T, w *world, dir string, n, seq uint64, machine string, blobs map[string]bool) {
	t.Helper()
	s, err := store.Open(filepath.Join(dir, "store"), store.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ctx := context.Background()
	head, err := s.Head(ctx)
	if err != nil && n > 0 {
		t.Fatalf("head: %v", err)
	}
	if head.N < n {
		t.Errorf("release %d was acknowledged, the head is %d", n, head.N)
	}
	for k := uint64(1); k <= head.N; k++ {
		r, err := s.Release(ctx, k)
		if err != nil {
			t.Errorf("release %d: %v", k, err)
			continue
		}
		seen := map[release.ObjectID]bool{}
		err = release.Walk(newSource(s), r.Tree, func(_ string, e release.Entry) error {
			if seen[e.ID] && e.Mode == release.ModeFolder {
				return release.SkipTree
			}
			seen[e.ID] = true
			kind, data, err := s.Object(e.ID)
			if err == nil && release.HashObject(kind, data) != e.ID {
				err = release.ErrAltered
			}
			return err
		})
		if err != nil {
			t.Errorf("release %d is not whole: %v", k, err)
		}
	}
	if seq > 0 {
		var body saved
		r, err := s.LatestReport(ctx, machine)
		if err != nil || json.Unmarshal(r.Body, &body) != nil || body.Report.Seq < seq {
			t.Errorf("report %d was acknowledged, stored is %d (%v)", seq, body.Report.Seq, err)
		}
	}
	found := map[string]bool{}
	filepath.WalkDir(filepath.Join(dir, "images", "blobs"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		digest := sha256.Sum256(data)
		if err != nil || hex.EncodeToString(digest[:]) != d.Name() {
			t.Errorf("blob %s is not what its name says", d.Name())
		}
		found[d.Name()] = true
		return nil
	})
	for name := range blobs {
		if !found[name] {
			t.Errorf("blob %s was acknowledged and is gone", name)
		}
	}
}
