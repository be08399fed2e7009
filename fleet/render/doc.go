// Package render turns a tree and one resolved site into what runs there: OS
// settings, Kubernetes objects and the list of app images.
//
// It is a pure function. The CLI calls it for a preview, the machine calls it
// for the truth, and both get the same bytes: no clock, no network, no
// program, no file but those of the tree, no order of maps. What it reads of
// an app is the folder apps/<app>/<version>/ and nothing beside it, so that a
// site's slice renders as the whole tree does. The rendering of one edition
// never changes; testdata/edition* holds what each edition gave.
//
// The way of an app:
//
//	files of the version  -> marks for ${vars.x}      files.go, substitute.go
//	                      -> objects                  manifests.go, kustomize.go
//	                      -> namespace, label, images finish.go, images.go
//	                      -> patches, deletions       patch.go
//	                      -> order, digest            kinds.go, effect.go
//
// A patch is laid over its target by the rule of layers: maps merge, scalars
// and lists replace, lists of named things merge by name, null removes.
//
// Diff compares two renderings of a site and says how much it would be
// disturbed.
//
// Left out for now: Helm charts, and Kustomize's generators, transformers and
// validators from files, which may name programs.
package render
