package machine

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/kube"
	"github.com/holdfast-edge/holdfast/link"
	"github.com/holdfast-edge/holdfast/link/operator"
	"github.com/holdfast-edge/holdfast/link/wire"
	"github.com/holdfast-edge/holdfast/machine/ports"
	"github.com/holdfast-edge/holdfast/machine/usage"
)

// Lifetimes of an operator's client certificate. What it may do ends earlier,
// with the release that takes the right away.
const (
	credentialLife = time.Hour
	credentialMost = 24 * time.Hour
)

// door is the machine's API: the same on the LAN and through the hub's relay.
// Strangers learn who the machine is; all else needs an operator's session.
type door struct {
	*Machine
	tls       *tls.Config
	conns     *link.Conns
	authority *operator.Authority
	server    *http.Server
}

func (m *Machine) bootDoor(ctx context.Context) error {
	boot, err := m.identity.Delegate()
	if err != nil {
		return err
	}
	d := &door{Machine: m, tls: link.ServerTLS(boot, string(link.API))}
	d.authority = operator.New(operator.Config{
		Fleet: m.seed.FleetID, Target: m.identity.Pin(),
		Trust: m.memory.currentTrust, Time: m.memory.floor, Scope: m.inScope, Log: m.log,
	})
	var lc net.ListenConfig
	listener, err := lc.Listen(ctx, "tcp", fmt.Sprintf(":%d", m.config.APIPort))
	if err != nil {
		return fmt.Errorf("listen for the machine's API: %w", err)
	}
	gate := link.NewGate(listener, link.GateConfig{})
	d.conns = link.NewConns(listener.Addr())
	server := link.APIServer(d.authority.Handler(d.routes()), m.log)
	d.server, m.door = server, d
	m.group.Go(func() error {
		if err := server.Serve(d.conns); !errors.Is(err, http.ErrServerClosed) {
			return ended(ctx, err)
		}
		return nil
	})
	m.group.Go(func() error { return d.accept(ctx, gate) })
	m.group.Go(func() error {
		<-ctx.Done()
		listener.Close()
		d.authority.Close()
		return server.Close()
	})
	return nil
}

// farewell takes no further call and lets those under way have their answers.
func (d *door) farewell(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	_ = d.server.Shutdown(ctx) // who is not done by then is cut
}

// inScope says whether a selector of trust.yaml chooses the machine's site.
func (m *Machine) inScope(selector string) bool {
	accepted, _ := m.memory.now()
	return accepted != nil && accepted.inScope(selector)
}

// accept takes connections from the LAN.
func (d *door) accept(ctx context.Context, l net.Listener) error {
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if errors.Is(err, net.ErrClosed) {
				return err
			}
			pause(ctx, 50*time.Millisecond) // out of descriptors: let some close
			continue
		}
		go d.greet(ctx, conn)
	}
}

// greet sends a connection where its ClientHello asks for: to the API server,
// whose TLS passes through unread, or to the machine's own API.
func (d *door) greet(ctx context.Context, conn net.Conn) {
	hello, conn, err := link.ClientHello(conn)
	if err != nil {
		return
	}
	if name, ok := link.ParseRelayName(hello.ServerName); ok && name.Target == link.KubeTarget {
		link.Admit(conn, false)
		d.spliceKube(ctx, conn)
		return
	}
	d.handshake(ctx, conn)
}

func (d *door) handshake(ctx context.Context, conn net.Conn) {
	secure, err := link.Handshake(ctx, conn, d.tls)
	if err != nil {
		d.log.Debug("a handshake failed", "err", err)
		return
	}
	link.Admit(conn, false)
	d.conns.Give(link.HTTPConn(secure))
}

// serveDoor serves the machine's API on a relayed stream.
func (m *Machine) serveDoor(ctx context.Context, stream net.Conn) { m.door.handshake(ctx, stream) }

// spliceKube passes a connection on to this machine's API server.
func (m *Machine) spliceKube(ctx context.Context, conn net.Conn) {
	accepted, _ := m.memory.now()
	if accepted == nil || accepted.Member.Role != kube.RoleControlPlane {
		conn.Close()
		return
	}
	var d net.Dialer
	dial, cancel := context.WithTimeout(ctx, 5*time.Second)
	server, err := d.DialContext(dial, "tcp", net.JoinHostPort(accepted.Member.SiteAddress.String(), fmt.Sprint(kube.APIPort)))
	cancel()
	if err != nil {
		conn.Close()
		return
	}
	link.Splice(ctx, conn, server)
}

