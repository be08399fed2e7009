package machine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"runtime"
	"sync"
	"time"

	"github.com/holdfast-edge/holdfast/internal/version"
	"github.com/holdfast-edge/holdfast/link"
	"github.com/holdfast-edge/holdfast/link/wire"
	"github.com/holdfast-edge/holdfast/machine/faults"
	"github.com/holdfast-edge/holdfast/release"
)

// reportAfter is how long changes are gathered before they are sent.
const reportAfter = 500 * time.Millisecond

// sliceHeader names a slice that is to be fetched on bulk.
const sliceHeader = "Holdfast-Slice"

// callTimeout bounds one call on the control session.
const callTimeout = time.Minute

// largestOnControl bounds the body of a slice on the control session, packed: a
// larger one is fetched on bulk. A hub may hold 32 streams at once.
const largestOnControl = 128 << 10

// uplink is the machine's side of the link.
type uplink struct {
	*Machine
	control *http.Client
	bulk    *http.Client
	kick    chan struct{}                                                          // a new session may need the whole report
	deliver func(ctx context.Context, base *wire.Report, report wire.Report) error // send; tests put another in

	judging  chan struct{} // one token: one slice is unpacked and judged at a time
	fetching chan struct{} // one token: one large slice is fetched at a time,
	queued   chan struct{} // and one more may wait for that

	mu     sync.Mutex   // guards what follows
	listed bool         // the hub takes our reports; a stranger's it does not
	sent   *wire.Report // the last that the hub has taken; nil: it needs the whole
}

func (m *Machine) bootUplink(ctx context.Context) error {
	u := &uplink{Machine: m, kick: make(chan struct{}, 1), judging: make(chan struct{}, 1), fetching: make(chan struct{}, 1), queued: make(chan struct{}, 2)}
	u.deliver = u.send
	m.keeper = link.NewKeeper(link.KeeperConfig{
		Identity: m.identity,
		Hubs:     m.hubs,
		Proxy:    func() string { return m.network().Proxy },
		Greet:    u.greet,
		Serve:    u.serve,
		State:    u.state,
		Log:      m.log,
	})
	u.control = link.Client(m.keeper.OpenControl, 0)
	u.bulk = link.Client(m.keeper.OpenBulk, 10*time.Second)
	m.group.Go(func() error { return ended(ctx, m.keeper.Run(ctx)) })
	m.group.Go(func() error { return u.reports(ctx) })
	m.group.Go(func() error { m.redials(ctx); return nil })
	return nil
}

// redials dials at once when the network is another: to wait is for a hub that is away.
func (m *Machine) redials(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.config.Rerouted:
			m.keeper.Redial()
		}
	}
}

// ended drops the error of a worker that ended because it was told to.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// hubs lists where to dial, by what is trusted now. Hints change addresses, never keys.
func (m *Machine) hubs() []link.Hub {
	trust := m.memory.currentTrust()
	if trust == nil {
		// The trust that the anchor names is lost with the disk, and only a slice
		// brings it back: the seed's hubs may carry one, since it proves itself.
		_, trust, _ = m.seed.Anchor()
	}
	var pins []link.Pin
	if trust != nil {
		for _, h := range trust.Hubs {
			if pin, err := link.ParsePin(h.Pin); err == nil {
				pins = append(pins, pin)
			}
		}
	}
	addresses := m.network().Hubs
	if len(addresses) == 0 {
		addresses = hubAddresses(m.seed.Hubs)
	}
	var hubs []link.Hub
	for _, a := range addresses {
		hubs = append(hubs, link.Hub{Address: a, Pins: pins})
	}
	return hubs
}

// hubAddresses are host:port of URLs.
func hubAddresses(urls []string) []string {
	var list []string
	for _, s := range urls {
		u, err := url.Parse(s)
		if err != nil || u.Host == "" {
			continue
		}
		port := u.Port()
		if port == "" {
			port = "443"
		}
		list = append(list, net.JoinHostPort(u.Hostname(), port))
	}
	return list
}

func (u *uplink) state(s link.State) {
	switch {
	case s.Connected:
		u.console.show("hub", "connected to "+s.Hub)
		u.faults.Clear(faults.NoRoute)
		u.faults.Clear(faults.NoNames)
		u.faults.Clear(faults.HubKey)
	case s.Err != nil:
		u.console.show("hub", "not connected: "+wire.Clean(s.Err.Error()))
		var unnamed *net.DNSError
		switch {
		case errors.Is(s.Err, link.ErrPin):
			u.faults.Set(faults.New(faults.HubKey, s.Hub))
		case errors.As(s.Err, &unnamed):
			u.faults.Set(faults.New(faults.NoNames, s.Err))
		default:
			u.faults.Clear(faults.NoNames)
			u.faults.Set(faults.New(faults.NoRoute, s.Hub, s.Err))
		}
	}
	if u.config.LinkState != nil {
		u.config.LinkState(s)
	}
}

