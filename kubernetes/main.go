package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	logsapi "k8s.io/component-base/logs/api/v1"
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	"k8s.io/component-base/version"
)

const exitUsage = 64 // EX_USAGE

const usage = `usage: kube control-plane --config FILE [--ready-file FILE] [--ready-fd N] [--status-file FILE]
       kube controllers   --config FILE [--ready-file FILE] [--ready-fd N]
       kube node          --config FILE [--ready-file FILE] [--ready-fd N]
       kube kubectl ...
       kube version
`

// parts are the long-running forms, by their first argument.
var parts = map[string]func(ctx context.Context, file string, r *readiness, t *teller) error{
	"control-plane": runControlPlane,
	"controllers":   runControllers,
	"node":          runNode,
}

func main() {
	// Several components share this process and each applies its logging
	// options; the first one's hold.
	logsapi.ReapplyHandling = logsapi.ReapplyHandlingIgnoreUnchanged
	os.Exit(dispatch(os.Args))
}

func dispatch(args []string) int {
	if strings.HasPrefix(filepath.Base(args[0]), "kubectl") {
		return kubectl(args)
	}
	if len(args) < 2 {
		fmt.Fprint(os.Stderr, usage)
		return exitUsage
	}
	switch args[1] {
	case "kubectl":
		return kubectl(args[1:])
	case "version":
		fmt.Println(version.Get().GitVersion)
		return 0
	}
	part, ok := parts[args[1]]
	if !ok {
		fmt.Fprintf(os.Stderr, "kube: no part %q\n%s", args[1], usage)
		return exitUsage
	}
	return run(args[1], part, args[2:])
}

func run(name string, part func(context.Context, string, *readiness, *teller) error, args []string) int {
	fs := flag.NewFlagSet("kube "+name, flag.ContinueOnError)
	file := fs.String("config", "", "configuration `file`")
	readyFile := fs.String("ready-file", "", "`file` that exists from the moment the part serves")
	readyFD := fs.Int("ready-fd", -1, "inherited `descriptor` that a line is written to at that moment")
	statusFile := fs.String("status-file", "", "`file` that says which versions a control plane's data has, while it runs")
	if err := fs.Parse(args); err != nil {
		return exitUsage
	}
	if *file == "" || fs.NArg() > 0 {
		fmt.Fprint(os.Stderr, usage)
		return exitUsage
	}
	ready, err := newReadiness(*readyFile, *readyFD)
	if err != nil {
		fmt.Fprintf(os.Stderr, "kube %s: %v\n", name, err)
		return exitUsage
	}
	defer ready.clear()
	tell := newTeller(*statusFile)
	defer tell.clear()
	err = part(signals(), *file, ready, tell)
	if err != nil {
		fmt.Fprintf(os.Stderr, "kube %s: %v\n", name, err)
		return 1
	}
	return 0
}

// signals ends the context at the first SIGTERM or SIGINT and the process at the
// second. It is ours and not genericapiserver.SetupSignalContext, which may be
// called once per process and which the kubelet's command calls for itself.
func signals() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	c := make(chan os.Signal, 2)
	signal.Notify(c, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		<-c
		cancel()
		<-c
		os.Exit(1)
	}()
	return ctx
}