func (d *door) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/identity", d.whoami)
	mux.Handle("GET /v1/status", operator.Require(operator.Read, http.HandlerFunc(d.status)))
	if d.limits != nil {
		(&lock{door: d}).routes(mux)
		return mux
	}
	mux.Handle("POST /v1/credential", operator.Require(operator.Read, http.HandlerFunc(d.credential)))
	return mux
}

// Identity is what anybody may know (GET /v1/identity).
type Identity struct {
	Machine fleet.MachineID `json:"machine"`
	Fleet   fleet.ID        `json:"fleet"`
	Site    string          `json:"site,omitempty"`
	N       uint64          `json:"n,omitempty"`
	Locked  bool            `json:"locked,omitempty"` // its disk is not open: it runs nothing
}

func (d *door) whoami(w http.ResponseWriter, _ *http.Request) {
	id := Identity{Machine: d.identity.ID(), Fleet: d.seed.FleetID, Locked: d.limits != nil}
	if accepted, _ := d.memory.now(); accepted != nil {
		id.Site, id.N = accepted.site(), accepted.Tag.Payload.N
	}
	wire.Write(w, http.StatusOK, id)
}

// Status is what a machine says to an operator of itself, by no other word than its own (GET /v1/status).
type Status struct {
	Report  wire.Report `json:"report"`
	Timings []Timing    `json:"timings"`
	Up      string      `json:"up"`
	// Memory is who uses it. Of a hosted machine the sums are its host's. Nil where the kernel does not tell.
	Memory *wire.Memory `json:"memory,omitempty"`
	// Listens is where it hears strangers, as far as its packet filter lets them come. Nil where the kernel does not tell.
	Listens []wire.Listener `json:"listens,omitempty"`
}

func (d *door) status(w http.ResponseWriter, _ *http.Request) {
	report, _ := d.reporter.now()
	s := Status{Report: report, Timings: d.reporter.phases(), Up: ago(d.started)}
	if m, err := usage.Read("/proc", "/sys"); err == nil {
		s.Memory = &m
	}
	if l, err := ports.Read("/proc", usage.Name); err == nil {
		s.Listens = l
	}
	wire.Write(w, http.StatusOK, s)
}

// CredentialRequest asks for a client certificate of the site's cluster
// (POST /v1/credential). Key is a PEM public key made by the caller.
type CredentialRequest struct {
	Key     string `json:"key"`
	Seconds int64  `json:"seconds,omitempty"` // default an hour, at most a day
}

// Credential is the answer: enough for a kubeconfig.
type Credential struct {
	Site        string    `json:"site"`
	User        string    `json:"user"`
	CA          string    `json:"ca"`          // PEM, of the cluster
	Certificate string    `json:"certificate"` // PEM
	ServerName  string    `json:"serverName"`  // for SNI and verification
	Expires     time.Time `json:"expires"`
}

func (d *door) credential(w http.ResponseWriter, r *http.Request) {
	var request CredentialRequest
	if wire.Read(w, r, &request) != nil {
		return
	}
	c, err := d.issue(r.Context(), request)
	if err != nil {
		wire.Refuse(w, http.StatusUnprocessableEntity, err.Error())
		return
	}
	wire.Write(w, http.StatusOK, c)
}

// issue makes a certificate for the session's person: a user, never a group.
func (d *door) issue(ctx context.Context, request CredentialRequest) (*Credential, error) {
	grant, ok := operator.From(ctx)
	if !ok {
		return nil, errors.New("no session")
	}
	block, _ := pem.Decode([]byte(request.Key))
	if block == nil {
		return nil, errors.New("key: want a PEM public key")
	}
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("key: %w", err)
	}
	life := credentialLife
	if request.Seconds > 0 {
		life = time.Duration(min(request.Seconds, int64(credentialMost/time.Second))) * time.Second // in this order: seconds may be many
	}
	_, applied := d.memory.now()
	if applied == nil {
		return nil, errors.New("the site has no cluster yet: wait until holdfast status says ok")
	}
	certificate, err := d.cluster.keys.SignOperator(key, grant.Fingerprint, life)
	if err != nil {
		return nil, err
	}
	ca, err := d.cluster.keys.Authority(kube.CACluster)
	if err != nil {
		return nil, err
	}
	d.log.Info("issued an operator's certificate", "person", grant.Name, "fingerprint", grant.Fingerprint, "life", life)
	return &Credential{
		Site: applied.site(), User: kube.OperatorUser(grant.Fingerprint), CA: string(ca), Certificate: string(certificate),
		ServerName: link.KubeName(applied.site(), d.seed.FleetID).String(), Expires: time.Now().Add(life),
	}, nil
}
