package operator

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/link"
	"github.com/holdfast-edge/holdfast/link/linktest"
	"github.com/holdfast-edge/holdfast/link/wire"
)

const testFleet = fleet.ID("000102030405060708090a0b0c0d0e0f")

func newSigner(t testing.TB) ssh.Signer {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return sshSigner(t, key)
}

func sshSigner(t testing.TB, key any) ssh.Signer {
	t.Helper()
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return signer
}

func operatorOf(s ssh.Signer, roles ...string) fleet.Operator {
	return fleet.Operator{Name: "anna", Person: "anna", Key: string(ssh.MarshalAuthorizedKey(s.PublicKey())), Roles: roles}
}

// target is a machine or hub that serves /v1/who to readers and /v1/hang to
// operators over real TLS.
type target struct {
	id        *link.Identity
	authority *Authority
	trust     atomic.Pointer[fleet.Trust]
	address   string
	hung      chan error // what ended each /v1/hang
}

func newTarget(t *testing.T, trust *fleet.Trust, change func(*Config)) *target {
	t.Helper()
	tgt := &target{id: linktest.NewIdentity(t), hung: make(chan error, 8)}
	tgt.trust.Store(trust)
	config := Config{Fleet: testFleet, Target: tgt.id.Pin(), Trust: tgt.trust.Load}
	if change != nil {
		change(&config)
	}
	tgt.authority = New(config)
	mux := http.NewServeMux()
	mux.Handle("/v1/who", Require(Read, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		grant, _ := From(r.Context())
		io.WriteString(w, grant.Name)
	})))
	mux.Handle("/v1/hang", Require(Operate, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusOK)
		w.(http.Flusher).Flush()
		<-r.Context().Done()
		tgt.hung <- context.Cause(r.Context())
	})))
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "open to all") })
	// Machines serve with a boot key; operators see the identity behind it.
	boot, err := tgt.id.Delegate()
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	tgt.address = listener.Addr().String()
	tlsConfig := link.ServerTLS(boot, string(link.API))
	conns := link.NewConns(listener.Addr())
	server := link.APIServer(tgt.authority.Handler(mux), nil)
	var running sync.WaitGroup
	running.Go(func() { server.Serve(conns) })
	running.Go(func() {
		for {
			raw, err := listener.Accept()
			if err != nil {
				return
			}
			if conn, err := link.Handshake(context.Background(), raw, tlsConfig); err == nil {
				conns.Give(link.HTTPConn(conn))
			}
		}
	})
	t.Cleanup(func() {
		listener.Close()
		conns.Close()
		server.Close()
		running.Wait()
		tgt.authority.Close()
	})
	return tgt
}

func (tgt *target) client(id *link.Identity, signer ssh.Signer, roles ...string) ClientConfig {
	return ClientConfig{
		Fleet: testFleet, Signer: signer, Roles: roles,
		Dial: link.DialConfig{Address: tgt.address, Identity: id, Pins: []link.Pin{tgt.id.Pin()}},
	}
}

func wantRefusal(t *testing.T, err error, status int, words error) {
	t.Helper()
	refusal, ok := wire.AsRefusal(err, status)
	if !ok {
		t.Fatalf("got error %v, want a refusal with status %d", err, status)
	}
	if !strings.Contains(refusal.Reason, words.Error()) {
		t.Fatalf("got reason %q, want %q", refusal.Reason, words)
	}
}

func (c *Client) who(ctx context.Context) error {
	response, err := c.HTTP.Get(c.URL("/v1/who"))
	if err != nil {
		return err
	}
	return wire.Answer(response, nil)
}

