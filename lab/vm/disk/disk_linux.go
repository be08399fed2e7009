package disk

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	sector   = 512
	page     = 4096
	cacheMax = 64 << 20 // bytes of writes held; a disk may write out what it holds whenever it likes
)

// ErrOff is returned by a disk without power.
var ErrOff = errors.New("the disk has no power")

// Disk is a disk under power. Its methods may be called at the same time.
type Disk struct {
	size int64

	mu     sync.Mutex // guards what follows
	file   *os.File   // nil without power
	held   []write    // in their order
	bytes  int64      // of held
	view   map[int64]*[page]byte
	counts Counts
	cut    cutting
}

// cutting is when the power goes: after so many more changes of a part of the disk.
type cutting struct {
	off, size int64 // size 0: the whole disk, and flushes count
	left      uint64
	call      func() // nil: it does not go, or goes just now
	gone      bool
}

// write is one change that is not in the file yet.
type write struct {
	off     int64
	data    []byte
	durable bool // it asked for it: no cut loses it
}

// Counts tells what a disk was asked for since it got power.
type Counts struct {
	Reads, Writes, Flushes uint64
	Held                   int // writes that a cut would lose now
}

// Cut tells what a power cut did to the writes that were not flushed.
type Cut struct {
	Lost, Kept, Torn int
	Bytes            int64 // of the lost and the torn
}

// Open puts power to the disk that is the file at path.
func Open(path string) (*Disk, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("open the disk: %w", err)
	}
	info, err := f.Stat()
	if err == nil && (info.Size() == 0 || info.Size()%sector != 0) {
		err = fmt.Errorf("its size is %d, want a multiple of %d", info.Size(), sector)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("open the disk %s: %w", path, err)
	}
	return &Disk{size: info.Size(), file: f, view: map[int64]*[page]byte{}}, nil
}

// Size is the disk's size in bytes.
func (d *Disk) Size() int64 { return d.size }

// Counts returns what the disk was asked for so far.
func (d *Disk) Counts() Counts {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := d.counts
	c.Held = len(d.held)
	return c
}

// CutAfter makes call, on a goroutine of its own, when n more writes or flushes
// have come in, and lets nothing more in from then on: the caller cuts the power.
// So a drill names an instant by what the disk saw, and finds it again.
func (d *Disk) CutAfter(n uint64, call func()) { d.CutIn(0, 0, n, call) }

// CutIn is CutAfter where only writes count that touch the size bytes at off; size
// 0 is the whole disk, with its flushes.
func (d *Disk) CutIn(off, size int64, n uint64, call func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.cut = cutting{off: off, size: size, left: n, call: call}
}

// arrived counts a change of n bytes at off, or a flush, which has none, and tells
// whether it comes too late.
func (d *Disk) arrived(off, n int64) error {
	c := &d.cut
	switch {
	case c.gone:
		return ErrOff
	case c.call == nil || c.size > 0 && (off >= c.off+c.size || off+n <= c.off):
		return nil
	case c.left > 0:
		c.left--
		return nil
	}
	go c.call()
	c.call, c.gone = nil, true
	return ErrOff
}

func (d *Disk) check(off int64, n int) error {
	if off < 0 || n < 0 || off > d.size || int64(n) > d.size-off {
		return fmt.Errorf("%d bytes at %d are beyond the disk's end at %d", n, off, d.size)
	}
	if d.file == nil {
		return ErrOff
	}
	return nil
}

// ReadAt reads what was written last, flushed or not.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.check(off, len(p)); err != nil {
		return 0, err
	}
	d.counts.Reads++
	if _, err := d.file.ReadAt(p, off); err != nil {
		return 0, err
	}
	if len(d.view) == 0 {
		return len(p), nil
	}
	d.pages(off, len(p), func(n int64, in, at, length int) error {
		if held := d.view[n]; held != nil {
			copy(p[at:at+length], held[in:])
		}
		return nil
	})
	return len(p), nil
}

// pages visits the parts of a range page by page: the page's number, where in it
// the part begins, where in the range, and how long it is.
func (d *Disk) pages(off int64, n int, visit func(number int64, in, at, length int) error) error {
	for at := 0; at < n; {
		number, in := (off+int64(at))/page, int((off+int64(at))%page)
		length := min(page-in, n-at)
		if err := visit(number, in, at, length); err != nil {
			return err
		}
		at += length
	}
	return nil
}

