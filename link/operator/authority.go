package operator

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/hiddeco/sshsig"
	"golang.org/x/crypto/ssh"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/link"
	"github.com/holdfast-edge/holdfast/link/wire"
)

// Path where sessions are opened (POST), looked at (GET) and closed (DELETE).
const Path = "/v1/session"

// Refusals. Their words reach the operator.
var (
	ErrNoClientKey = errors.New("the connection shows no client key")
	ErrKeyKind     = errors.New("keys of this kind are not accepted")
	ErrUnknown     = errors.New("this key is no operator's")
	ErrExpired     = errors.New("this key is outside its dates")
	ErrRole        = errors.New("this key does not hold the role here")
	ErrSignature   = errors.New("the signature is refused")
	ErrFull        = errors.New("too many sessions are open")
	ErrEnded       = errors.New("the session has ended")
)

// Config says for whom an Authority judges.
type Config struct {
	Fleet  fleet.ID
	Target link.Pin // pin of the identity key that serves
	// Trust is the current trust, asked at every request; a value is not changed
	// once returned. Nil refuses everybody.
	Trust func() *fleet.Trust
	// Time judges the dates of keys. On a machine that is the floor of signed
	// time, so that no lying clock revives a key; on a hub the clock. Nil: the clock.
	Time func() time.Time
	// Scope says whether a selector of trust.yaml chooses the site that is served;
	// keys of other sites are refused. Nil, on a hub: they are let in, and
	// Grant.Allows judges what is asked for.
	Scope func(selector string) bool

	Lifetime time.Duration // of a session, by uptime; default 1 h
	Sessions int           // at most; default 256
	PerKey   int           // of one SSH key, the oldest goes; default 16
	Log      *slog.Logger  // nil: slog.Default
}

// Authority opens and judges sessions. It is safe for concurrent use.
type Authority struct {
	config Config
	verify chan struct{} // tokens: signatures that are verified at the same time

	mu    sync.Mutex // guards all below
	open  map[link.Pin]*session
	trust *fleet.Trust // that ring was made of
	ring  keyring
}

// session is a client key that is honoured, until its context ends.
type session struct {
	client      link.Pin
	fingerprint string
	roles       []string
	began       time.Time // monotonic
	ends        time.Time
	ctx         context.Context
	end         context.CancelCauseFunc
	timer       *time.Timer
}

// New makes an Authority.
func New(config Config) *Authority {
	if config.Time == nil {
		config.Time = time.Now
	}
	if config.Lifetime == 0 {
		config.Lifetime = time.Hour
	}
	if config.Sessions == 0 {
		config.Sessions = 256
	}
	if config.PerKey == 0 {
		config.PerKey = 16
	}
	if config.Log == nil {
		config.Log = slog.Default()
	}
	return &Authority{config: config, verify: make(chan struct{}, 4), open: make(map[link.Pin]*session)}
}

// request opens a session; all that it is signed over besides the roles, the
// target takes from the connection.
type request struct {
	Roles     []string `json:"roles"`
	Signature []byte   `json:"signature"` // SSHSIG in wire format
}

const maxRequest = 8 << 10

// Info is what an operator is told of the session.
type Info struct {
	Name        string   `json:"name"`
	Person      string   `json:"person,omitempty"`
	Fingerprint string   `json:"fingerprint"`
	Roles       []string `json:"roles"`
	Seconds     int64    `json:"seconds"` // left
}

// Handler serves Path and passes other requests on, with a Grant in the context
// of those whose client key is honoured (From). Such a context ends, with the
// reason as cause, when the session does.
func (a *Authority) Handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == Path {
			a.serve(w, r)
			return
		}
		s, grant := a.find(r)
		if s == nil {
			next.ServeHTTP(w, r)
			return
		}
		ctx, cancel := context.WithCancelCause(context.WithValue(r.Context(), grantKey{}, grant))
		defer cancel(nil)
		stop := context.AfterFunc(s.ctx, func() { cancel(context.Cause(s.ctx)) })
		defer stop()
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}

// Require passes on requests whose session has a role, for whichever sites.
func Require(role string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		grant, ok := From(r.Context())
		switch {
		case !ok:
			wire.Refuse(w, http.StatusUnauthorized, "no session is open for this client key: open one with role "+role)
		case !grant.Has(role):
			wire.Refuse(w, http.StatusForbidden, fmt.Sprintf("the session of %s lacks the role %s", grant.Name, role))
		default:
			next.ServeHTTP(w, r)
		}
	})
}

