package hub

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/holdfast-edge/holdfast/hub/registry"
	"github.com/holdfast-edge/holdfast/link/operator"
	"github.com/holdfast-edge/holdfast/link/wire"
)

// api is the HTTP service: see the package's comment for its calls.
func (h *Hub) api() http.Handler {
	mux := http.NewServeMux()
	read := func(f http.HandlerFunc) http.Handler { return operator.Require(operator.Read, f) }
	mux.HandleFunc("GET /healthz", h.healthz)
	mux.HandleFunc("GET /v1/release", h.getHead)
	mux.HandleFunc("PUT /v1/releases/{n}", h.putRelease)
	mux.HandleFunc("POST /v1/missing", h.missing)
	mux.Handle("GET /v1/status", read(h.getStatus))
	mux.Handle("GET /v1/quarantine", read(h.getQuarantine))
	mux.Handle("/v2/", h.guardImages(h.images))
	mux.Handle("GET /metrics", h.guardMetrics(promhttp.HandlerFor(h.metrics.registry, promhttp.HandlerOpts{})))
	return patient(h.authority.Handler(mux))
}

// healthz says that the process serves and can read its data.
func (h *Hub) healthz(w http.ResponseWriter, r *http.Request) {
	if _, err := h.store.Missing(r.Context(), make([][32]byte, 1)); err != nil {
		http.Error(w, "the store does not answer", http.StatusServiceUnavailable)
		return
	}
	io.WriteString(w, "ok\n")
}

func (h *Hub) getHead(w http.ResponseWriter, r *http.Request) {
	now := h.head()
	if now.tag == nil {
		wire.Refuse(w, http.StatusNotFound, "the hub has no release yet: push one with holdfast release, or name a Git remote")
		return
	}
	reply(w, r, http.StatusOK, headOf(now.tag))
}

// reply answers in the wire's shorter form to our own programs, which ask for no kind
// of content, and in plain JSON to all others.
func reply(w http.ResponseWriter, r *http.Request, status int, message any) {
	if r.Header.Get("Accept") == "" {
		wire.Write(w, status, message)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(message) // the client went away
}

// guardImages lets operators pull, and those push who may release or operate.
func (h *Hub) guardImages(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		grant, ok := operator.From(r.Context())
		pull := r.Method == http.MethodGet || r.Method == http.MethodHead
		switch {
		case !ok:
			registry.Fail(w, http.StatusUnauthorized, "UNAUTHORIZED", "no session is open for this client key: open one with role release or operate")
		case grant.Has(operator.Release) || grant.Allows(operator.Operate, nil) || pull && grant.Has(operator.Read):
			trustBody(r)
			next.ServeHTTP(w, r)
		default:
			registry.Fail(w, http.StatusForbidden, "DENIED", "pushing images takes the role release, or operate for the whole fleet")
		}
	})
}

func (h *Hub) guardMetrics(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		grant, ok := operator.From(r.Context())
		local := strings.HasPrefix(r.RemoteAddr, "127.") || strings.HasPrefix(r.RemoteAddr, "[::1]")
		if !h.cfg.MetricsOpen && !local && !(ok && grant.Has(operator.Read)) {
			wire.Refuse(w, http.StatusForbidden, "metrics are for this host and for role read, unless the hub is told otherwise")
			return
		}
		next.ServeHTTP(w, r)
	})
}

const (
	// stallTime is how long a body, either way, may make no progress.
	stallTime = time.Minute
	// strangersBodyTime bounds a body in all until its sender has shown that he may.
	strangersBodyTime = 2 * time.Minute
	// longBodyTime bounds it after that.
	longBodyTime = 6 * time.Hour
)

// patient bounds stalls and not lengths: an image may take an hour over a bad
// link, a client that stands still may not.
func patient(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctl := http.NewResponseController(w)
		_ = ctl.SetWriteDeadline(time.Time{})
		if r.Body != http.NoBody {
			r.Body = &patientBody{r.Body, ctl, time.Now().Add(strangersBodyTime)}
		}
		next.ServeHTTP(&patientWriter{w, ctl}, r)
	})
}

type patientBody struct {
	io.ReadCloser
	ctl   *http.ResponseController
	until time.Time
}

// trustBody lets the body of a request take its time: who sends it has shown that he may.
func trustBody(r *http.Request) {
	if b, ok := r.Body.(*patientBody); ok {
		b.until = time.Now().Add(longBodyTime)
	}
}

func (b *patientBody) Read(p []byte) (int, error) {
	due := time.Now().Add(stallTime)
	if due.After(b.until) {
		due = b.until
	}
	_ = b.ctl.SetReadDeadline(due)
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		_ = b.ctl.SetReadDeadline(time.Time{}) // net/http goes on listening for the client's end
	}
	return n, err
}

type patientWriter struct {
	http.ResponseWriter
	ctl *http.ResponseController
}

func (w *patientWriter) WriteHeader(status int) {
	_ = w.ctl.SetWriteDeadline(time.Now().Add(stallTime))
	w.ResponseWriter.WriteHeader(status)
}

func (w *patientWriter) Write(p []byte) (int, error) {
	_ = w.ctl.SetWriteDeadline(time.Now().Add(stallTime))
	return w.ResponseWriter.Write(p)
}

func (w *patientWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
