package disks

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"

	"github.com/holdfast-edge/holdfast/osimage"
	"github.com/holdfast-edge/holdfast/osimage/gpt"
	"github.com/holdfast-edge/holdfast/osimage/verity"
)

// makeTable writes a table with all of our partitions, or adds those that are missing. What a new partition begins and ends with is zeroed before it is in
// the table: so what a partition of ours holds, we put there.
func (r *rim) makeTable(why string) error {
	t, fresh := r.table, false
	if t == nil || r.disk.Holds == Foreign {
		t = &gpt.Table{ID: newGUID(), Size: r.disk.Size / gpt.Sector * gpt.Sector}
		fresh = true
	}
	volumes := gpt.TypeLinux
	if r.o.TPM != nil {
		volumes = gpt.TypeLUKS
	}
	var added []gpt.Partition
	for _, p := range []struct {
		name string
		kind gpt.GUID
		size int64
	}{
		{osimage.PartESP, gpt.TypeESP, osimage.ESPSize},
		{osimage.PartRootA, gpt.TypeLinux, osimage.RootSize},
		{osimage.PartRootB, gpt.TypeLinux, osimage.RootSize},
		{osimage.PartState, volumes, r.o.StateSize},
		{osimage.PartData, volumes, 0},
	} {
		if t.Find(p.name) != 0 {
			continue
		}
		n, err := t.Add(gpt.Partition{Type: p.kind, ID: newGUID(), Name: p.name}, p.size)
		if errors.Is(err, gpt.ErrNoRoom) {
			return r.small()
		}
		if err != nil {
			return err
		}
		added = append(added, t.Partitions[n-1])
		if p.name == osimage.PartData && t.Partitions[n-1].Size() < r.o.DataSizeMin {
			return r.small()
		}
	}
	for _, p := range added {
		if err := r.wipe(p.Offset(), p.Size()); err != nil {
			return err
		}
	}
	if fresh {
		r.say("the disk was divided: %s", why)
		if err := r.wipeEdges(); err != nil {
			return err
		}
	}
	if err := t.Write(r.dev); err != nil {
		return err
	}
	r.disk.Holds = Ours
	return nil
}

func (r *rim) small() error {
	return fmt.Errorf("%w: disk %s has %s, %s are needed", ErrSmall, r.disk.Name, size(r.disk.Size), size(r.least()))
}

// wipe zeroes the places in which file systems and volumes are recognized.
func (r *rim) wipe(at, size int64) error {
	const edge = 1 << 20
	zeros := make([]byte, edge)
	places := []int64{at, at + size - edge}
	for copies := int64(1 << 20); copies <= 4<<20 && copies < size; copies *= 2 {
		places = append(places, at+copies) // of LUKS headers
	}
	for _, p := range places {
		if _, err := r.dev.WriteAt(zeros[:min(edge, size)], max(at, p)); err != nil {
			return fmt.Errorf("wipe: %w", err)
		}
	}
	return r.dev.Sync()
}

// wipeEdges zeroes what no partition covers and the table does not overwrite, where somebody else's signatures may be.
func (r *rim) wipeEdges() error {
	const edge, table = 1 << 20, 34 * gpt.Sector
	zeros := make([]byte, edge)
	for at, n := range map[int64]int{table: edge - table, r.disk.Size - edge: edge} {
		if _, err := r.dev.WriteAt(zeros[:n], at); err != nil {
			return fmt.Errorf("wipe: %w", err)
		}
	}
	return r.dev.Sync()
}

func newGUID() (g gpt.GUID) {
	rand.Read(g[:])
	g[7], g[8] = g[7]&0x0f|0x40, g[8]&0x3f|0x80 // version 4; the third field is little-endian
	return g
}

func (r *rim) copyRoot(ctx context.Context) error {
	var length int64
	if v := r.o.Verity; v.DataBlocks > 0 {
		data := int64(v.DataBlocks) * osimage.VerityBlock
		length = data + verity.TreeSize(data)
	}
	return r.copyPart(ctx, r.o.Boot.Root, osimage.PartRootA, length)
}

func (r *rim) copyESP(ctx context.Context) error {
	from := r.o.Boot.ESP
	if from == "" {
		var err error
		if from, err = r.stickESP(); err != nil {
			return err
		}
	}
	return r.copyPart(ctx, from, osimage.PartESP, 0)
}

// stickESP finds the boot partition of a stick that was started without firmware.
func (r *rim) stickESP() (string, error) {
	dev, size, err := r.sys.open(r.o.Boot.Disk)
	if err != nil {
		return "", err
	}
	defer dev.Close()
	t, err := gpt.Read(dev, size)
	if err != nil {
		return "", fmt.Errorf("stick %s: %w", r.o.Boot.Disk, err)
	}
	n := t.Find(osimage.PartStickESP)
	if n == 0 {
		return "", fmt.Errorf("stick %s has no boot partition", r.o.Boot.Disk)
	}
	return partitionName(r.o.Boot.Disk, n), nil
}

// copyPart copies a partition, its first block last: until then nothing recognizes the copy.
func (r *rim) copyPart(ctx context.Context, from, name string, length int64) error {
	src, size, err := r.sys.open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	if length == 0 || length > size {
		length = size
	}
	part := r.table.Partitions[r.table.Find(name)-1]
	if length > part.Size() {
		return fmt.Errorf("%s of the stick has %d bytes, %s has room for %d", from, length, name, part.Size())
	}
	dst, _, err := r.sys.open(partitionName(r.disk.Name, r.table.Find(name)))
	if err != nil {
		return err
	}
	defer dst.Close()
	const first = 4096
	buffer, there := make([]byte, 1<<20), make([]byte, 1<<20)
	for at := int64(first); at < length; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := src.ReadAt(buffer[:min(int64(len(buffer)), length-at)], at)
		if n == 0 {
			if err == nil {
				err = io.ErrNoProgress
			}
			return fmt.Errorf("copy %s at byte %d: %w", from, at, err)
		}
		// What is there already, as after a power cut or where both are empty, is not written again.
		if got, err := dst.ReadAt(there[:n], at); err != nil && got < n || !bytes.Equal(there[:n], buffer[:n]) {
			if _, err := dst.WriteAt(buffer[:n], at); err != nil {
				return fmt.Errorf("copy %s at byte %d: %w", from, at, err)
			}
		}
		at += int64(n)
	}
	if err := dst.Sync(); err != nil {
		return err
	}
	if _, err := src.ReadAt(buffer[:first], 0); err != nil {
		return fmt.Errorf("copy %s: %w", from, err)
	}
	if _, err := dst.WriteAt(buffer[:first], 0); err != nil {
		return fmt.Errorf("copy %s: %w", from, err)
	}
	r.copied[name] = true
	return dst.Sync()
}