func TestSessionOpensOnceAnHour(t *testing.T) {
	signer := &countingSigner{Signer: newSigner(t)}
	tgt := newTarget(t, &fleet.Trust{Operators: []fleet.Operator{operatorOf(signer, Operate)}}, nil)
	id := linktest.NewIdentity(t)
	for range 3 {
		c, err := Open(t.Context(), tgt.client(id, signer, Read))
		if err != nil {
			t.Fatal(err)
		}
		if c.Session.Name != "anna" || c.Session.Seconds < 3500 {
			t.Errorf("got session %+v", c.Session)
		}
		if err := c.who(t.Context()); err != nil {
			t.Error(err)
		}
		c.HTTP.CloseIdleConnections()
		if err := c.who(t.Context()); err != nil { // on another connection
			t.Error(err)
		}
		c.Close()
	}
	if signer.count != 1 {
		t.Errorf("the key was used %d times, want once", signer.count)
	}
	c, err := Open(t.Context(), tgt.client(id, signer, Operate)) // more than the session has
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if signer.count != 2 {
		t.Errorf("the key was used %d times, want twice", signer.count)
	}
}

// A person's programs share a client key, and one does not take from another what it opened.
func TestProgramsOfOnePersonGoTogether(t *testing.T) {
	signer := newSigner(t)
	tgt := newTarget(t, &fleet.Trust{Operators: []fleet.Operator{operatorOf(signer, Operate, Read, Admin)}}, nil)
	id := linktest.NewIdentity(t)
	working, err := Open(t.Context(), tgt.client(id, signer, Operate))
	if err != nil {
		t.Fatal(err)
	}
	defer working.Close()
	response, err := working.HTTP.Get(working.URL("/v1/hang"))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	for _, role := range []string{Read, Admin} {
		other, err := Open(t.Context(), tgt.client(id, signer, role))
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		if err := other.who(t.Context()); err != nil {
			t.Errorf("with role %s: %v", role, err)
		}
	}
	again, err := working.HTTP.Get(working.URL("/v1/hang"))
	if err != nil {
		t.Fatal(err)
	}
	again.Body.Close()
	if again.StatusCode != http.StatusOK {
		t.Errorf("the first program is refused: %s", again.Status)
	}
	select {
	case err := <-tgt.hung:
		if !errors.Is(err, context.Canceled) { // of the second call, which we ended
			t.Errorf("the first program was cut: %v", err)
		}
	default:
	}
	if n := tgt.authority.Count(); n != 1 {
		t.Errorf("%d sessions are open, want one", n)
	}
	tgt.trust.Store(&fleet.Trust{})
	tgt.authority.Recheck()
	if _, err := io.Copy(io.Discard, response.Body); err == nil {
		<-tgt.hung
	}
	if n := tgt.authority.Count(); n != 0 {
		t.Errorf("%d sessions are open to nobody", n)
	}
}

type countingSigner struct {
	ssh.Signer
	count int
}

func (c *countingSigner) Sign(r io.Reader, data []byte) (*ssh.Signature, error) {
	c.count++
	return c.Signer.Sign(r, data)
}

