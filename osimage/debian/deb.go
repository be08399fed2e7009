package debian

import (
	"archive/tar"
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strconv"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// unpackedMax bounds what a package unpacks to, fileMax one file of it.
const (
	unpackedMax = 2 << 30
	fileMax     = 256 << 20
)

// Archive is the content of a package.
type Archive struct {
	Package Package
	path    string // of the tar
}

// File is a file or link of a package. Its mode is not told: who builds an OS image says what is executable, and nothing is setuid.
type File struct {
	Name string // without a slash in front: usr/sbin/nft
	Data []byte
	Link string // target of a symbolic link; "" for a file
}

// Each calls f for the files and links that pick wants, in the package's order.
// Folders, devices and hard links are passed over: no package used here needs them.
func (a *Archive) Each(pick func(name string) bool, f func(File) error) error {
	in, err := os.Open(a.path)
	if err != nil {
		return err
	}
	defer in.Close()
	if err := eachFile(bufio.NewReaderSize(in, 1<<20), pick, f); err != nil {
		return fmt.Errorf("read the Debian package %s: %w", a.Package.Name, err)
	}
	return nil
}

func eachFile(r io.Reader, pick func(name string) bool, f func(File) error) error {
	t := tar.NewReader(r)
	for {
		h, err := t.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(path.Clean("/"+h.Name), "/")
		if !pick(name) {
			continue
		}
		switch h.Typeflag {
		case tar.TypeReg:
			if h.Size > fileMax {
				return fmt.Errorf("%s has %d bytes, more than %d", name, h.Size, fileMax)
			}
			data, err := io.ReadAll(t)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			if err := f(File{Name: name, Data: data}); err != nil {
				return err
			}
		case tar.TypeSymlink:
			if err := f(File{Name: name, Link: h.Linkname}); err != nil {
				return err
			}
		}
	}
}

const (
	arMagic  = "!<arch>\n"
	arHeader = 60
)

// dataOf is the tar with the files of a .deb: an ar archive whose member
// data.tar has its compression in its name.
func dataOf(r io.Reader) (io.Reader, error) {
	in := bufio.NewReaderSize(r, 1<<20)
	magic := make([]byte, len(arMagic))
	if _, err := io.ReadFull(in, magic); err != nil || string(magic) != arMagic {
		return nil, errors.New("no Debian package: it does not begin as an ar archive")
	}
	for {
		h := make([]byte, arHeader)
		if _, err := io.ReadFull(in, h); err != nil {
			return nil, fmt.Errorf("no Debian package: it has no data.tar: %w", err)
		}
		if h[58] != '`' || h[59] != '\n' {
			return nil, errors.New("no Debian package: a header of its ar archive is broken")
		}
		name := strings.TrimRight(string(h[:16]), " /")
		size, err := strconv.ParseUint(strings.TrimRight(string(h[48:58]), " "), 10, 40)
		if err != nil {
			return nil, fmt.Errorf("no Debian package: the size of %q: %w", name, err)
		}
		if packing, ok := strings.CutPrefix(name, "data.tar"); ok {
			return unpacked(packing, io.LimitReader(in, int64(size)))
		}
		if _, err := io.CopyN(io.Discard, in, int64(size+size%2)); err != nil {
			return nil, fmt.Errorf("no Debian package: %q is cut off: %w", name, err)
		}
	}
}

func unpacked(packing string, r io.Reader) (io.Reader, error) {
	switch packing {
	case "":
		return r, nil
	case ".gz":
		return gzip.NewReader(r)
	case ".xz":
		return xz.ReaderConfig{DictCap: 64 << 20}.NewReader(r)
	case ".zst":
		return zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(128<<20))
	}
	return nil, fmt.Errorf("data.tar%s: unknown compression", packing)
}
