// Package fleet is the configuration model: what a fleet repo says, from the
// bytes of its documents to one site with all layers laid over one another.
//
// It promises that documents are read strictly; that all faults of all files
// come at once, each with file, line, column, what is wrong and what would be
// right; that every resolved value knows where it came from and what it
// overrode; and that Closure, by which a machine judges a slice, gives the same
// answer on the slice as on the whole tree, and reads nothing else.
//
// In order of use:
//
//	Load       the whole fleet, validated across documents (people, CI, hub)
//	Closure    the paths that one site needs (who cuts a slice, and the machine that checks it)
//	LoadSite   one site from its closure (a machine)
//	Resolve    the site's layers as one value
//	Explain    where each value of a site came from
//
// It leaves out rendering (fleet/render), signatures and slices (release), and
// all I/O but reading an fs.FS.
package fleet