func (a *Authority) serve(w http.ResponseWriter, r *http.Request) {
	switch r.Method {
	case http.MethodGet:
		if _, grant := a.find(r); grant != nil {
			wire.Write(w, http.StatusOK, grant.info())
			return
		}
		wire.Refuse(w, http.StatusUnauthorized, ErrEnded.Error())
	case http.MethodDelete:
		if s, _ := a.find(r); s != nil {
			a.drop(s, ErrEnded)
		}
		wire.Write(w, http.StatusNoContent, nil)
	case http.MethodPost:
		grant, err := a.admit(r)
		if err != nil {
			// A further attempt costs a stranger a further handshake.
			w.Header().Set("Connection", "close")
			a.config.Log.Info("operator refused", "remote", r.RemoteAddr, "err", err)
			wire.Refuse(w, status(err), err.Error())
			return
		}
		a.config.Log.Info("operator session opened", "operator", grant.Name, "fingerprint", grant.Fingerprint, "roles", grant.Roles)
		wire.Write(w, http.StatusOK, grant.info())
	default:
		wire.Refuse(w, http.StatusMethodNotAllowed, "want POST, GET or DELETE")
	}
}

func status(err error) int {
	switch {
	case errors.Is(err, wire.ErrOversized):
		return http.StatusRequestEntityTooLarge
	case errors.Is(err, wire.ErrMalformed):
		return http.StatusBadRequest
	case errors.Is(err, ErrFull):
		return http.StatusServiceUnavailable
	}
	return http.StatusForbidden
}

// admit judges a request for a session: first what costs nothing, then the
// signature.
func (a *Authority) admit(r *http.Request) (*Grant, error) {
	cs, client, err := clientOf(r)
	if err != nil {
		return nil, err
	}
	var q request
	if err := wire.Decode(r.Body, maxRequest, &q); err != nil {
		return nil, err
	}
	roles, err := canonical(q.Roles)
	if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrRole, err)
	}
	sig, err := sshsig.ParseSignature(q.Signature)
	if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrSignature, err)
	}
	if !allowed(sig.PublicKey) {
		return nil, fmt.Errorf("%w: %s", ErrKeyKind, sig.PublicKey.Type())
	}
	fingerprint := ssh.FingerprintSHA256(sig.PublicKey)
	entries, err := a.judge(fingerprint, roles)
	if err != nil {
		return nil, err
	}
	secret, err := exporter(cs)
	if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrSignature, err)
	}
	said := statement{a.config.Fleet, a.config.Target, client, roles, secret}
	if err := a.check(r.Context(), said, sig); err != nil {
		return nil, fmt.Errorf("%w: %v", ErrSignature, err)
	}
	s, err := a.enter(client, fingerprint, roles)
	if err != nil {
		return nil, err
	}
	return s.grant(entries), nil
}

