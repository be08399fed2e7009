package drill

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"math"
	"regexp"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/holdfast-edge/holdfast/machine/metal/luks"
	"github.com/holdfast-edge/holdfast/osimage"
)

// theft is the disk in other hands.
func (d *drill) theft(ctx context.Context) error {
	err := d.step(ctx, "write what a thief would look for, and read the disk without the machine", "STATE and DATA are noise; STATE opens by its TPM and by the recovery key, and by nothing else", func(ctx context.Context) (string, string, error) {
		d.counter.count(ctx, 20)
		if err := d.off(ctx); err != nil {
			return "", "", err
		}
		seen, err := d.noise()
		return seen, "", errors.Join(err, d.on(ctx))
	})
	if err != nil {
		return err
	}
	if err := d.otherTPM(ctx); err != nil {
		return err
	}
	back := func(did string) error {
		return d.step(ctx, did, "it is the same machine, and well", func(ctx context.Context) (string, string, error) {
			seen, err := d.well(ctx)
			return seen, "", err
		})
	}
	if err := back("put the machine's own TPM back"); err != nil {
		return err
	}
	if err := d.forgedState(ctx); err != nil {
		return err
	}
	return back("put its own STATE back")
}

// forgedState puts a volume of somebody else's making in the place of STATE: the
// genuine sealed secret, which is no secret on the disk, and another key.
func (d *drill) forgedState(ctx context.Context) error {
	return d.step(ctx, "put a STATE in that somebody else made, with the tokens of the right one", "it is refused unread: the machine says so, and runs nothing from it", func(ctx context.Context) (seen, _ string, err error) {
		var head []byte
		var mark int64
		err = d.restart(ctx, func() (err error) {
			mark = d.mark()
			head, err = d.forge()
			return err
		})
		if head != nil {
			defer afterwards(ctx, func(ctx context.Context) error {
				return d.restart(ctx, func() error { return d.putBack(head) })
			}, &err)
		}
		if err != nil {
			return "", "", err
		}
		line, err := d.says(ctx, mark, 1, lockedLine)
		if err != nil {
			return "", "", err
		}
		if id, err := d.stateID(); err != nil || id == d.luks {
			return line, "", fmt.Errorf("the forged STATE is not there any more: %s, %w", id, err)
		}
		if body, err := d.answer(ctx); err == nil && d.Port != 0 {
			return line, "", broken("the app answers: %.60s", body)
		}
		return "the console says: " + line, "", nil
	})
}

// forge makes a volume over STATE, and returns what was there.
func (d *drill) forge() ([]byte, error) {
	p, err := d.open(osimage.PartState)
	if err != nil {
		return nil, err
	}
	defer p.Close()
	v, err := luks.Open(p)
	if err != nil {
		return nil, err
	}
	offset, _ := v.Data()
	head := make([]byte, offset)
	if _, err := p.ReadAt(head, 0); err != nil {
		return nil, err
	}
	key, secret := make([]byte, luks.KeySize), make([]byte, luks.MinSecret)
	rand.Read(key)
	rand.Read(secret)
	c := luks.Change{Slots: map[int][]byte{0: secret}, Tokens: map[int]*luks.Token{}}
	for n, t := range v.Tokens() {
		if slices.Equal(t.Slots, []int{0}) {
			c.Tokens[n] = &t
		}
	}
	_, err = luks.Format(p, p.Size(), v.Label(), v.Subsystem(), key, c)
	return head, err
}

func (d *drill) putBack(head []byte) error {
	p, err := d.open(osimage.PartState)
	if err != nil {
		return err
	}
	defer p.Close()
	if _, err := p.WriteAt(head, 0); err != nil {
		return err
	}
	return p.Sync()
}

var (
	lockedLine = regexp.MustCompile(`holdfast: fault +(E0[678])[^\r\n]*`)
	madeLine   = regexp.MustCompile(`holdfast: disk: (STATE|DATA) was made[^\r\n]*`)
	stateLine  = regexp.MustCompile(`holdfast: (release +\d+ of|address)[^\r\n]*`)
)

