// Command pack makes an app image of one static program: an OCI layout in a tar
// file, the same bytes for the same input. It is the front of internal/ociimage,
// for the Makefile and for anybody who wants to run a Go program at a site.
//
//	go run ./runtime/pack -ref holdfast.dev/hello:1.0.0 -o hello.tar ./hello
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/holdfast-edge/holdfast/internal/ociimage"
)

func main() {
	ref := flag.String("ref", "", "`name` of the image: registry/repository:tag")
	out := flag.String("o", "", "tar `file` to write")
	arch := flag.String("arch", runtime.GOARCH, "`architecture` that the program was built for")
	user := flag.String("user", "", "`uid:gid` that it runs as (default 65535:65535)")
	ports := flag.String("ports", "", "`ports` that it listens on, such as 8080/tcp, separated by commas")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: pack -ref REGISTRY/REPOSITORY:TAG -o FILE [flags] PROGRAM [ARGUMENT...]")
		flag.PrintDefaults()
	}
	flag.Parse()
	if *ref == "" || *out == "" || flag.NArg() == 0 {
		flag.Usage()
		os.Exit(64)
	}
	c := ociimage.Config{Name: filepath.Base(flag.Arg(0)), Architecture: *arch, User: *user, Args: flag.Args()[1:]}
	if *ports != "" {
		c.Ports = strings.Split(*ports, ",")
	}
	if err := ociimage.Write(*out, *ref, flag.Arg(0), c); err != nil {
		fmt.Fprintln(os.Stderr, "pack:", err)
		os.Exit(1)
	}
}