func TestRefusedAtTheDoor(t *testing.T) {
	anna, bert, old, young, scoped := newSigner(t), newSigner(t), newSigner(t), newSigner(t), newSigner(t)
	now := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	past, future := now.Add(-time.Hour), now.Add(time.Hour)
	expired, early, elsewhere := operatorOf(old, Read), operatorOf(young, Read), operatorOf(scoped, Read)
	expired.Until, early.From, elsewhere.Sites = &past, &future, []string{"de"}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	tgt := newTarget(t, &fleet.Trust{Operators: []fleet.Operator{operatorOf(anna, Read), expired, early, elsewhere}}, func(c *Config) {
		c.Time = func() time.Time { return now }
		c.Scope = func(selector string) bool { return selector == "fr" }
	})
	for _, c := range []struct {
		name   string
		signer ssh.Signer
		roles  []string
		want   error
	}{
		{"unknown key", bert, []string{Read}, ErrUnknown},
		{"expired operator key", old, []string{Read}, ErrExpired},
		{"operator key not yet valid", young, []string{Read}, ErrExpired},
		{"role not held", anna, []string{Operate}, ErrRole},
		{"one role of two not held", anna, []string{Read, Admin}, ErrRole},
		{"unheard-of role", anna, []string{"king"}, ErrRole},
		{"another site's operator", scoped, []string{Read}, ErrRole},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Open(t.Context(), tgt.client(linktest.NewIdentity(t), c.signer, c.roles...))
			wantRefusal(t, err, http.StatusForbidden, c.want)
		})
	}
	t.Run("RSA key", func(t *testing.T) {
		_, err := Open(t.Context(), tgt.client(linktest.NewIdentity(t), sshSigner(t, rsaKey), Read))
		if !errors.Is(err, ErrKeyKind) {
			t.Fatalf("got %v, want ErrKeyKind", err)
		}
	})
	t.Run("no session", func(t *testing.T) {
		c, err := Open(t.Context(), tgt.client(linktest.NewIdentity(t), nil))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		wantRefusal(t, c.who(t.Context()), http.StatusUnauthorized, errors.New("no session"))
		if err := c.Call(t.Context(), http.MethodGet, "/", nil, nil); err != nil {
			t.Errorf("what is open to all: %v", err)
		}
	})
	t.Run("no client key", func(t *testing.T) {
		c, err := Open(t.Context(), tgt.client(nil, nil))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		err = c.Call(t.Context(), http.MethodPost, Path, &request{Roles: []string{Read}}, nil)
		wantRefusal(t, err, http.StatusForbidden, ErrNoClientKey)
	})
	t.Run("oversized request", func(t *testing.T) {
		c, err := Open(t.Context(), tgt.client(linktest.NewIdentity(t), nil))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		noise := make([]byte, 2*maxRequest)
		rand.Read(noise)
		err = c.Call(t.Context(), http.MethodPost, Path, &request{Roles: []string{Read}, Signature: noise}, nil)
		wantRefusal(t, err, http.StatusRequestEntityTooLarge, wire.ErrOversized)
	})
	t.Run("wrong target key", func(t *testing.T) {
		config := tgt.client(linktest.NewIdentity(t), anna, Read)
		config.Dial.Pins = []link.Pin{{1}}
		if _, err := Open(t.Context(), config); !errors.Is(err, link.ErrPin) {
			t.Fatalf("got %v, want ErrPin", err)
		}
	})
	c, err := Open(t.Context(), tgt.client(linktest.NewIdentity(t), anna, Read))
	if err != nil {
		t.Fatalf("a valid operator right after: %v", err)
	}
	c.Close()
}

// post sends a request of our making on a connection of our own.
func post(t *testing.T, tgt *target, id *link.Identity, make func(tls.ConnectionState) *request) error {
	t.Helper()
	config := tgt.client(id, nil)
	config.Dial.Class = link.API
	conn, err := link.DialTLS(t.Context(), config.Dial)
	if err != nil {
		t.Fatal(err)
	}
	c := newClient(config)
	c.first = conn
	defer c.Close()
	return c.Call(t.Context(), http.MethodPost, Path, make(conn.ConnectionState()), nil)
}

