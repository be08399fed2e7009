package machine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/fleet/fleetgen"
	"github.com/holdfast-edge/holdfast/link"
	"github.com/holdfast-edge/holdfast/link/linktest"
	"github.com/holdfast-edge/holdfast/link/operator"
	"github.com/holdfast-edge/holdfast/link/wire"
	"github.com/holdfast-edge/holdfast/machine/faults"
)

// safe is a locked disk.
type safe struct {
	*Machine
	t     testing.TB
	ended chan struct{}
	err   error // what Limited returned; read after ended
	stop  context.CancelFunc

	mu    sync.Mutex
	tried [][]byte
}

var rightKey = bytes.Repeat([]byte{42}, 32)

var escrowed = []byte("age-encryption.org/v1 and so on")

func (s *safe) unlock(_ context.Context, key []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tried = append(s.tried, bytes.Clone(key))
	switch {
	case bytes.Equal(key, rightKey):
		return nil
	case bytes.HasPrefix(key, []byte("broken")):
		return errors.New("the disk answers with errors")
	}
	return fmt.Errorf("slot 1: %w", ErrWrongKey)
}

func (s *safe) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.tried)
}

// locked starts the machine whose folders are in dir as one whose disk does not open.
func (w *world) locked(t testing.TB, dir string) *safe {
	t.Helper()
	s := &safe{t: t}
	return s.start(dir, Limits{
		Reason: faults.New(faults.LockedBoot, "PCR 11"),
		Unlock: s.unlock,
		Escrow: func() ([]byte, error) { return escrowed, nil },
	})
}

