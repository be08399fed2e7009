package machine

import (
	"bufio"
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-edge/holdfast/kube"
	"github.com/holdfast-edge/holdfast/link"
	"github.com/holdfast-edge/holdfast/link/linktest"
	"github.com/holdfast-edge/holdfast/link/operator"
	"github.com/holdfast-edge/holdfast/link/wire"
)

// reach says how an operator reaches the machine's API: through the hub.
func (c *courier) reach(a *Machine, client *link.Identity) link.DialConfig {
	return link.DialConfig{
		Address: c.addr, ServerName: link.MachineName(a.identity.ID(), fleetID).String(),
		Class: link.API, Identity: client, Pins: []link.Pin{a.identity.Pin()},
	}
}

// lan reaches it directly.
func (a *Machine) lan(client *link.Identity) link.DialConfig {
	_, port, _ := net.SplitHostPort(a.door.conns.Addr().String())
	return link.DialConfig{Address: net.JoinHostPort("127.0.0.1", port), Class: link.API, Identity: client, Pins: []link.Pin{a.identity.Pin()}}
}

func open(t testing.TB, dial link.DialConfig, signer string, roles ...string) (*operator.Client, error) {
	t.Helper()
	config := operator.ClientConfig{Fleet: fleetID, Dial: dial, Roles: roles}
	if signer != "" {
		config.Signer = sshKey(signer)
	}
	c, err := operator.Open(t.Context(), config)
	if err == nil {
		t.Cleanup(c.Close)
	}
	return c, err
}

func mustOpen(t testing.TB, dial link.DialConfig, signer string, roles ...string) *operator.Client {
	t.Helper()
	c, err := open(t, dial, signer, roles...)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func wantRefusal(t testing.TB, err error, status int, words string) {
	t.Helper()
	if refusal, ok := wire.AsRefusal(err, status); !ok || !strings.Contains(refusal.Reason, words) {
		t.Errorf("got %v, want %d %q", err, status, words)
	}
}

// An operator at a machine's API, through the hub that passes it on unread and
// on the LAN alike.
func TestOperator(t *testing.T) {
	w, h, agents := fleetOf(t, 1, 2)
	a, other := agents[0], agents[1]
	if err := a.cluster.keys.MakeAuthorities("shops/fr-00001"); err != nil {
		t.Fatal(err)
	}
	for name, reach := range map[string]func(*link.Identity) link.DialConfig{
		"through the hub": func(id *link.Identity) link.DialConfig { return h.reach(a.Machine, id) },
		"on the LAN":      a.lan,
	} {
		t.Run(name, func(t *testing.T) {
			t.Run("identity, to anybody", func(t *testing.T) {
				var id Identity
				if err := mustOpen(t, reach(nil), "").Call(t.Context(), http.MethodGet, "/v1/identity", nil, &id); err != nil {
					t.Fatal(err)
				}
				if want := (Identity{Machine: a.identity.ID(), Fleet: fleetID, Site: "fr-00001", N: 1}); id != want {
					t.Errorf("got %+v, want %+v", id, want)
				}
			})
			t.Run("status", func(t *testing.T) {
				var s Status
				if err := mustOpen(t, reach(linktest.NewIdentity(t)), "eye", operator.Read).Call(t.Context(), http.MethodGet, "/v1/status", nil, &s); err != nil {
					t.Fatal(err)
				}
				if s.Report.N != 1 || s.Report.Phase != wire.OK || s.Report.Site != "fr-00001" {
					t.Errorf("got %+v", s.Report)
				}
			})
			t.Run("ErrNoSession", func(t *testing.T) {
				for _, dial := range []link.DialConfig{reach(nil), reach(linktest.NewIdentity(t))} {
					c := mustOpen(t, dial, "")
					wantRefusal(t, c.Call(t.Context(), http.MethodGet, "/v1/status", nil, nil), http.StatusUnauthorized, "no session")
					wantRefusal(t, c.Call(t.Context(), http.MethodPost, "/v1/credential", CredentialRequest{}, nil), http.StatusUnauthorized, "no session")
				}
			})
			t.Run("ErrUnknown", func(t *testing.T) {
				_, err := open(t, reach(linktest.NewIdentity(t)), "stranger", operator.Read)
				wantRefusal(t, err, http.StatusForbidden, operator.ErrUnknown.Error())
			})
			t.Run("ErrRole", func(t *testing.T) {
				_, err := open(t, reach(linktest.NewIdentity(t)), "eye", operator.Admin)
				wantRefusal(t, err, http.StatusForbidden, operator.ErrRole.Error())
			})
			t.Run("credential", func(t *testing.T) {
				checkCredential(t, a, mustOpen(t, reach(linktest.NewIdentity(t)), "ops", operator.Read))
			})
		})
	}
	t.Run("no cluster yet", func(t *testing.T) {
		blank := w.agent(t, t.TempDir(), h.addr)
		c := mustOpen(t, blank.lan(linktest.NewIdentity(t)), "ops", operator.Read)
		public := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: linktest.NewIdentity(t).SPKI()})
		err := c.Call(t.Context(), http.MethodPost, "/v1/credential", CredentialRequest{Key: string(public)}, nil)
		wantRefusal(t, err, http.StatusUnprocessableEntity, "no cluster yet")
	})
	t.Run("ErrReplayed", func(t *testing.T) { testReplay(t, other.Machine) })
	t.Run("ErrPin", func(t *testing.T) {
		// The hub sends the connection to another machine than the one that is meant.
		dial := h.reach(other.Machine, linktest.NewIdentity(t))
		dial.Pins = []link.Pin{a.identity.Pin()}
		if _, err := open(t, dial, "ops", operator.Read); err == nil || !strings.Contains(err.Error(), link.ErrPin.Error()) {
			t.Errorf("got %v, want ErrPin", err)
		}
	})
	t.Run("ErrRevoked", func(t *testing.T) {
		ops, eye := mustOpen(t, h.reach(a.Machine, linktest.NewIdentity(t)), "ops", operator.Read), mustOpen(t, h.reach(a.Machine, linktest.NewIdentity(t)), "eye", operator.Read)
		before := a.door.authority.Count()
		w.trust(2, []string{"eye"}, "ci", "spare")
		n := h.next()
		a.waitRelease(n)
		if got := a.door.authority.Count(); got >= before {
			t.Errorf("%d sessions after the release, %d before: the revoked one was not cut", got, before)
		}
		wantRefusal(t, ops.Call(t.Context(), http.MethodGet, "/v1/status", nil, nil), http.StatusUnauthorized, "no session")
		if err := eye.Call(t.Context(), http.MethodGet, "/v1/status", nil, nil); err != nil {
			t.Errorf("one who stayed: %v", err)
		}
		_, err := open(t, h.reach(a.Machine, linktest.NewIdentity(t)), "ops", operator.Read)
		wantRefusal(t, err, http.StatusForbidden, operator.ErrUnknown.Error())
	})
}

