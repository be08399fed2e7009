// Package push brings a release to a hub: it asks which objects the hub lacks, from
// the root of the tree down, and sends a bundle of exactly those with the tag.
//
// Nothing here is trusted by the hub: the signature in the tag is the permission.
// The package leaves out who signs, and how the hub is reached.
package push

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"

	"github.com/holdfast-edge/holdfast/link/wire"
	"github.com/holdfast-edge/holdfast/release"
)

// batch is how many ids are asked for at once; the hub takes so many.
const batch = 8192

// Result is what became of a push.
type Result struct {
	Head  wire.Head // of the hub, if it is this release
	New   bool      // false: the hub had it already
	Sent  int64     // bytes of the bundle
	Count int       // objects in it
}

// Release brings the release that tag names, with its objects from src, to the hub
// at base ("https://host:port"), through client. When the hub says no, the error is a
// *wire.Refusal: 409 with the digest of the winner in Have when the number is taken.
func Release(ctx context.Context, client *http.Client, base string, src release.Source, tag []byte, further ...[]byte) (*Result, error) {
	t, err := release.ParseTag(tag)
	if err != nil {
		return nil, err
	}
	what := "push " + release.TagName(t.Payload.N)
	lacking, err := negotiate(ctx, client, base, src, t.Payload.TreeSHA256)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	res := &Result{Count: len(lacking)}
	// The bundle is made while it is sent; neither side holds it whole.
	r, w := io.Pipe()
	go func() {
		w.CloseWithError(release.EncodeBundle(&counter{w, &res.Sent}, tag, objects(src, lacking), further...))
	}()
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, fmt.Sprintf("%s/v1/releases/%d", base, t.Payload.N), r)
	if err != nil {
		r.Close()
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	resp, err := client.Do(req)
	r.Close()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	res.New = resp.StatusCode == http.StatusCreated
	if err := wire.Answer(resp, &res.Head); err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	return res, nil
}

type counter struct {
	w io.Writer
	n *int64
}

func (c *counter) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	*c.n += int64(n)
	return n, err
}

func objects(src release.Source, ids []release.ObjectID) iter.Seq2[release.Object, error] {
	return func(yield func(release.Object, error) bool) {
		for _, id := range ids {
			kind, data, err := src.Object(id)
			if !yield(release.Object{Kind: kind, Data: data}, err) || err != nil {
				return
			}
		}
	}
}

// negotiate walks the tree in breadth and leaves out what the hub has, with all below.
func negotiate(ctx context.Context, client *http.Client, base string, src release.Source, root release.ObjectID) ([]release.ObjectID, error) {
	var lacking []release.ObjectID
	seen := map[release.ObjectID]bool{root: true}
	for due := []release.ObjectID{root}; len(due) > 0; {
		n := min(len(due), batch)
		absent, err := ask(ctx, client, base, due[:n])
		if err != nil {
			return nil, err
		}
		due = due[n:]
		lacking = append(lacking, absent...)
		for _, id := range absent {
			kind, data, err := src.Object(id)
			if err != nil {
				return nil, err
			}
			if kind != release.KindTree {
				continue
			}
			entries, err := release.ParseTree(data)
			if err != nil {
				return nil, err
			}
			for _, e := range entries {
				if !seen[e.ID] {
					seen[e.ID] = true
					due = append(due, e.ID)
				}
			}
		}
	}
	return lacking, nil
}

func ask(ctx context.Context, client *http.Client, base string, ids []release.ObjectID) ([]release.ObjectID, error) {
	body := make([]byte, 0, 32*len(ids))
	asked := map[release.ObjectID]bool{}
	for _, id := range ids {
		body = append(body, id[:]...)
		asked[id] = true
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, base+"/v1/missing", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, wire.Answer(resp, nil)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, int64(len(body)+1)))
	if err != nil {
		return nil, err
	}
	if len(answer)%32 != 0 || len(answer) > len(body) {
		return nil, errBadAnswer
	}
	var absent []release.ObjectID
	for ; len(answer) > 0; answer = answer[32:] {
		id := release.ObjectID(answer[:32])
		if !asked[id] {
			return nil, errBadAnswer
		}
		delete(asked, id)
		absent = append(absent, id)
	}
	return absent, nil
}

var errBadAnswer = errors.New("the hub answers with ids that nobody asked for")
