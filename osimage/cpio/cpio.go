// Package cpio writes the initramfs: a newc archive of files in memory,
// compressed with zstd so that the kernel can unpack it.
//
// It promises the same bytes for the same entries: time zero, root as owner,
// inode numbers by position. It leaves out reading, hard links, and anything
// that is no file, folder, symbolic link or device.
package cpio

import (
	"bytes"
	"fmt"
	"path"

	"github.com/klauspost/compress/zstd"
)

// Kinds of entries, to be combined with permission bits.
const (
	File    = 0o100000
	Folder  = 0o040000
	Link    = 0o120000
	Char    = 0o020000
	kindsOf = 0o170000
)

// Entry is a member of the archive. The kernel makes no folders by itself: they come before what is in them.
type Entry struct {
	Name         string // without a leading slash
	Mode         uint32 // kind and permissions, such as File|0o755
	Data         []byte // of a file; the target of a link
	Major, Minor uint32 // of a device
}

const trailer = "TRAILER!!!"

// Archive returns the newc archive of the entries in their order.
func Archive(entries []Entry) ([]byte, error) {
	var out bytes.Buffer
	folders := map[string]bool{".": true}
	seen := map[string]bool{}
	for i, e := range entries {
		kind := e.Mode & kindsOf
		switch {
		case path.Clean("/"+e.Name) != "/"+e.Name || e.Name == "" || e.Name == trailer:
			return nil, fmt.Errorf("cpio: entry %q: want a clean path without a slash before it", e.Name)
		case seen[e.Name]:
			return nil, fmt.Errorf("cpio: entry %q is there twice", e.Name)
		case !folders[path.Dir(e.Name)]:
			return nil, fmt.Errorf("cpio: entry %q: no folder %q before it", e.Name, path.Dir(e.Name))
		case kind != File && kind != Folder && kind != Link && kind != Char:
			return nil, fmt.Errorf("cpio: entry %q: mode %o: want a file, folder, link or character device", e.Name, e.Mode)
		case len(e.Data) > 0 && kind != File && kind != Link, int64(len(e.Data)) > 1<<32-1:
			return nil, fmt.Errorf("cpio: entry %q of mode %o with %d bytes", e.Name, e.Mode, len(e.Data))
		}
		seen[e.Name] = true
		folders[e.Name] = kind == Folder
		add(&out, uint32(i+1), e)
	}
	add(&out, 0, Entry{Name: trailer})
	out.Write(make([]byte, -out.Len()&511))
	return out.Bytes(), nil
}

func add(out *bytes.Buffer, inode uint32, e Entry) {
	links := uint32(1)
	if e.Mode&kindsOf == Folder {
		links = 2
	}
	fmt.Fprintf(out, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\x00",
		inode, e.Mode, 0, 0, links, 0, len(e.Data), 0, 0, e.Major, e.Minor, len(e.Name)+1, 0, e.Name)
	out.Write(make([]byte, -out.Len()&3))
	out.Write(e.Data)
	out.Write(make([]byte, -out.Len()&3))
}

// Compress returns data as one zstd frame with a window of 8 MiB, which each kernel with zstd accepts.
func Compress(data []byte) ([]byte, error) {
	w, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithEncoderConcurrency(1),
		zstd.WithWindowSize(8<<20), zstd.WithSingleSegment(false))
	if err != nil {
		return nil, fmt.Errorf("compress: %w", err)
	}
	out := w.EncodeAll(data, nil)
	return out, w.Close()
}