// checkCredential asks for a certificate and looks at what came: a user and no
// group, for the key that was made here, signed by the cluster, for an hour.
func checkCredential(t *testing.T, a *agent, c *operator.Client) {
	ask := func(request CredentialRequest) (*Credential, error) {
		var out Credential
		err := c.Call(t.Context(), http.MethodPost, "/v1/credential", request, &out)
		return &out, err
	}
	key := linktest.NewIdentity(t)
	public := string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: key.SPKI()}))
	for name, life := range map[string]struct {
		seconds int64
		want    time.Duration
	}{"default": {0, time.Hour}, "short": {60, time.Minute}, "too long": {1 << 40, 24 * time.Hour}, "negative": {-5, time.Hour}} {
		got, err := ask(CredentialRequest{Key: public, Seconds: life.seconds})
		if err != nil {
			t.Fatal(name, err)
		}
		block, _ := pem.Decode([]byte(got.Certificate))
		leaf, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		user := kube.OperatorUser(c.Session.Fingerprint)
		if leaf.Subject.CommonName != user || got.User != user || len(leaf.Subject.Organization) != 0 {
			t.Errorf("%s: subject %s, user %s; want %s and no group", name, leaf.Subject, got.User, user)
		}
		if !bytes.Equal(leaf.RawSubjectPublicKeyInfo, key.SPKI()) {
			t.Errorf("%s: another key was certified", name)
		}
		if d := time.Until(got.Expires); d > life.want || d < life.want-time.Minute {
			t.Errorf("%s: expires in %s, want %s", name, d, life.want)
		}
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM([]byte(got.CA))
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if want := link.KubeName("fr-00001", fleetID).String(); got.ServerName != want || got.Site != "fr-00001" {
			t.Errorf("%s: server %s of %s, want %s", name, got.ServerName, got.Site, want)
		}
	}
	for name, bad := range map[string]string{"none": "", "no PEM": "AAAA", "no key": "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"} {
		if _, err := ask(CredentialRequest{Key: bad}); err == nil {
			t.Errorf("key %s: accepted", name)
		} else {
			wantRefusal(t, err, http.StatusUnprocessableEntity, "key:")
		}
	}
}

