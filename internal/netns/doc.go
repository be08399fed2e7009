// Package netns makes network namespaces that live by their descriptor alone, and does things inside them.
//
// Nothing is named or mounted: a namespace goes away with its last descriptor and process. Linux only; needs root.
package netns