func TestSignatureFitsOneConnectionOnly(t *testing.T) {
	signer := newSigner(t)
	trust := &fleet.Trust{Operators: []fleet.Operator{operatorOf(signer, Admin)}}
	tgt, other := newTarget(t, trust, nil), newTarget(t, trust, nil)
	id := linktest.NewIdentity(t)
	sign := func(cs tls.ConnectionState, change func(*statement)) *request {
		secret, err := exporter(cs)
		if err != nil {
			t.Fatal(err)
		}
		said := statement{testFleet, tgt.id.Pin(), id.Pin(), []string{Read}, secret}
		change(&said)
		signature, err := said.sign(signer)
		if err != nil {
			t.Fatal(err)
		}
		return &request{Roles: []string{Read}, Signature: signature}
	}
	var captured *request
	if err := post(t, tgt, id, func(cs tls.ConnectionState) *request {
		captured = sign(cs, func(*statement) {})
		return captured
	}); err != nil {
		t.Fatalf("the honest one: %v", err)
	}
	tgt.authority.Close()
	replay := func(tls.ConnectionState) *request { return captured }
	for _, c := range []struct {
		name string
		tgt  *target
		id   *link.Identity
		make func(tls.ConnectionState) *request
	}{
		{"replayed on another connection", tgt, id, replay},
		{"replayed by a thief with his own client key", tgt, linktest.NewIdentity(t), replay},
		{"relayed to the wrong machine", other, id, replay},
		{"signed for another machine", other, id, func(cs tls.ConnectionState) *request { return sign(cs, func(*statement) {}) }},
		{"signed for another fleet", tgt, id, func(cs tls.ConnectionState) *request {
			return sign(cs, func(s *statement) { s.fleet = "ff" + testFleet[2:] })
		}},
		{"signed for another client key", tgt, id, func(cs tls.ConnectionState) *request {
			return sign(cs, func(s *statement) { s.client = link.Pin{1} })
		}},
		{"signed for other roles", tgt, id, func(cs tls.ConnectionState) *request {
			r := sign(cs, func(*statement) {})
			r.Roles = []string{Admin}
			return r
		}},
		{"signature of a release", tgt, id, func(cs tls.ConnectionState) *request {
			r := sign(cs, func(*statement) {})
			r.Signature = []byte(strings.ReplaceAll(string(r.Signature), Namespace, strings.Repeat("g", len(Namespace))))
			return r
		}},
		{"no signature", tgt, id, func(tls.ConnectionState) *request { return &request{Roles: []string{Read}} }},
	} {
		t.Run(c.name, func(t *testing.T) {
			wantRefusal(t, post(t, c.tgt, c.id, c.make), http.StatusForbidden, ErrSignature)
		})
	}
	if n := tgt.authority.Count() + other.authority.Count(); n != 0 {
		t.Errorf("%d sessions are open, want none", n)
	}
}

func TestRevokedOperatorIsCut(t *testing.T) {
	anna, bert := newSigner(t), newSigner(t)
	both := &fleet.Trust{Version: 1, Operators: []fleet.Operator{operatorOf(anna, Operate), operatorOf(bert, Operate)}}
	tgt := newTarget(t, both, nil)
	open := func(s ssh.Signer) *Client {
		t.Helper()
		c, err := Open(t.Context(), tgt.client(linktest.NewIdentity(t), s, Operate))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.Close)
		return c
	}
	a, b := open(anna), open(bert)
	response, err := a.HTTP.Get(a.URL("/v1/hang"))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	tgt.trust.Store(&fleet.Trust{Version: 2, Operators: []fleet.Operator{operatorOf(bert, Operate)}})
	tgt.authority.Recheck()
	if err := <-tgt.hung; !errors.Is(err, ErrUnknown) {
		t.Errorf("the running call ended with %v, want ErrUnknown", err)
	}
	wantRefusal(t, a.who(t.Context()), http.StatusUnauthorized, errors.New("no session"))
	if err := b.who(t.Context()); err != nil {
		t.Errorf("who was not revoked: %v", err)
	}
	// A role taken away is noticed at the next request, without Recheck.
	tgt.trust.Store(&fleet.Trust{Version: 3, Operators: []fleet.Operator{operatorOf(bert, Read)}})
	wantRefusal(t, b.who(t.Context()), http.StatusUnauthorized, errors.New("no session"))
}

