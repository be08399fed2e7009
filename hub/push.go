package hub

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"syscall"

	"github.com/holdfast-edge/holdfast/hub/store"
	"github.com/holdfast-edge/holdfast/link/wire"
	"github.com/holdfast-edge/holdfast/release"
)

// missingMax bounds the objects that one POST /v1/missing may ask for.
const missingMax = 8192

// putRelease takes a bundle. Nothing of its body is kept before the signature of
// the tag, which opens it, was found good.
func (h *Hub) putRelease(w http.ResponseWriter, r *http.Request) {
	n, err := strconv.ParseUint(r.PathValue("n"), 10, 64)
	if err != nil {
		wire.Refuse(w, http.StatusBadRequest, "want /v1/releases/NUMBER")
		return
	}
	body := bufio.NewReaderSize(http.MaxBytesReader(w, r.Body, h.cfg.BundleMax), bundleHeadMax)
	next, err := h.receive(r, body, n)
	if err != nil && !errors.Is(err, errSame) {
		status := pushStatus(err)
		h.metrics.releases.WithLabelValues("push", strconv.Itoa(status)).Inc()
		h.log.Warn("release refused", "release", n, "from", r.RemoteAddr, "err", err)
		w.Header().Set("Connection", "close") // the rest of the bundle is not worth reading
		wire.Write(w, status, refusalOf(err))
		return
	}
	status := http.StatusCreated
	if err != nil {
		status = http.StatusOK
	}
	h.metrics.releases.WithLabelValues("push", strconv.Itoa(status)).Inc()
	reply(w, r, status, next)
}

// receive reads and judges one bundle.
func (h *Hub) receive(r *http.Request, body *bufio.Reader, n uint64) (*wire.Head, error) {
	raw, further, err := peekBundle(body)
	if err != nil {
		return nil, err
	}
	t, err := h.judgeTag(raw, further)
	switch {
	case err != nil && !errors.Is(err, errSame):
		return nil, err
	case t.Payload.N != n:
		return nil, fmt.Errorf("take a release as number %d: %w: its tag says %d", n, release.ErrGrammar, t.Payload.N)
	case err != nil:
		return headOf(t), err
	}
	select {
	case h.spooling <- struct{}{}:
		defer func() { <-h.spooling }()
	default:
		return nil, errBusy
	}
	trustBody(r)
	s, err := h.newSpool()
	if err != nil {
		return nil, err
	}
	defer s.close()
	limits := release.DefaultLimits()
	limits.Bundle = h.cfg.BundleMax
	if raw, further, err = release.DecodeBundle(body, limits, s.add); err != nil {
		return nil, err
	}
	_, err = h.take(r.Context(), raw, further, s, "push")
	if err != nil && !errors.Is(err, errSame) {
		return nil, err
	}
	return headOf(t), err
}

func headOf(t *release.Tag) *wire.Head {
	return &wire.Head{N: t.Payload.N, Digest: t.Digest().String(), Time: t.Payload.Time}
}

var errBusy = errors.New("the hub takes other releases in just now: try again in a moment")

// pushStatus says by whose fault a release was not taken.
func pushStatus(err error) int {
	var conflict *store.ConflictError
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &conflict), errors.Is(err, release.ErrFork), errors.Is(err, release.ErrOld):
		return http.StatusConflict
	case errors.As(err, &tooLarge), errors.Is(err, release.ErrOversized):
		return http.StatusRequestEntityTooLarge
	case errors.Is(err, release.ErrUnsigned), errors.Is(err, release.ErrSigner), errors.Is(err, release.ErrExpired),
		errors.Is(err, release.ErrThreshold), errors.Is(err, release.ErrFleet), errors.Is(err, release.ErrTrustStep):
		return http.StatusForbidden
	case errors.Is(err, errBusy):
		return http.StatusServiceUnavailable
	case errors.Is(err, syscall.ENOSPC), strings.Contains(err.Error(), "database or disk is full"):
		return http.StatusInsufficientStorage
	}
	for _, e := range []error{release.ErrGrammar, release.ErrTruncated, release.ErrObjectMissing, release.ErrAltered, release.ErrContent, release.ErrName, release.ErrMode, release.ErrTime} {
		if errors.Is(err, e) {
			return http.StatusUnprocessableEntity
		}
	}
	return http.StatusInternalServerError
}