// check verifies a signature when it is its turn.
func (a *Authority) check(ctx context.Context, said statement, sig *sshsig.Signature) error {
	select {
	case a.verify <- struct{}{}:
		defer func() { <-a.verify }()
		return said.verify(sig)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func clientOf(r *http.Request) (cs tls.ConnectionState, client link.Pin, err error) {
	cs, ok := link.ConnState(r.Context())
	if !ok && r.TLS != nil {
		cs = *r.TLS
	}
	client, err = link.PeerPin(cs)
	if err != nil {
		return cs, client, fmt.Errorf("%w: %v", ErrNoClientKey, err)
	}
	return cs, client, nil
}

// judge tells by the current trust whether a key holds all these roles here.
func (a *Authority) judge(fingerprint string, roles []string) ([]entry, error) {
	trust := a.config.Trust()
	if trust == nil {
		return nil, ErrUnknown
	}
	a.mu.Lock()
	if a.trust != trust {
		a.trust, a.ring = trust, newKeyring(trust)
	}
	entries := a.ring[fingerprint]
	a.mu.Unlock()
	if len(entries) == 0 {
		return nil, fmt.Errorf("%w: %s", ErrUnknown, fingerprint)
	}
	now := a.config.Time()
	entries = slices.DeleteFunc(slices.Clone(entries), func(e entry) bool { return !e.valid(now) })
	if len(entries) == 0 {
		return nil, fmt.Errorf("%w: %s", ErrExpired, fingerprint)
	}
	if a.config.Scope != nil {
		entries = slices.DeleteFunc(entries, func(e entry) bool { return !e.covers(a.config.Scope) })
	}
	for _, role := range roles {
		if !slices.ContainsFunc(entries, func(e entry) bool { return e.holds(role) }) {
			return nil, fmt.Errorf("%w: %s", ErrRole, role)
		}
	}
	return entries, nil
}

// enter makes room and remembers the client key.
func (a *Authority) enter(client link.Pin, fingerprint string, roles []string) (*session, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	old := a.open[client]
	if old != nil && old.fingerprint == fingerprint {
		return a.renew(old, roles), nil
	}
	if old != nil {
		a.end(old, ErrEnded)
	}
	var oldest *session
	count := 0
	for _, s := range a.open {
		if s.fingerprint != fingerprint {
			continue
		}
		count++
		if oldest == nil || s.began.Before(oldest.began) {
			oldest = s
		}
	}
	switch {
	case count >= a.config.PerKey:
		a.end(oldest, fmt.Errorf("%w: a newer one took its place", ErrEnded))
	case len(a.open) >= a.config.Sessions:
		return nil, ErrFull
	}
	s := &session{client: client, fingerprint: fingerprint, roles: roles}
	s.ctx, s.end = context.WithCancelCause(context.Background())
	a.start(s)
	return s, nil
}

// renew puts a session of the same person on the same computer in the place of one
// that is open: two programs of one person, such as status --watch and a release,
// have one client key, and neither may end what the other does. Both sets of roles
// were proved. It is called with mu held.
func (a *Authority) renew(old *session, roles []string) *session {
	old.timer.Stop()
	all := append(slices.Clone(old.roles), roles...)
	slices.Sort(all)
	s := &session{client: old.client, fingerprint: old.fingerprint, roles: slices.Compact(all), ctx: old.ctx, end: old.end}
	a.start(s)
	return s
}

// start lets a session's time run. It is called with mu held.
func (a *Authority) start(s *session) {
	s.began = time.Now()
	s.ends = s.began.Add(a.config.Lifetime)
	// Monotonic: setting the clock lengthens no session.
	s.timer = time.AfterFunc(a.config.Lifetime, func() {
		a.drop(s, fmt.Errorf("%w: open for %s", ErrEnded, a.config.Lifetime))
	})
	a.open[s.client] = s
}

func (s *session) grant(entries []entry) *Grant {
	g := &Grant{
		Fingerprint: s.fingerprint, Client: s.client, Roles: slices.Clone(s.roles),
		Ends: s.ends, entries: entries,
	}
	if len(entries) > 0 {
		g.Name, g.Person = entries[0].name, entries[0].person
	}
	return g
}

func (g *Grant) info() *Info {
	return &Info{
		Name: g.Name, Person: g.Person, Fingerprint: g.Fingerprint, Roles: g.Roles,
		Seconds: int64(time.Until(g.Ends).Seconds()),
	}
}

// find is the living session of a request's client key, judged anew; nil if
// there is none.
func (a *Authority) find(r *http.Request) (*session, *Grant) {
	_, client, err := clientOf(r)
	if err != nil {
		return nil, nil
	}
	a.mu.Lock()
	s := a.open[client]
	a.mu.Unlock()
	if s == nil {
		return nil, nil
	}
	entries, err := a.judge(s.fingerprint, s.roles)
	if err == nil && time.Since(s.began) >= a.config.Lifetime {
		err = ErrEnded // should the timer be late
	}
	if err != nil {
		a.drop(s, err)
		return nil, nil
	}
	return s, s.grant(entries)
}

// Recheck judges every open session anew and cuts those that no longer pass, in
// the middle of what they do. The owner calls it when trust or time changed.
func (a *Authority) Recheck() {
	a.mu.Lock()
	sessions := make([]*session, 0, len(a.open))
	for _, s := range a.open {
		sessions = append(sessions, s)
	}
	a.mu.Unlock()
	for _, s := range sessions {
		if _, err := a.judge(s.fingerprint, s.roles); err != nil {
			a.config.Log.Info("operator session cut", "fingerprint", s.fingerprint, "err", err)
			a.drop(s, err)
		}
	}
}

// Count is how many sessions are open.
func (a *Authority) Count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.open)
}

// Close ends all sessions.
func (a *Authority) Close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, s := range a.open {
		a.end(s, ErrEnded)
	}
}

func (a *Authority) drop(s *session, reason error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.end(s, reason)
}

// end is called with mu held.
func (a *Authority) end(s *session, reason error) {
	if a.open[s.client] == s {
		delete(a.open, s.client)
	}
	s.timer.Stop()
	s.end(reason)
}