func TestSessionsAreBounded(t *testing.T) {
	anna := newSigner(t)
	trust := &fleet.Trust{Operators: []fleet.Operator{operatorOf(anna, Read)}}
	tgt := newTarget(t, trust, func(c *Config) { c.Sessions, c.PerKey = 3, 2 })
	var clients []*Client
	for range 4 {
		c, err := Open(t.Context(), tgt.client(linktest.NewIdentity(t), anna, Read))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		clients = append(clients, c)
	}
	if n := tgt.authority.Count(); n != 2 {
		t.Errorf("one key holds %d sessions, want 2", n)
	}
	wantRefusal(t, clients[0].who(t.Context()), http.StatusUnauthorized, errors.New("no session"))
	if err := clients[3].who(t.Context()); err != nil {
		t.Error(err)
	}
	next := &fleet.Trust{Operators: []fleet.Operator{trust.Operators[0]}}
	signers := []ssh.Signer{newSigner(t), newSigner(t)}
	for _, s := range signers {
		next.Operators = append(next.Operators, operatorOf(s, Read))
	}
	tgt.trust.Store(next)
	c, err := Open(t.Context(), tgt.client(linktest.NewIdentity(t), signers[0], Read))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, err = Open(t.Context(), tgt.client(linktest.NewIdentity(t), signers[1], Read))
	wantRefusal(t, err, http.StatusServiceUnavailable, ErrFull)
}

func TestFloodOpensNothing(t *testing.T) {
	known := newSigner(t)
	tgt := newTarget(t, &fleet.Trust{Operators: []fleet.Operator{operatorOf(known, Read)}}, nil)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 5 {
				said := statement{testFleet, tgt.id.Pin(), link.Pin{}, []string{Read}, nil}
				signature, err := said.sign(known) // of a known key, over something else
				if err != nil {
					t.Error(err)
				}
				err = post(t, tgt, linktest.NewIdentity(t), func(tls.ConnectionState) *request {
					return &request{Roles: []string{Read}, Signature: signature}
				})
				if _, ok := wire.AsRefusal(err, http.StatusForbidden); !ok {
					t.Errorf("got %v, want a refusal", err)
				}
			}
		})
	}
	wg.Wait()
	if n := tgt.authority.Count(); n != 0 {
		t.Errorf("%d sessions are open", n)
	}
	c, err := Open(t.Context(), tgt.client(linktest.NewIdentity(t), known, Read))
	if err != nil {
		t.Fatalf("a valid operator right after: %v", err)
	}
	c.Close()
}

func TestSessionEndsByUptime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		signer := newSigner(t)
		trust := &fleet.Trust{Operators: []fleet.Operator{operatorOf(signer, Read)}}
		a := New(Config{Fleet: testFleet, Trust: func() *fleet.Trust { return trust }})
		s, err := a.enter(link.Pin{1}, ssh.FingerprintSHA256(signer.PublicKey()), []string{Read})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour - time.Second)
		synctest.Wait()
		if a.Count() != 1 || s.ctx.Err() != nil {
			t.Fatal("the session ended before its hour")
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if a.Count() != 0 || !errors.Is(context.Cause(s.ctx), ErrEnded) {
			t.Fatalf("after its hour: %d open, cause %v", a.Count(), context.Cause(s.ctx))
		}
	})
}

func TestScopedGrant(t *testing.T) {
	berlin := &fleet.Site{Name: "berlin", Dir: "sites/de/0417-berlin"}
	paris := &fleet.Site{Name: "paris", Dir: "sites/fr/0001-paris"}
	g := &Grant{Roles: []string{Operate}, entries: []entry{
		{roles: []string{Operate}, sites: []string{"de"}},
		{roles: []string{Read}},
	}}
	for _, c := range []struct {
		role    string
		matches func(string) bool
		want    bool
	}{
		{Operate, berlin.Matches, true},
		{Operate, paris.Matches, false},
		{Read, paris.Matches, true},
		{Operate, nil, false},
		{Read, nil, true},
		{Admin, berlin.Matches, false},
		{Release, nil, false},
	} {
		if got := g.Allows(c.role, c.matches); got != c.want {
			t.Errorf("Allows(%s, …) = %t, want %t", c.role, got, c.want)
		}
	}
	if fmt.Sprint(implied(Admin)) != "[admin operate read]" {
		t.Errorf("admin implies %v", implied(Admin))
	}
}
