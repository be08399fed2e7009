package main

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/munnerz/goautoneg"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/kube-openapi/pkg/handler3"
	"k8s.io/kube-openapi/pkg/validation/spec"
)

// The OpenAPI documents of the built-in APIs are a third of what an API server
// holds at rest: as Go structures and as JSON besides, once per version, though
// they never change and hardly anybody asks. So, a while after the start, the
// finished JSON is compressed (some 20 MiB become less than one), and served from
// that, byte for byte and with the same entity tags; the structures go. What
// custom resources and aggregated APIs add is upstream's business and stays there.
const (
	openAPIv2 = "/openapi/v2"
	openAPIv3 = "/openapi/v3"
)

// A document is one OpenAPI document as it was served.
type document struct {
	packed   []byte
	etag     string
	modified time.Time
}

func pack(data []byte) ([]byte, error) {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(data); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return bytes.Clone(b.Bytes()), nil
}

func (d document) json() ([]byte, error) {
	r, err := gzip.NewReader(bytes.NewReader(d.packed))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

// packOpenAPI replaces what the built-in API server (the aggregator's delegate)
// answers. It changes nothing where anything looks other than expected.
func packOpenAPI(aggregator *genericapiserver.GenericAPIServer) error {
	s, ok := aggregator.NextDelegate().(*genericapiserver.GenericAPIServer)
	if !ok || s.OpenAPIVersionedService == nil || s.OpenAPIV3VersionedService == nil {
		return fmt.Errorf("the aggregator delegates to a %T without OpenAPI", aggregator.NextDelegate())
	}
	mux := s.Handler.NonGoRestfulMux
	v2, _, err := fetch(mux, openAPIv2)
	if err != nil {
		return err
	}
	discovery, index, err := fetch(mux, openAPIv3)
	if err != nil {
		return err
	}
	var list struct {
		Paths map[string]struct {
			URL string `json:"serverRelativeURL"`
		} `json:"paths"`
	}
	if err := json.Unmarshal(index, &list); err != nil {
		return fmt.Errorf("list of OpenAPI v3 documents: %w", err)
	}
	groups := map[string]document{}
	for name, p := range list.Paths {
		if groups[name], _, err = fetch(mux, p.URL); err != nil {
			return err
		}
	}

	mux.Unregister(openAPIv2)
	mux.Handle(openAPIv2, serveDocument(v2))
	mux.Unregister(openAPIv3)
	mux.Handle(openAPIv3, serveDocument(discovery))
	mux.HandlePrefix(openAPIv3+"/", serveGroups(groups))
	s.OpenAPIVersionedService.UpdateSpec(&spec.Swagger{})
	s.StaticOpenAPISpec, s.OpenAPIV3VersionedService = nil, nil
	return nil
}

// fetch asks a handler in this process for JSON.
func fetch(h http.Handler, path string) (document, []byte, error) {
	r, err := http.NewRequest(http.MethodGet, path, nil)
	if err != nil {
		return document{}, nil, err
	}
	r.Header.Set("Accept", "application/json")
	w := &answer{header: http.Header{}, code: http.StatusOK}
	h.ServeHTTP(w, r)
	body := w.body.Bytes()
	etag, err := strconv.Unquote(w.header.Get("Etag"))
	if w.code != http.StatusOK || err != nil || !json.Valid(body) {
		return document{}, nil, fmt.Errorf("GET %s: status %d, etag %q, %d bytes", path, w.code, etag, len(body))
	}
	packed, err := pack(body)
	return document{packed, etag, time.Now()}, body, err
}

// answer keeps what a handler writes.
type answer struct {
	header http.Header
	code   int
	body   bytes.Buffer
}

func (a *answer) Header() http.Header         { return a.header }
func (a *answer) WriteHeader(code int)        { a.code = code }
func (a *answer) Write(p []byte) (int, error) { return a.body.Write(p) }

// serveDocument serves JSON to the aggregator, the only one who gets here: it
// merges before it answers.
func serveDocument(d document) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Vary", "Accept")
		d.serve(w, r, "application/json", d.json)
	})
}

func (d document) serve(w http.ResponseWriter, r *http.Request, kind string, content func() ([]byte, error)) {
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Etag", strconv.Quote(d.etag))
	// Checked here too, so that the aggregator's question of every minute unpacks
	// nothing.
	if r.Header.Get("If-None-Match") == strconv.Quote(d.etag) {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	data, err := content()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	http.ServeContent(w, r, "", d.modified, bytes.NewReader(data))
}

const (
	protobuf    = "com.github.proto-openapi.spec.v3.v1.0+protobuf"
	protobufOld = "com.github.proto-openapi.spec.v3@v1.0+protobuf"
)

// serveGroups is handler3's HandleGroupVersion over packed documents.
func serveGroups(groups map[string]document) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name := strings.TrimPrefix(r.URL.Path, openAPIv3+"/")
		d, ok := groups[name]
		if !ok {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Vary", "Accept")
		if hash := r.URL.Query().Get("hash"); hash != "" {
			if hash != d.etag {
				u := url.URL{Path: path.Join(openAPIv3, name), RawQuery: url.Values{"hash": {d.etag}}.Encode()}
				http.Redirect(w, r, u.String(), http.StatusMovedPermanently)
				return
			}
			w.Header().Set("Cache-Control", "public, immutable")
			w.Header().Set("Expires", time.Now().AddDate(1, 0, 0).Format(time.RFC1123))
		}
		switch accepted(r) {
		case "json":
			d.serve(w, r, "application/json", d.json)
		case protobuf:
			d.serve(w, r, "application/"+protobuf, func() ([]byte, error) {
				data, err := d.json()
				if err != nil {
					return nil, err
				}
				return handler3.ToV3ProtoBinary(data)
			})
		default:
			w.WriteHeader(http.StatusNotAcceptable)
		}
	})
}

// accepted picks a form that the client takes; its order of preference wins.
func accepted(r *http.Request) string {
	accept := r.Header.Get("Accept")
	if accept == "" {
		accept = "*/*"
	}
	for _, c := range goautoneg.ParseAccept(accept) {
		switch {
		case c.Type != "application" && c.Type != "*":
		case c.SubType == "json" || c.SubType == "*":
			return "json"
		case c.SubType == protobuf || c.SubType == protobufOld:
			return protobuf
		}
	}
	return ""
}
