// Package holdfast is the root of the house; it holds no code, only the tests
// that keep the plan of the house true: every package says what it is, imports
// run downward, and each binary's dependencies stand in a committed file.
//
// Where to begin: README.md for use, ARCHITECTURE.md for the plan, HACKING.md
// for the commands of everyday work.
package holdfast