// WriteAt takes a write into the cache.
func (d *Disk) WriteAt(p []byte, off int64) (int, error) { return len(p), d.write(p, off, false) }

func (d *Disk) write(p []byte, off int64, durable bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.check(off, len(p)); err != nil {
		return err
	}
	if err := d.arrived(off, int64(len(p))); err != nil {
		return err
	}
	d.counts.Writes++
	err := d.pages(off, len(p), func(number int64, in, at, length int) error {
		held := d.view[number]
		if held == nil {
			held = new([page]byte)
			if _, err := d.file.ReadAt(held[:], number*page); err != nil && err != io.EOF {
				return err
			}
			d.view[number] = held
		}
		copy(held[in:], p[at:at+length])
		return nil
	})
	if err != nil {
		return err
	}
	d.held = append(d.held, write{off, append([]byte(nil), p...), durable})
	d.bytes += int64(len(p))
	if d.bytes > cacheMax {
		return d.writeOut()
	}
	return nil
}

// clear makes a range read as zeros, and takes no room in the file where it can.
func (d *Disk) clear(off, n int64, durable bool) error {
	if n <= 1<<20 {
		return d.write(make([]byte, n), off, durable)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if off < 0 || n < 0 || off > d.size || n > d.size-off {
		return fmt.Errorf("%d bytes at %d are beyond the disk's end at %d", n, off, d.size)
	}
	if d.file == nil {
		return ErrOff
	}
	if err := d.arrived(off, n); err != nil {
		return err
	}
	d.counts.Writes++
	if err := d.writeOut(); err != nil {
		return err
	}
	return punch(d.file, off, n)
}

// punch makes a hole.
func punch(f *os.File, off, n int64) error {
	err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	if err == nil || !errors.Is(err, unix.EOPNOTSUPP) {
		return err
	}
	zeros := make([]byte, 1<<20)
	for n > 0 {
		k := min(n, int64(len(zeros)))
		if _, err := f.WriteAt(zeros[:k], off); err != nil {
			return err
		}
		off, n = off+k, n-k
	}
	return nil
}

// Flush makes every write so far safe from a power cut.
func (d *Disk) Flush() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.file == nil {
		return ErrOff
	}
	if err := d.arrived(0, 0); err != nil {
		return err
	}
	d.counts.Flushes++
	return d.writeOut()
}

func (d *Disk) writeOut() error {
	for _, w := range d.held {
		if _, err := d.file.WriteAt(w.data, w.off); err != nil {
			return err
		}
	}
	d.forget()
	return nil
}

func (d *Disk) forget() {
	d.held, d.bytes = nil, 0
	clear(d.view)
}

// Close takes the power away as an orderly end does: nothing is lost.
func (d *Disk) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.file == nil {
		return nil
	}
	return errors.Join(d.writeOut(), d.off())
}

func (d *Disk) off() error {
	err := d.file.Close()
	d.file = nil
	d.forget()
	return err
}

// PowerCut takes the power away from all the disks at the same instant. Seed 0
// loses every write that was not flushed; another one decides for each whether it
// is lost, kept, or torn, which is that some of its sectors are kept.
func PowerCut(seed uint64, disks ...*Disk) (Cut, error) {
	for _, d := range disks { // always in the order given: two cuts at once do not wait for each other for ever
		d.mu.Lock()
		defer d.mu.Unlock()
	}
	dice := rand.New(rand.NewPCG(seed, 0))
	var c Cut
	var faults []error
	for _, d := range disks {
		if d.file == nil {
			continue
		}
		for _, w := range d.held {
			faults = append(faults, w.survive(d.file, seed, dice, &c))
		}
		faults = append(faults, d.off())
	}
	return c, errors.Join(faults...)
}

// survive writes to the file what is left of w.
func (w write) survive(f *os.File, seed uint64, dice *rand.Rand, c *Cut) error {
	fate := dice.IntN(4)
	switch {
	case w.durable, seed != 0 && fate < 2:
		c.Kept++
		_, err := f.WriteAt(w.data, w.off)
		return err
	case seed != 0 && fate == 2 && len(w.data) > sector:
		c.Torn++
		for at := 0; at < len(w.data); at += sector {
			part := w.data[at:min(at+sector, len(w.data))]
			if dice.IntN(2) == 0 {
				c.Bytes += int64(len(part))
			} else if _, err := f.WriteAt(part, w.off+int64(at)); err != nil {
				return err
			}
		}
		return nil
	}
	c.Lost++
	c.Bytes += int64(len(w.data))
	return nil
}
