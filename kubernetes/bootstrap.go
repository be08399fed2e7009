package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/client-go/dynamic"
	"k8s.io/klog/v2"
)

// fieldManager is the one name under which Holdfast owns fields.
const fieldManager = "holdfast"

// applyBootstrap puts the objects of a file in place, through the API server's
// own loopback client. It tries until it succeeds, since the namespaces that the
// objects live in are being made at the same moment, and the API server is not
// ready before; it gives up only with the server.
func applyBootstrap(h genericapiserver.PostStartHookContext, file string) error {
	objects, err := readObjects(file)
	if err != nil {
		return err
	}
	client, err := dynamic.NewForConfig(h.LoopbackClientConfig)
	if err != nil {
		return fmt.Errorf("client for the bootstrap objects: %w", err)
	}
	var last error
	for len(objects) > 0 {
		objects, err = applyAll(h.Context, client, objects)
		if err == nil {
			said("bootstrap objects in place")
			return nil
		}
		if last == nil || last.Error() != err.Error() {
			klog.InfoS("Bootstrap object not in place yet", "err", err)
			last = err
		}
		select {
		case <-h.Context.Done():
			return fmt.Errorf("%w; last: %w", h.Context.Err(), err)
		case <-time.After(50 * time.Millisecond):
		}
	}
	return nil
}

func readObjects(file string) ([]*unstructured.Unstructured, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read bootstrap objects: %w", err)
	}
	var raw []map[string]any
	if err := json.Unmarshal(data, &raw); err != nil {
		return nil, fmt.Errorf("bootstrap objects %s: %w", file, err)
	}
	objects := make([]*unstructured.Unstructured, len(raw))
	for i, o := range raw {
		objects[i] = &unstructured.Unstructured{Object: o}
	}
	return objects, nil
}

// applyAll applies objects and returns those that failed with the first failure.
func applyAll(ctx context.Context, client dynamic.Interface, objects []*unstructured.Unstructured) (rest []*unstructured.Unstructured, first error) {
	for _, o := range objects {
		if err := apply(ctx, client, o); err != nil {
			rest = append(rest, o)
			if first == nil {
				first = fmt.Errorf("%s %s/%s: %w", o.GetKind(), o.GetNamespace(), o.GetName(), err)
			}
		}
	}
	return rest, first
}

func apply(ctx context.Context, client dynamic.Interface, o *unstructured.Unstructured) error {
	resource, _ := meta.UnsafeGuessKindToResource(schema.FromAPIVersionAndKind(o.GetAPIVersion(), o.GetKind()))
	if o.GetKind() == "Endpoints" { // the one kind here that is a plural already
		resource.Resource = "endpoints"
	}
	var target dynamic.ResourceInterface = client.Resource(resource)
	if ns := o.GetNamespace(); ns != "" {
		target = client.Resource(resource).Namespace(ns)
	}
	_, err := target.Apply(ctx, o.GetName(), o, metav1.ApplyOptions{FieldManager: fieldManager, Force: true})
	return err
}