func (d *drill) otherTPM(ctx context.Context) error {
	return d.step(ctx, "start the disk in a box with another TPM", "nothing opens: it says so, runs nothing, and destroys nothing", func(ctx context.Context) (seen, _ string, err error) {
		code, id := d.Lab.Code(d.machine), d.luks
		mark := d.mark()
		if _, err := d.Lab.SwapTPM(ctx, d.machine.Key(), false); err != nil {
			return "", "", err
		}
		defer afterwards(ctx, func(ctx context.Context) error {
			_, err := d.Lab.SwapTPM(ctx, d.machine.Key(), true)
			return err
		}, &err)
		line, err := d.says(ctx, mark, 1, lockedLine)
		if err != nil {
			return "", "", err
		}
		// It has said what it makes of it: now it may not have done anything else.
		if made := madeLine.FindString(d.console(mark)); made != "" {
			return line, "", broken("it wrote to the foreign disk: %s", made)
		}
		if now, err := d.stateID(); err != nil || now != id {
			return line, "", broken("STATE was %s and is %s, %v", id, now, err)
		}
		if body, err := d.answer(ctx); err == nil && d.Port != 0 {
			return line, "", broken("the app answers: %.60s", body)
		}
		if other := d.Lab.Code(d.machine); other == code {
			return line, "", broken("it calls itself %s as before, with another TPM", code)
		}
		return "the console says: " + line, "", nil
	})
}

// noise looks at STATE and DATA as a thief does.
func (d *drill) noise() (string, error) {
	p, err := d.open(osimage.PartState)
	if err != nil {
		return "", err
	}
	defer p.Close()
	v, err := luks.Open(p)
	if err != nil {
		return "", err
	}
	tokens := map[string]int{}
	covered := []int{}
	for _, t := range v.Tokens() {
		tokens[t.Type]++
		covered = append(covered, t.Slots...)
	}
	slices.Sort(covered)
	if slots := v.Slots(); !slices.Equal(slots, slices.Compact(covered)) || len(slots) > 2 {
		return "", broken("STATE has key slots %v, and tokens explain %v", slots, covered)
	}
	offset, _ := v.Data()
	state, err := look(p, offset)
	if err != nil {
		return "", fmt.Errorf("STATE: %w", err)
	}
	q, err := d.open(osimage.PartData)
	if err != nil {
		return "", err
	}
	defer q.Close()
	if v, err = luks.Open(q); err != nil {
		return "", broken("DATA is not encrypted: %v", err)
	}
	offset, _ = v.Data()
	data, err := look(q, offset)
	if err != nil {
		return "", fmt.Errorf("DATA: %w", err)
	}
	return fmt.Sprintf("key slots %v with tokens %v; %d MB of STATE at %.4f bits a byte, %d MB of DATA at %.4f", covered, tokens, state.bytes>>20, state.entropy, data.bytes>>20, data.entropy), nil
}

// telling is what no noise holds: names of what surely lies on the disks.
var telling = [][]byte{[]byte("PRIVATE KEY"), []byte("apiVersion"), []byte("/registry/"), []byte(counterName), []byte("holdfast.dev/"), []byte("\x7fELF\x02\x01\x01"), []byte("lost+found")}

type looked struct {
	bytes   int64
	entropy float64 // bits per byte, of what was ever written
}

// look reads what was ever written of a partition.
func look(p part, from int64) (looked, error) {
	var l looked
	var counts [256]int64
	end := p.Offset() + p.Size()
	chunk := make([]byte, 1<<20)
	var tail []byte
	for at := p.Offset() + from; at < end; {
		data, err := unix.Seek(int(p.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break
		}
		if err != nil {
			return l, err
		}
		hole, err := unix.Seek(int(p.Fd()), data, unix.SEEK_HOLE)
		if err != nil {
			return l, err
		}
		at = min(hole, data+int64(len(chunk)), end)
		if data >= end {
			break
		}
		n, err := p.File.ReadAt(chunk[:at-data], data)
		if err != nil && err != io.EOF {
			return l, err
		}
		block := append(tail, chunk[:n]...)
		for _, t := range telling {
			if i := bytes.Index(block, t); i >= 0 {
				return l, broken("near byte %d of the disk it says %q", data, t)
			}
		}
		tail = slices.Clone(chunk[max(0, n-16):n])
		for i := 0; i+512 <= n; i += 512 { // what the machine never wrote, or gave back, is zero
			if sector := chunk[i : i+512]; len(bytes.Trim(sector, "\x00")) > 0 {
				l.bytes += 512
				for _, b := range sector {
					counts[b]++
				}
			}
		}
	}
	for _, c := range counts {
		if c > 0 {
			share := float64(c) / float64(l.bytes)
			l.entropy -= share * math.Log2(share)
		}
	}
	if l.bytes > 1<<20 && l.entropy < 7.99 {
		return l, broken("it has %.3f bits a byte: noise has 8", l.entropy)
	}
	return l, nil
}
