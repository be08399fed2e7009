package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"time"

	"github.com/spf13/pflag"
	"k8s.io/component-base/configz"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
	proxyconfig "k8s.io/kubernetes/pkg/proxy/apis/config"

	"github.com/holdfast-edge/holdfast/kubernetes/config"
)

// runNode is kubelet and service proxy. The kubelet's end is the part's; the
// proxy is started again by itself, because Services that stand still are better
// than pods that nobody looks after.
func runNode(ctx context.Context, file string, ready *readiness, _ *teller) error {
	c, err := config.LoadNode(file)
	if err != nil {
		return err
	}
	startMemory(c.Memory)
	k := start("kubelet", func(context.Context) error { return runKubelet(ctx, c.Kubelet) })
	go func() {
		if waitReady(ctx, c.Probe) == nil {
			keepProxy(ctx, c.Proxy)
		}
	}()
	go func() {
		client := &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
		if waitOK(ctx, client, c.Healthz) != nil {
			return
		}
		said("kubelet healthy")
		if err := ready.set(); err != nil {
			fmt.Fprintln(os.Stderr, "kube node:", err)
		}
		settle(ctx, c.Memory, nil)
	}()
	<-k.done
	ready.clear()
	return ended(ctx, k.failure())
}

// runKubelet runs the kubelet's command. It reads SIGTERM by itself too, which
// does no harm: this process hears it as well.
func runKubelet(ctx context.Context, args []string) error {
	cmd := kubelet.NewKubeletCommand(ctx)
	cmd.SetArgs(args)
	cmd.SilenceErrors = true
	return cmd.ExecuteContext(ctx)
}

// keepProxy runs the service proxy and starts it again, at growing intervals,
// whenever it ends: also when its configuration file changes, which it answers
// by ending.
func keepProxy(ctx context.Context, args []string) {
	const longest = 30 * time.Second
	pause := time.Second
	for ctx.Err() == nil {
		began := time.Now()
		err := runProxy(ctx, args)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > time.Minute {
			pause = time.Second
		}
		fmt.Fprintf(os.Stderr, "kube node: service proxy ended, starts again in %v: %v\n", pause, err)
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, longest)
	}
}

// runProxy is kube-proxy's own command, with a context.
func runProxy(ctx context.Context, args []string) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v", r)
		}
	}()
	// A second run in one process registers its configuration page anew.
	configz.Delete(proxyconfig.GroupName)
	o := proxy.NewOptions()
	fs := pflag.NewFlagSet("proxy", pflag.ContinueOnError)
	o.AddFlags(fs)
	if err := fs.Parse(args); err != nil {
		return fmt.Errorf("arguments of the proxy: %w", err)
	}
	if err := o.Complete(fs); err != nil {
		return fmt.Errorf("configuration of the proxy: %w", err)
	}
	if err := o.Validate(); err != nil {
		return fmt.Errorf("configuration of the proxy: %w", err)
	}
	return o.Run(ctx)
}
