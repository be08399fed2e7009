// Package images keeps a site's app images whole, local and startable without a network.
//
// It has four parts, in order of use:
//
//   - [Store]: blobs by SHA-256 under one folder. A blob has its name only after every byte was hashed and flushed; an interrupted
//     download goes on at the byte where it stopped; the whole is bounded by a quota.
//   - [Fetcher]: one image by digest (index, manifest of this platform, config, layers) from a place that is trusted with nothing.
//   - [Registry]: the HTTP handler on loopback that containerd asks for every image (its `_default` mirror). Tags are answered from the
//     table that the release gave (images.lock) and from nothing else; everything else goes by digest.
//   - [Stager]: makes images of a rendering startable: fetched, pulled and unpacked by containerd, pinned against the kubelet's garbage
//     collection, flushed, and only then noted as staged. It also lets go of what no kept rendering needs.
//
// [Import] puts images that come as a tar file (the pause image) into the store, so that they take the same way as all others.
//
// It promises that no byte is believed that does not match its digest, wherever it came from, and that every step can be cut at any instant
// and run again. It leaves out which images a site needs (package fleet/render), over which connection they come (the caller's HTTP client), and pacing.
//
// The promises rest on the configuration of containerd that package kube writes: a `_default` mirror that is the Registry and has no other server
// behind it, `image_pull_with_sync_fs = true` (a snapshot is flushed before it is committed), and `discard_unpacked_layers = true` (the layers
// lie in the Store already; a third copy serves nobody).
package images
