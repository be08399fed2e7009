// Package site tells the whole story on one computer, as a test: a real hub, a
// real machine, real Kubernetes, from lab up to lab down, with everything in
// between killed at random. It is all test, behind the build tag site:
//
//	make test-site
//	go test -tags site -count 1 -timeout 30m ./lab/site -v -seed 7 -kills 40
//
// It promises to leave nothing on the host, also when it fails, and to print
// the seed that replays its choices. It leaves out what a smaller test shows
// better: refusals by name, rendering, the hub's own faults.
package site
