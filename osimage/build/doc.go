// Package build makes the OS image: from a fleet's seed, a profile and the
// programs built from source, with the foreign ones from pinned Debian packages,
// it writes the root with its hash tree, the signed boot image (UKI), raw disks
// for machines and sticks, a manifest and an SBOM.
//
// It promises the same bytes for the same inputs, a root without a setuid file,
// shell or interpreter, and that every program in it has a reason that the manifest
// tells. It needs no root rights and starts no other program. It leaves out the
// formats (osimage and the packages below it), compiling, and update artefacts,
// which package artefact makes from what this one wrote.
package build
