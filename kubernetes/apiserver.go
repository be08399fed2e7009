package main

import (
	"context"
	"fmt"
	"sync/atomic"
	_ "unsafe" // for linkname

	"github.com/spf13/pflag"
	"go.etcd.io/etcd/client/v3/kubernetes"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/storage/storagebackend"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/client-go/rest"
	cliflag "k8s.io/component-base/cli/flag"
	logsapi "k8s.io/component-base/logs/api/v1"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	"k8s.io/kubernetes/cmd/kube-apiserver/app/options"

	"github.com/holdfast-edge/holdfast/kubernetes/store"
)

// newETCD3Client is k8s.io/apiserver's constructor of etcd clients. See the
// package comment.
//
//go:linkname newETCD3Client k8s.io/apiserver/pkg/storage/storagebackend/factory.newETCD3Client
var newETCD3Client func(storagebackend.TransportConfig) (*kubernetes.Client, error)

// clients counts the clients handed out, so that a start in which the API server
// found another way to etcd is noticed.
var clients atomic.Int64

// useMember makes every etcd client of this process a client of m.
func useMember(m *store.Member) {
	newETCD3Client = func(storagebackend.TransportConfig) (*kubernetes.Client, error) {
		c, err := m.Client()
		if err != nil {
			return nil, err
		}
		clients.Add(1)
		kc := &kubernetes.Client{Client: c}
		kc.Kubernetes = kc
		return kc, nil
	}
}

// runAPIServer is kube-apiserver's own command without its signal handling,
// which may be set up only once in a process. prepared gets the server, an
// aggregator, before it serves.
func runAPIServer(ctx context.Context, args []string, bootstrap string, prepared func(*genericapiserver.GenericAPIServer)) error {
	s := options.NewServerRunOptions()
	if err := parse("API server", s.Flags(), append([]string{"--etcd-servers=" + store.Endpoint}, args...)); err != nil {
		return err
	}
	if err := s.GenericServerRunOptions.ComponentGlobalsRegistry.Set(); err != nil {
		return fmt.Errorf("set versions and feature gates: %w", err)
	}
	rest.SetDefaultWarningHandler(rest.NoWarnings{})
	if err := logsapi.ValidateAndApply(s.Logs, utilfeature.DefaultFeatureGate); err != nil {
		return fmt.Errorf("apply logging options: %w", err)
	}
	completed, err := s.Complete(ctx)
	if err != nil {
		return fmt.Errorf("complete options: %w", err)
	}
	if errs := completed.Validate(); len(errs) != 0 {
		return fmt.Errorf("validate options: %w", utilerrors.NewAggregate(errs))
	}
	c, err := apiserver.NewConfig(completed)
	if err != nil {
		return err
	}
	cc, err := c.Complete()
	if err != nil {
		return err
	}
	server, err := apiserver.CreateServerChain(cc)
	if err != nil {
		return err
	}
	if clients.Load() == 0 {
		return fmt.Errorf("this Kubernetes does not ask for its etcd clients where it used to: the embedded member is not reached")
	}
	if bootstrap != "" {
		hook := func(h genericapiserver.PostStartHookContext) error { return applyBootstrap(h, bootstrap) }
		if err := server.GenericAPIServer.AddPostStartHook("holdfast-bootstrap", hook); err != nil {
			return err
		}
	}
	p, err := server.PrepareRun()
	if err != nil {
		return err
	}
	prepared(server.GenericAPIServer)
	return p.Run(ctx)
}

// parse applies args to a component's flags and refuses what is left over.
func parse(component string, sets cliflag.NamedFlagSets, args []string) error {
	fs := pflag.NewFlagSet(component, pflag.ContinueOnError)
	fs.SetNormalizeFunc(cliflag.WordSepNormalizeFunc)
	for _, f := range sets.FlagSets {
		fs.AddFlagSet(f)
	}
	if err := fs.Parse(args); err != nil {
		return fmt.Errorf("arguments of %s: %w", component, err)
	}
	if fs.NArg() > 0 {
		return fmt.Errorf("arguments of %s: %q is no flag", component, fs.Arg(0))
	}
	return nil
}