func (s *safe) start(dir string, limits Limits) *safe {
	t := s.t
	t.Helper()
	s.ended = make(chan struct{})
	s.Machine = newMachine(Config{Folder: filepath.Join(dir, "machine"), StateDir: filepath.Join(dir, "not mounted"), Hostname: "box", Hosted: true, Log: quiet()})
	s.config.APIPort = 0
	up := make(chan struct{})
	s.config.LinkState = func(link.State) { // the first word of the uplink: all is up
		select {
		case <-up:
		default:
			close(up)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.stop = cancel
	go func() {
		defer close(s.ended)
		s.err = s.limited(ctx, limits)
	}()
	t.Cleanup(func() { cancel(); <-s.ended })
	select {
	case <-up:
	case <-s.ended:
		t.Fatalf("it ended: %v", s.err)
	case <-time.After(patience):
		t.Fatal("it never dialed")
	}
	return s
}

// lockedFleet is a machine at release 2, at which ops operates, eye reads, berliner
// operates other sites, and gone is an operator no longer; and its disk is locked.
func lockedFleet(t testing.TB) (*world, *courier, *agent, *safe) {
	t.Helper()
	w := newWorld(t, 12)
	w.trust(1, []string{"ops", "eye", "gone"}, "ci", "spare")
	w.seed.Trust = w.files["trust.yaml"]
	h := w.hub(t, t.TempDir(), "")
	a := w.agent(t, t.TempDir(), h.addr)
	w.adopt(1, a.identity.ID())
	h.next()
	a.waitRelease(1)
	w.trust(2, []string{"ops", "eye", "berliner"}, "ci", "spare")
	text := strings.Replace(string(w.files["trust.yaml"]), keyLine("eye")+", roles: [read, operate]", keyLine("eye")+", roles: [read]", 1)
	text = strings.Replace(text, keyLine("berliner")+", roles: [read, operate]", keyLine("berliner")+", roles: [read, operate], sites: [de]", 1)
	w.files["trust.yaml"] = []byte(text)
	h.next()
	a.waitRelease(2)
	h.waitReported(a.identity.ID(), 2)
	a.stop()
	s := w.locked(t, a.dir)
	h.watch("locked", func(st *wire.Status) bool {
		m := find(st, a.identity.ID())
		return m != nil && m.Online && m.State == wire.Locked
	})
	return w, h, a, s
}

// Locked, a machine is linked and reported, serves what opens it and nothing
// else, and an operator of the fleet opens it through the hub or on the LAN.
func TestLocked(t *testing.T) {
	w, h, a, s := lockedFleet(t)
	call := func(c *operator.Client, method, path string, in any) error {
		return c.Call(t.Context(), method, path, in, nil)
	}
	unlock := func(c *operator.Client, key []byte) error {
		return call(c, http.MethodPost, "/v1/unlock", &wire.Unlock{Key: key})
	}
	t.Run("the hub says so", func(t *testing.T) {
		h.watch("what is wrong", func(st *wire.Status) bool {
			m := find(st, a.identity.ID())
			return m.N == 2 && strings.Contains(m.Detail, "E07 the disk stays locked") && len(m.Conditions) == 1 && m.Conditions[0].Name == "E07"
		})
	})
	reaches := map[string]func(*link.Identity) link.DialConfig{
		"through the hub": func(id *link.Identity) link.DialConfig { return h.reach(s.Machine, id) },
		"on the LAN":      s.lan,
	}
	for name, reach := range reaches {
		t.Run(name, func(t *testing.T) {
			t.Run("a stranger", func(t *testing.T) {
				c := mustOpen(t, reach(nil), "")
				var id Identity
				if err := c.Call(t.Context(), http.MethodGet, "/v1/identity", nil, &id); err != nil {
					t.Fatal(err)
				}
				if want := (Identity{Machine: a.identity.ID(), Fleet: fleetID, Locked: true}); id != want {
					t.Errorf("got %+v, want %+v", id, want)
				}
				wantRefusal(t, call(c, http.MethodGet, "/v1/escrow", nil), http.StatusUnauthorized, "no session")
				wantRefusal(t, unlock(c, rightKey), http.StatusUnauthorized, "no session")
				wantRefusal(t, call(c, http.MethodPost, "/v1/credential", CredentialRequest{}), http.StatusNotFound, "")
			})
			t.Run("ErrRole", func(t *testing.T) {
				_, err := open(t, reach(linktest.NewIdentity(t)), "eye", operator.Operate)
				wantRefusal(t, err, http.StatusForbidden, operator.ErrRole.Error())
				c := mustOpen(t, reach(linktest.NewIdentity(t)), "eye", operator.Read)
				wantRefusal(t, call(c, http.MethodGet, "/v1/escrow", nil), http.StatusForbidden, "lacks the role")
				wantRefusal(t, unlock(c, rightKey), http.StatusForbidden, "lacks the role")
				var st Status
				if err := c.Call(t.Context(), http.MethodGet, "/v1/status", nil, &st); err != nil || st.Report.Phase != wire.Locked {
					t.Errorf("status %+v, %v", st.Report, err)
				}
			})
			t.Run("of another site", func(t *testing.T) {
				_, err := open(t, reach(linktest.NewIdentity(t)), "berliner", operator.Operate)
				wantRefusal(t, err, http.StatusForbidden, operator.ErrRole.Error())
			})
			t.Run("revoked, though the seed names him", func(t *testing.T) {
				_, err := open(t, reach(linktest.NewIdentity(t)), "gone", operator.Operate)
				wantRefusal(t, err, http.StatusForbidden, operator.ErrUnknown.Error())
			})
			t.Run("ErrReplayed", func(t *testing.T) { testReplay(t, s.Machine) })
			if n := s.count(); n != 0 {
				t.Fatalf("%d keys were tried by people who may not", n)
			}
			t.Run("an operator", func(t *testing.T) {
				c := mustOpen(t, reach(linktest.NewIdentity(t)), "ops", operator.Operate)
				var e wire.Escrowed
				if err := c.Call(t.Context(), http.MethodGet, "/v1/escrow", nil, &e); err != nil || !bytes.Equal(e.Age, escrowed) {
					t.Errorf("escrow %q, %v", e.Age, err)
				}
				wantRefusal(t, unlock(c, bytes.Repeat([]byte{1}, 32)), http.StatusUnprocessableEntity, ErrWrongKey.Error())
				wantRefusal(t, unlock(c, []byte("broken, and long enough")), http.StatusInternalServerError, "the disk answers with errors")
				wantRefusal(t, unlock(c, nil), http.StatusBadRequest, "")
				wantRefusal(t, unlock(c, make([]byte, 300)), http.StatusBadRequest, "")
			})
			s.mu.Lock()
			s.tried = nil
			s.mu.Unlock()
		})
	}
	t.Run("ErrPin", func(t *testing.T) {
		// A hostile hub sends the operator elsewhere: no key leaves him.
		dial := s.lan(linktest.NewIdentity(t))
		dial.Pins = []link.Pin{linktest.NewIdentity(t).Pin()}
		if _, err := open(t, dial, "ops", operator.Operate); err == nil || !strings.Contains(err.Error(), link.ErrPin.Error()) {
			t.Errorf("got %v, want ErrPin", err)
		}
	})
	t.Run("a release meanwhile", func(t *testing.T) {
		w.city(1, "While it was locked")
		h.next()
		client := h.client("eye", operator.Read)
		var st wire.Status
		if err := client.Call(t.Context(), http.MethodGet, "/v1/status", nil, &st); err != nil {
			t.Fatal(err)
		}
		if m := find(&st, a.identity.ID()); m.State != wire.Locked || m.N != 2 {
			t.Errorf("the hub says %s at release %d", m.State, m.N)
		}
	})
	t.Run("opened", func(t *testing.T) {
		c := mustOpen(t, h.reach(s.Machine, linktest.NewIdentity(t)), "ops", operator.Operate)
		if err := unlock(c, rightKey); err != nil {
			t.Fatal(err)
		}
		select {
		case <-s.ended:
			if s.err != nil {
				t.Fatalf("Limited returned %v", s.err)
			}
		case <-time.After(patience):
			t.Fatal("Limited never returned")
		}
		if list, _ := s.faults.Now(); len(list) != 0 {
			t.Errorf("still wrong: %v", list)
		}
		again := w.agent(t, a.dir, h.addr) // the boot goes on
		again.waitRelease(3)
		h.waitReported(a.identity.ID(), 3)
	})
}

// A hostile hub hands a locked machine slices, good ones and forged: it takes
// none, says why, and remembers what it remembered.
func TestLockedAndAHostileHub(t *testing.T) {
	w := newWorld(t, 12)
	e := newEnemy(t, w.hubKey)
	a := w.agent(t, t.TempDir(), e.addr())
	w.adopt(1, a.identity.ID())
	client := link.Client((<-e.sessions).Open, 0)
	w.release()
	takes(t, w, a, client)
	a.stop()
	before := a.kept()
	s := w.locked(t, a.dir)
	client = link.Client((<-e.sessions).Open, 0)
	w.release()
	good := packed(w.slice(1))
	thief := w.clone()
	thief.trust(2, []string{"thief"}, "thief")
	thief.releaseWith(nil, "thief")
	for name, body := range map[string][]byte{"good": good, "forged": packed(thief.slice(1)), "garbage": []byte("garbage")} {
		err := put(t, client, bytes.NewReader(body), "", "")
		if name == "garbage" {
			wantRefusal(t, err, http.StatusUnprocessableEntity, "")
			continue
		}
		wantRefusal(t, err, http.StatusServiceUnavailable, errLocked.Error())
	}
	a.same(before)
	if s.memory.number() != 1 || s.count() != 0 {
		t.Errorf("release %d, %d keys tried", s.memory.number(), s.count())
	}
	_, err := open(t, s.lan(linktest.NewIdentity(t)), "thief", operator.Operate)
	wantRefusal(t, err, http.StatusForbidden, operator.ErrUnknown.Error())
	s.stop()
	<-s.ended
	if !errors.Is(s.err, context.Canceled) {
		t.Errorf("stopped, it returned %v", s.err)
	}
}

// Without a disk from its first hour: a stranger to the hub, that shows its code.
func TestLimitedStranger(t *testing.T) {
	w := newWorld(t, 12)
	h := w.hub(t, t.TempDir(), "")
	h.next()
	dir := t.TempDir()
	a := w.agent(t, dir, h.addr)
	a.waitScreen("waiting to be adopted")
	a.stop()
	s := w.locked(t, dir)
	client := h.client("eye", operator.Read)
	var q wire.Quarantine
	for len(q.Guests) == 0 || !q.Guests[0].Online {
		if err := client.Call(t.Context(), http.MethodGet, "/v1/quarantine", nil, &q); err != nil {
			t.Fatal(err)
		}
	}
	if q.Guests[0].ID != s.identity.ID() {
		t.Errorf("guest %s", q.Guests[0].ID)
	}
	a.Machine = s.Machine
	a.waitScreen("E07")
	if a.code() != link.Code(s.identity.ID()) {
		t.Errorf("code %s", a.code())
	}
}

// Limited ends with what it cannot do without.
func TestLimitedNeedsASeed(t *testing.T) {
	err := Limited(t.Context(), Config{Folder: t.TempDir(), Hosted: true, Log: quiet()}, Limits{Reason: faults.New(faults.NoDisk, "any")})
	if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "phase seed") {
		t.Errorf("got %v", err)
	}
}

// Two disks and no word on which: the machine is linked, is adopted, and its
// release says it. What a release says is tried as soon as it is verified, kept
// by nobody, and tried again by the next one.
func TestToldWhichDisk(t *testing.T) {
	w := newWorld(t, 12)
	h := w.hub(t, t.TempDir(), "")
	h.next()
	dir := t.TempDir()
	a := w.agent(t, dir, h.addr)
	a.waitScreen("waiting to be adopted")
	a.stop()
	before := a.kept()
	rules := make(chan fleet.DiskRule, 9)
	disk := func(_ context.Context, rule fleet.DiskRule) error {
		rules <- rule
		if rule.Serial == "S2" {
			return nil
		}
		return errors.New("several disks could be used")
	}
	s := (&safe{t: t}).start(dir, Limits{Reason: faults.New(faults.SeveralDisks, "vda, vdb"), Disk: disk})
	tried := func(want fleet.DiskRule) {
		t.Helper()
		select {
		case rule := <-rules:
			if rule != want {
				t.Errorf("tried %+v, want %+v", rule, want)
			}
		case <-time.After(patience):
			t.Fatal("no rule was tried")
		}
	}
	says := func(machine, site string) {
		file := fleetgen.SiteDir(1) + "/site.yaml"
		text, _, _ := strings.Cut(string(w.files[file]), "  machine")
		w.files[file] = []byte(text + "  machine: {disk: " + site + "}\n  machines: [{name: m0, machine: {disk: " + machine + "}}]\n")
	}
	w.adopt(1, a.identity.ID())
	says("{}", "{minSize: 10Gi}")
	h.next()
	tried(fleet.DiskRule{MinSize: 10 << 30})
	h.watch("that it did not help", func(st *wire.Status) bool {
		m := find(st, a.identity.ID())
		return m != nil && m.State == wire.Locked && strings.Contains(m.Detail, "by release 2: several disks")
	})
	says("{serial: S1}", "{minSize: 10Gi, wipe: true}")
	h.next()
	tried(fleet.DiskRule{Serial: "S1", MinSize: 10 << 30, Wipe: true})
	select {
	case <-s.ended:
		t.Fatalf("it ended: %v", s.err)
	default:
	}
	a.same(before)
	says("{serial: S2}", "{}")
	h.next()
	tried(fleet.DiskRule{Serial: "S2"})
	select {
	case <-s.ended:
	case <-time.After(patience):
		t.Fatal("Limited never returned")
	}
	if list, _ := s.faults.Now(); s.err != nil || len(list) != 0 {
		t.Errorf("returned %v, still wrong: %v", s.err, list)
	}
	again := w.agent(t, a.dir, h.addr) // the boot goes on
	again.waitRelease(4)
	h.waitReported(a.identity.ID(), 4)
}

// A rule may have a disk erased: none is tried that no signer said to this machine.
func TestToldByAHostileHub(t *testing.T) {
	w := newWorld(t, 12)
	e := newEnemy(t, w.hubKey)
	a := w.agent(t, t.TempDir(), e.addr())
	w.adopt(1, a.identity.ID())
	client := link.Client((<-e.sessions).Open, 0)
	w.release()
	old := packed(w.slice(1))
	w.release()
	takes(t, w, a, client)
	a.stop()
	before := a.kept()
	tries := 0 // read after Limited ended
	s := (&safe{t: t}).start(a.dir, Limits{Reason: faults.New(faults.SeveralDisks, "vda, vdb"), Disk: func(context.Context, fleet.DiskRule) error {
		tries++
		return errors.New("no")
	}})
	client = link.Client((<-e.sessions).Open, 0)
	thief := w.clone()
	thief.trust(2, []string{"thief"}, "thief")
	thief.releaseWith(nil, "thief")
	other := w.clone()
	other.release()
	buried := w.clone()
	buried.bury(1, a.identity.ID())
	buried.release()
	for name, body := range map[string][]byte{
		"forged": packed(thief.slice(1)), "old": old, "another site's": packed(other.slice(2)), "garbage": []byte("garbage"), "evicted": packed(buried.slice(1)),
	} {
		err := put(t, client, bytes.NewReader(body), "", "")
		if err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	a.same(before)
	s.stop()
	<-s.ended
	if tries != 0 {
		t.Errorf("%d rules were tried", tries)
	}
}