// greet says hello on a new control session.
func (u *uplink) greet(ctx context.Context, s link.Session) error {
	client := link.Client(s.Open, time.Second)
	hello := wire.Hello{
		Capability: wire.Capability, Fleet: u.seed.FleetID, Machine: u.identity.ID(),
		Version: version.Version, Architecture: runtime.GOARCH, Locked: u.limits != nil && u.limits.Disk == nil,
	}
	if !u.config.Hosted {
		hello.Addresses = lanAddresses()
	}
	if accepted, _ := u.memory.now(); accepted != nil {
		hello.N, hello.Slice = accepted.Tag.Payload.N, accepted.Digest.String()
	}
	report, _ := u.reporter.now()
	hello.Seq = report.Seq
	reply, err := u.hello(ctx, client, hello)
	if err == nil && reply.Introduce {
		if hello.Introduction, err = u.introduction(); err != nil {
			return err
		}
		reply, err = u.hello(ctx, client, hello)
	}
	if err != nil {
		return err
	}
	u.mu.Lock()
	u.sent, u.listed = nil, reply.Listed
	if reply.Reported == report.Seq {
		u.sent = &report
	}
	u.mu.Unlock()
	select {
	case u.kick <- struct{}{}:
	default:
	}
	if u.memory.number() == 0 {
		u.console.show("release", "none yet: waiting to be adopted with the code above")
	}
	return nil
}

func (u *uplink) hello(ctx context.Context, client *http.Client, hello wire.Hello) (*wire.HelloReply, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var reply wire.HelloReply
	if err := wire.Call(ctx, client, http.MethodPost, "http://"+link.Host+wire.PathHello, hello, &reply); err != nil {
		return nil, fmt.Errorf("say hello: %w", err)
	}
	return &reply, nil
}

// serve answers the streams that the hub opens.
func (u *uplink) serve(ctx context.Context, s link.Session) {
	if s.Class() == link.Relay {
		u.relayStreams(ctx, s)
		return
	}
	mux := http.NewServeMux()
	mux.HandleFunc("PUT "+wire.PathSlice, u.takeSlice)
	mux.HandleFunc("POST "+wire.PathRelay, u.openRelay)
	if err := link.ServeHTTP(ctx, s, mux); err != nil && ctx.Err() == nil {
		u.log.Debug("the session's streams ended", "err", err)
	}
}

// takeSlice judges a slice that the hub hands over. What is refused changes
// nothing; the reason goes back and stands on the console. A slice that is too
// large for the control session is only named, and fetched on bulk.
func (u *uplink) takeSlice(w http.ResponseWriter, r *http.Request) {
	if named := r.Header.Get(sliceHeader); named != "" {
		w.WriteHeader(http.StatusAccepted)
		go u.fetchSlice(context.WithoutCancel(r.Context()), named)
		return
	}
	// A hub that drips holds one of its own streams, and not for long.
	stream := http.NewResponseController(w)
	_ = stream.SetReadDeadline(time.Now().Add(callTimeout))
	body, err := readBounded(r.Body, largestOnControl)
	_ = stream.SetReadDeadline(time.Time{})
	if err != nil {
		wire.Refuse(w, http.StatusRequestEntityTooLarge, err.Error())
		return
	}
	dictionary, held, ok := u.dictionary(r.Header.Get(wire.DictionaryHeader))
	if !ok {
		wire.Write(w, http.StatusConflict, wire.Refusal{Reason: "the dictionary is not here", Have: held})
		return
	}
	err = u.judgeSlice(body, dictionary)
	switch {
	case errors.Is(err, errUnsaved), errors.Is(err, errLocked): // our fault, and worth a second try
		wire.Refuse(w, http.StatusServiceUnavailable, err.Error())
	case err != nil:
		wire.Refuse(w, http.StatusUnprocessableEntity, err.Error())
	default:
		w.WriteHeader(http.StatusNoContent)
	}
}

func readBounded(r io.Reader, limit int) ([]byte, error) {
	body, err := io.ReadAll(io.LimitReader(r, int64(limit)+1))
	if err == nil && len(body) > limit {
		err = fmt.Errorf("%w: a slice has at most %d bytes here", release.ErrOversized, limit)
	}
	return body, err
}

// dictionary is the slice called named, if the machine holds it; held is the
// digest of the one that it holds. No name is no dictionary.
func (u *uplink) dictionary(named string) (bytes []byte, held string, ok bool) {
	accepted, _ := u.memory.now()
	if accepted != nil {
		held = accepted.Digest.String()
	}
	switch {
	case named == "":
		return nil, held, true
	case held != "" && wire.DictionaryName(named) == wire.DictionaryName(held):
		return accepted.Encoded, held, true
	}
	return nil, held, false
}

