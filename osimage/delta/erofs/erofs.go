// Package erofs lists where the files of an EROFS image lie, for package delta to
// pair them. It reads what go-erofs wrote, on the host that makes deltas; a machine
// needs none of it, and files whose bytes are not there as they are (compressed
// ones) are left out.
package erofs

import (
	"fmt"
	"io"
	"io/fs"

	"github.com/erofs/go-erofs"

	"github.com/holdfast-edge/holdfast/osimage/delta"
)

// Files lists the extents of the image's plain files.
func Files(r io.ReaderAt) ([]delta.Extent, error) {
	img, err := erofs.Open(r)
	if err != nil {
		return nil, fmt.Errorf("list the files of a root: %w", err)
	}
	var list []delta.Extent
	err = fs.WalkDir(img, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		ranges, ok := info.(interface{ DataRange() []erofs.DataRange })
		if !ok {
			return nil
		}
		for _, x := range ranges.DataRange() {
			if x.Offset >= 0 && x.Device == 0 {
				list = append(list, delta.Extent{Path: path, Offset: x.Offset, Size: x.Size})
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list the files of a root: %w", err)
	}
	return list, nil
}
