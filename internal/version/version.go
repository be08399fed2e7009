// Package version holds the version that the linker stamps into each binary.
// It promises one string; what a version may follow stands in os/*.yaml.
package version

// Version is set by -ldflags at build time; a plain go build says development.
var Version = "development"
