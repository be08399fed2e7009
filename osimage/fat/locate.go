package fat

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
)

// Piece is bytes of a file that follow each other on the partition.
type Piece struct{ Offset, Size int64 }

// Locate tells where the bytes of a file lie, in their order. A name is a path with
// slashes, in whatever case; fs.ErrNotExist is returned where there is none.
// A volume that is mounted may be about to change.
func Locate(volume io.ReaderAt, name string) ([]Piece, error) {
	fail := func(err error) ([]Piece, error) {
		return nil, fmt.Errorf("find %s on FAT32: %w", name, err)
	}
	m := &mender{d: readOnly{volume}, cached: map[int64][]byte{}, edits: map[int64]bool{}, whole: map[uint32]*file{}}
	err := m.read()
	if err == nil {
		err = m.folder(m.root, "", 0)
	}
	if err != nil {
		return fail(err)
	}
	for _, f := range m.files {
		if !strings.EqualFold(f.path, name) {
			continue
		}
		_, clusters := m.longest(f.first, m.need(f))
		left := int64(f.size)
		var pieces []Piece
		for _, c := range clusters {
			size := min(left, m.clusterSize())
			left -= size
			if n := len(pieces); n > 0 && pieces[n-1].Offset+pieces[n-1].Size == m.offset(c) {
				pieces[n-1].Size += size
				continue
			}
			pieces = append(pieces, Piece{m.offset(c), size})
		}
		if left != 0 {
			return fail(fmt.Errorf("%w: %d of its bytes are nowhere", ErrBeyond, left))
		}
		return pieces, nil
	}
	return fail(fs.ErrNotExist)
}

// readOnly is a volume that is only looked at.
type readOnly struct{ io.ReaderAt }

func (readOnly) WriteAt([]byte, int64) (int, error) { return 0, errors.ErrUnsupported }
func (readOnly) Sync() error                        { return errors.ErrUnsupported }