// refusalOf names the winner where there is one.
func refusalOf(err error) *wire.Refusal {
	r := &wire.Refusal{Reason: wire.Clean(err.Error())}
	var conflict *store.ConflictError
	if errors.As(err, &conflict) {
		r.Have = release.Digest(conflict.Head.Payload).String()
	}
	return r
}

// The head of a bundle, as release.EncodeBundle writes it: a line, the tag, a list
// of further signatures; byte strings and lists are preceded by their length.
const (
	bundleMagic   = "holdfast-bundle 1\n"
	bundleHeadMax = 256 << 10 // a tag of 64 KiB and 32 signatures of 4 KiB, and some
)

// peekBundle reads the tag and the signatures that open a bundle and leaves the
// reader where it is. DecodeBundle has the last word on the form.
func peekBundle(r *bufio.Reader) (tag []byte, further [][]byte, err error) {
	limits := release.DefaultLimits()
	p := peeker{r: r}
	if magic := p.take(len(bundleMagic)); p.err == nil && string(magic) != bundleMagic {
		return nil, nil, fmt.Errorf("read bundle: %w: it does not begin with %q", release.ErrGrammar, bundleMagic)
	}
	tag = p.take(p.number(limits.Tag))
	for range p.number(limits.Signatures) {
		further = append(further, p.take(p.number(limits.Signature)))
		if p.err != nil {
			break
		}
	}
	if p.err != nil {
		return nil, nil, fmt.Errorf("read bundle: %w", p.err)
	}
	return tag, further, nil
}

type peeker struct {
	r   *bufio.Reader
	at  int
	err error
}

func (p *peeker) take(n int) []byte {
	if p.err != nil {
		return nil
	}
	b, err := p.r.Peek(p.at + n)
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = fmt.Errorf("%w: within its head", release.ErrTruncated)
		}
		p.err = err
		return nil
	}
	out := append([]byte(nil), b[p.at:]...)
	p.at += n
	return out
}

func (p *peeker) number(limit int) int {
	b := p.take(4)
	if p.err != nil {
		return 0
	}
	n := binary.BigEndian.Uint32(b)
	if uint64(n) > uint64(limit) {
		p.err = fmt.Errorf("%w: %d in its head, at most %d", release.ErrOversized, n, limit)
		return 0
	}
	return int(n)
}

// missing answers which of the objects named are not here. A tree that is here is
// whole below, so a client asks from the root down and stops at what is known.
func (h *Hub) missing(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(io.LimitReader(r.Body, 32*missingMax+1))
	if err != nil {
		wire.Refuse(w, http.StatusBadRequest, "the list broke off")
		return
	}
	if len(body)%32 != 0 || len(body) > 32*missingMax {
		wire.Refuse(w, http.StatusRequestEntityTooLarge, fmt.Sprintf("want at most %d ids of 32 bytes each", missingMax))
		return
	}
	var ids []store.ID
	for ; len(body) > 0; body = body[32:] {
		ids = append(ids, store.ID(body[:32]))
	}
	select {
	case h.asking <- struct{}{}:
		defer func() { <-h.asking }()
	case <-r.Context().Done():
		return
	}
	absent, err := h.store.Missing(r.Context(), ids)
	if err != nil {
		h.log.Error("look for objects", "err", err)
		wire.Refuse(w, http.StatusInternalServerError, "the hub cannot read its store")
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	for _, id := range absent {
		if _, err := w.Write(id[:]); err != nil {
			return
		}
	}
}
