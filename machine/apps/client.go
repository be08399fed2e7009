package apps

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
)

// client is everything that speaks to the API server.
type client struct {
	dyn    dynamic.Interface
	meta   metadata.Interface
	raw    *rest.RESTClient // for discovery: client-go's own links every type that Kubernetes has
	writes atomic.Int64     // requests that are not GET

	mu    sync.Mutex
	kinds map[schema.GroupVersion]map[string]resource // what discovery said; a miss asks again
}

// resource is where the objects of a kind are.
type resource struct {
	schema.GroupVersionResource
	namespaced bool
}

var errNoKind = errors.New("the API server does not serve this kind")

func newClient(config *rest.Config) (*client, error) {
	c := &client{kinds: map[schema.GroupVersion]map[string]resource{}}
	config = rest.CopyConfig(config)
	config.QPS = -1 // the API server has priority and fairness; a second limit here only costs time
	config.UserAgent = "holdfast"
	config.WarningHandlerWithContext = rest.NoWarnings{} // a rescan lists deprecated kinds too, and nobody reads that
	config.Wrap(func(rt http.RoundTripper) http.RoundTripper {
		return roundTripper(func(req *http.Request) (*http.Response, error) {
			if req.Method != http.MethodGet && req.Method != http.MethodHead {
				c.writes.Add(1)
			}
			return rt.RoundTrip(req)
		})
	})
	hc, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("client for %s: %w", config.Host, err)
	}
	if c.dyn, err = dynamic.NewForConfigAndClient(config, hc); err != nil {
		return nil, fmt.Errorf("client for %s: %w", config.Host, err)
	}
	if c.meta, err = metadata.NewForConfigAndClient(metadata.ConfigFor(config), hc); err != nil {
		return nil, fmt.Errorf("client for %s: %w", config.Host, err)
	}
	plain := rest.CopyConfig(config)
	plain.GroupVersion, plain.NegotiatedSerializer = &schema.GroupVersion{}, serializer.NewCodecFactory(runtime.NewScheme()).WithoutConversion()
	if c.raw, err = rest.UnversionedRESTClientForConfigAndClient(plain, hc); err != nil {
		return nil, fmt.Errorf("client for %s: %w", config.Host, err)
	}
	return c, nil
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// find says where a kind is; errNoKind when the server does not serve it now. Only one API group version is asked for at a time:
// the whole of discovery would be some hundred kilobytes for the three or four groups that apps use.
func (c *client) find(ctx context.Context, r Ref) (resource, error) {
	gv, err := schema.ParseGroupVersion(r.APIVersion)
	if err != nil {
		return resource{}, fmt.Errorf("%s: %w", r, err)
	}
	c.mu.Lock()
	found, ok := c.kinds[gv][r.Kind]
	c.mu.Unlock()
	if ok {
		return found, nil
	}
	list, err := c.resources(ctx, gv)
	if apierrors.IsNotFound(err) {
		return resource{}, fmt.Errorf("%s (%s): %w", r, r.APIVersion, errNoKind)
	}
	if err != nil {
		return resource{}, fmt.Errorf("ask for the kinds of %s: %w", r.APIVersion, err)
	}
	kinds := map[string]resource{}
	for _, a := range list.APIResources {
		if !strings.Contains(a.Name, "/") {
			kinds[a.Kind] = resource{gv.WithResource(a.Name), a.Namespaced}
		}
	}
	c.mu.Lock()
	c.kinds[gv] = kinds
	c.mu.Unlock()
	if found, ok = kinds[r.Kind]; !ok {
		return resource{}, fmt.Errorf("%s (%s): %w", r, r.APIVersion, errNoKind)
	}
	return found, nil
}

// discover reads one document of discovery.
func (c *client) discover(ctx context.Context, path string, into any) error {
	data, err := c.raw.Get().AbsPath(path).SetHeader("Accept", "application/json").Do(ctx).Raw()
	if err != nil {
		return err
	}
	return json.Unmarshal(data, into)
}

// resources are what the server serves of one group version.
func (c *client) resources(ctx context.Context, gv schema.GroupVersion) (list metav1.APIResourceList, err error) {
	path := "/apis/" + gv.String()
	if gv.Group == "" {
		path = "/api/" + gv.Version
	}
	return list, c.discover(ctx, path, &list)
}

// forget drops what is known of a group version, since the server has just shown that it is not so any more.
func (c *client) forget(r Ref) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.kinds, r.gvk().GroupVersion())
}

// namedResource is a resource with the kind that its objects have.
type namedResource struct {
	resource
	kind string
}