// testReplay: a hostile machine, which the operator opens a session at, hands
// what he signed to another machine. There it opens nothing: not by the thief's
// key, and not even if the thief had the operator's client key.
func testReplay(t *testing.T, victim *Machine) {
	thief, client, before := linktest.NewIdentity(t), linktest.NewIdentity(t), victim.door.authority.Count()
	signed := make(chan []byte, 1)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	conns := link.NewConns(l.Addr())
	server := link.APIServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			body, _ := io.ReadAll(r.Body)
			signed <- body
		}
		wire.Refuse(w, http.StatusUnauthorized, "thank you")
	}), quiet())
	go server.Serve(conns)
	t.Cleanup(func() { l.Close(); server.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			if secure, err := link.Handshake(context.Background(), conn, link.ServerTLS(thief, string(link.API))); err == nil {
				conns.Give(link.HTTPConn(secure))
			}
		}
	}()
	if _, err := open(t, link.DialConfig{Address: l.Addr().String(), Identity: client, Pins: []link.Pin{thief.Pin()}}, "ops", operator.Read); err == nil {
		t.Fatal("the thief's machine should have refused")
	}
	said := <-signed
	for name, key := range map[string]*link.Identity{"by the thief's key": thief, "by the operator's own client key": client} {
		conn, err := link.DialTLS(t.Context(), victim.lan(key))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		r, err := http.NewRequest(http.MethodPost, "https://"+link.Host+operator.Path, bytes.NewReader(said))
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Write(conn); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(bufio.NewReader(conn), r)
		if err != nil {
			t.Fatal(err)
		}
		if err := wire.Answer(resp, nil); err == nil || !strings.Contains(err.Error(), operator.ErrSignature.Error()) {
			t.Errorf("%s: got %v, want ErrSignature", name, err)
		}
	}
	if n := victim.door.authority.Count(); n != before {
		t.Errorf("%d sessions are open, %d before", n, before)
	}
}

// Selectors of trust.yaml: an operator of other sites has no session here.
func TestErrScope(t *testing.T) {
	w, h, agents := fleetOf(t, 1)
	text := string(w.files["trust.yaml"])
	text = strings.Replace(text, "version: 1", "version: 2", 1)
	text = strings.Replace(text, keyLine("eye")+", roles: [read, operate]", keyLine("eye")+", roles: [read, operate], sites: [de]", 1)
	w.files["trust.yaml"] = []byte(text)
	n := h.next()
	agents[0].waitRelease(n)
	_, err := open(t, agents[0].lan(linktest.NewIdentity(t)), "eye", operator.Read)
	wantRefusal(t, err, http.StatusForbidden, operator.ErrRole.Error())
	mustOpen(t, agents[0].lan(linktest.NewIdentity(t)), "ops", operator.Read)
}

// To strangers the door says who the machine is, and nothing else.
func TestDoorIsClosed(t *testing.T) {
	w := newWorld(t, 12)
	e := newEnemy(t, w.hubKey)
	a := w.agent(t, t.TempDir(), e.addr())
	c := mustOpen(t, a.lan(nil), "")
	var id Identity
	if err := c.Call(t.Context(), http.MethodGet, "/v1/identity", nil, &id); err != nil {
		t.Fatal(err)
	}
	if want := (Identity{Machine: a.identity.ID(), Fleet: fleetID}); id != want {
		t.Errorf("got %+v, want %+v", id, want)
	}
	for _, path := range []string{"/v1/status", "/v1/credential", "/", "/metrics", "/v1/session", "/debug/pprof/"} {
		for _, method := range []string{http.MethodGet, http.MethodPost} {
			err := c.Call(t.Context(), method, path, nil, nil)
			ok := slices.ContainsFunc([]int{400, 401, 403, 404, 405}, func(status int) bool { _, is := wire.AsRefusal(err, status); return is })
			if !ok {
				t.Errorf("%s %s: got %v, want a refusal", method, path, err)
			}
		}
	}
	t.Run("kube before there is a cluster", func(t *testing.T) {
		dial := a.lan(nil)
		dial.ServerName = link.KubeName("fr-00001", fleetID).String()
		if conn, err := link.DialTLS(t.Context(), dial); err == nil {
			conn.Close()
			t.Error("somebody answered for the site's API server")
		}
	})
}