// judgeSlice verifies and remembers a slice, and sets to work what follows.
func (u *uplink) judgeSlice(body, dictionary []byte) error {
	u.judging <- struct{}{}
	defer func() { <-u.judging }()
	encoded, err := release.Decompress(body, dictionary, release.DefaultLimits().Slice)
	if err == nil && u.limits != nil {
		if err = u.readRule(encoded); err == nil {
			u.fault(nil, faults.ReleaseRefused)
			return nil
		}
	}
	if err == nil {
		var t *taken
		if t, err = u.memory.take(encoded); err == nil {
			u.reporter.update(func(r *wire.Report) { r.Slice = "" }) // the hub knows what it just handed over
			u.arrived(t)
			return nil
		}
	}
	u.log.Warn("a slice is refused", "err", err)
	switch {
	case errors.Is(err, errLocked): // said already
	case errors.Is(err, errUnsaved):
		u.fault(err, faults.UnsavedReleases)
	default:
		u.fault(err, faults.ReleaseRefused)
	}
	return err
}

// fetchSlice brings a large slice on the bulk session. What goes wrong is in the
// log and the report; the hub offers again when the machine says hello.
func (u *uplink) fetchSlice(ctx context.Context, named string) {
	select {
	case u.queued <- struct{}{}:
		defer func() { <-u.queued }()
	default:
		return // one waits already, and brings what is newest when its turn comes
	}
	u.fetching <- struct{}{}
	defer func() { <-u.fetching }()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	if err := u.fetchSliceOnce(ctx); err != nil {
		u.log.Warn("fetch a slice", "digest", short(named), "err", err)
	}
}

func (u *uplink) fetchSliceOnce(ctx context.Context) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+link.Host+wire.PathSlice, nil)
	if err != nil {
		return err
	}
	if _, held, _ := u.dictionary(""); held != "" {
		request.Header.Set(wire.DictionaryHeader, held)
	}
	response, err := u.bulk.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return wire.Answer(response, nil)
	}
	body, err := readBounded(response.Body, release.DefaultLimits().Slice)
	if err != nil {
		return err
	}
	dictionary, _, ok := u.dictionary(response.Header.Get(wire.DictionaryHeader))
	if !ok {
		return errors.New("the hub used a dictionary that is not here any more")
	}
	if err := u.judgeSlice(body, dictionary); err != nil {
		return err
	}
	_, held, _ := u.dictionary("")
	u.reporter.update(func(r *wire.Report) { r.Slice = held })
	return nil
}

// arrived starts what follows from a slice that was accepted.
func (m *Machine) arrived(t *taken) {
	p := t.Tag.Payload
	m.log.Info("took a release", "n", p.N, "site", t.SiteDir, "signer", t.Signer.Name, "again", t.Same)
	m.showRelease(t)
	m.fault(nil, faults.ReleaseRefused)
	m.fault(nil, faults.UnsavedReleases)
	m.tellTrust()
	m.door.authority.Recheck() // whom this release revokes is cut now
	m.content.wake()
}

func (m *Machine) showRelease(t *taken) {
	p := t.Tag.Payload
	m.console.show("release", fmt.Sprintf("%d of %s, signed by %s", p.N, p.Time.UTC().Format(time.DateTime), t.Signer.Name))
}

// openRelay has a relay session open, so that the hub can open streams on it.
func (u *uplink) openRelay(w http.ResponseWriter, r *http.Request) {
	if _, err := u.keeper.Relay(r.Context()); err != nil {
		wire.Refuse(w, http.StatusBadGateway, err.Error())
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// relayStreams connects each stream of a relay session with what it is for.
func (u *uplink) relayStreams(ctx context.Context, s link.Session) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		stream, err := s.Accept()
		if err != nil {
			return
		}
		wg.Go(func() { u.relayStream(ctx, stream) })
	}
}

func (u *uplink) relayStream(ctx context.Context, stream net.Conn) {
	target, err := link.AcceptRelay(stream)
	if err != nil {
		stream.Close()
		return
	}
	switch target {
	case link.KubeTarget:
		u.spliceKube(ctx, stream)
	case link.MachineTarget:
		u.serveDoor(ctx, stream)
	default:
		stream.Close()
	}
}

// reports sends what changed, gathered, for as long as the machine runs.
func (u *uplink) reports(ctx context.Context) error {
	for {
		report, changed := u.reporter.now()
		u.mu.Lock()
		sent, listed := u.sent, u.listed
		u.mu.Unlock()
		if listed && (sent == nil || sent.Seq != report.Seq) {
			if err := u.deliver(ctx, sent, report); err != nil {
				u.log.Debug("a report waits", "err", err)
				if !pause(ctx, 2*time.Second) {
					return nil
				}
				continue
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-u.kick:
			continue
		case <-changed:
		}
		if !pause(ctx, reportAfter) {
			return nil
		}
	}
}

func (u *uplink) send(ctx context.Context, base *wire.Report, report wire.Report) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if _, err := u.keeper.Control(ctx); err != nil {
		return err
	}
	update := wire.Diff(base, report)
	err := wire.Call(ctx, u.control, http.MethodPost, "http://"+link.Host+wire.PathReport, update, nil)
	if _, again := wire.AsRefusal(err, http.StatusConflict); again && base != nil {
		return u.send(ctx, nil, report)
	}
	if err != nil {
		return err
	}
	u.mu.Lock()
	u.sent = &report
	u.mu.Unlock()
	return nil
}

func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}