// listable returns every resource that can be listed, each once, under the version
// of its API that the server prefers, or else the first that has it; namespaced ones
// only when told. What cannot be discovered is an error: whoever asks wants to know
// that there is nothing more.
func (c *client) listable(ctx context.Context, namespaced bool) ([]namedResource, error) {
	var groups metav1.APIGroupList
	if err := c.discover(ctx, "/apis", &groups); err != nil {
		return nil, fmt.Errorf("discover all kinds: %w", err)
	}
	versions := []schema.GroupVersion{{Version: "v1"}}
	for _, g := range groups.Groups {
		versions = append(versions, schema.GroupVersion{Group: g.Name, Version: g.PreferredVersion.Version})
		for _, v := range g.Versions {
			if v.Version != g.PreferredVersion.Version {
				versions = append(versions, schema.GroupVersion{Group: g.Name, Version: v.Version})
			}
		}
	}
	var out []namedResource
	known := map[schema.GroupResource]bool{}
	for _, gv := range versions {
		list, err := c.resources(ctx, gv)
		if err != nil {
			return nil, fmt.Errorf("discover all kinds: %s: %w", gv, err)
		}
		for _, a := range list.APIResources {
			at := gv.WithResource(a.Name)
			if strings.Contains(a.Name, "/") || known[at.GroupResource()] {
				continue
			}
			known[at.GroupResource()] = true
			if slices.Contains(a.Verbs, "list") && (a.Namespaced || !namespaced) {
				out = append(out, namedResource{resource{at, a.Namespaced}, a.Kind})
			}
		}
	}
	return out, nil
}

// list calls f with the metadata of every object, in pages.
func (c *client) list(ctx context.Context, r resource, namespace, selector string, f func(*metav1.PartialObjectMetadata)) error {
	opts := metav1.ListOptions{LabelSelector: selector, Limit: 500}
	for {
		page, err := c.meta.Resource(r.GroupVersionResource).Namespace(namespace).List(ctx, opts)
		if err != nil {
			return err
		}
		for i := range page.Items {
			f(&page.Items[i])
		}
		if opts.Continue = page.Continue; opts.Continue == "" {
			return nil
		}
	}
}

// get returns an object's metadata, nil when it is not there.
func (c *client) get(ctx context.Context, r resource, namespace, name string) (*metav1.PartialObjectMetadata, error) {
	if !r.namespaced {
		namespace = ""
	}
	m, err := c.meta.Resource(r.GroupVersionResource).Namespace(namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	return m, err
}

// remove deletes exactly the object that was looked at.
func (c *client) remove(ctx context.Context, r resource, m *metav1.PartialObjectMetadata) error {
	background := metav1.DeletePropagationBackground
	err := c.meta.Resource(r.GroupVersionResource).Namespace(m.Namespace).Delete(ctx, m.Name, metav1.DeleteOptions{
		PropagationPolicy: &background, Preconditions: &metav1.Preconditions{UID: &m.UID},
	})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// transient says whether err may end by itself: no connection, an overloaded server, a webhook whose pods are starting, a namespace that is coming or going.
func transient(err error) bool {
	switch {
	case err == nil, errors.Is(err, context.Canceled):
		return false
	case apierrors.IsServerTimeout(err), apierrors.IsTimeout(err), apierrors.IsTooManyRequests(err), apierrors.IsServiceUnavailable(err),
		apierrors.IsInternalError(err), apierrors.IsUnexpectedServerError(err),
		apierrors.HasStatusCause(err, "NamespaceTerminating"):
		return true
	case apierrors.IsConflict(err):
		return !apierrors.HasStatusCause(err, metav1.CauseTypeFieldManagerConflict)
	case apierrors.IsNotFound(err): // of the namespace, when an object is applied
		return true
	case utilnet.IsConnectionRefused(err), utilnet.IsConnectionReset(err), utilnet.IsProbableEOF(err), utilnet.IsTimeout(err), utilnet.IsHTTP2ConnectionLost(err),
		errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, context.DeadlineExceeded):
		return true
	}
	return false
}

// immutable says whether the API server refused because a field cannot be changed. It has no code for that, only words.
func immutable(err error) bool {
	if !apierrors.IsInvalid(err) && !apierrors.IsForbidden(err) {
		return false
	}
	text := err.Error()
	for _, words := range []string{
		"field is immutable", "is immutable after creation", "may not change once set", "cannot change roleRef",
		"updates to statefulset spec for fields other than", "pod updates may not change fields other than", "updates to parameters are forbidden",
	} {
		if strings.Contains(text, words) {
			return true
		}
	}
	return false
}

// sleep waits; false when ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// again runs do until it succeeds, fails for good, or limit is over; the last error is returned.
func again(ctx context.Context, limit time.Duration, passes func(error) bool, do func() error) error {
	until := time.Now().Add(limit)
	for pause := 20 * time.Millisecond; ; pause = min(pause*3/2, time.Second) {
		err := do()
		if err == nil || !passes(err) || time.Now().Add(pause).After(until) || !sleep(ctx, pause) {
			return err
		}
	}
}
