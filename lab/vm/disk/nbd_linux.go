package disk

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"
)

// The NBD protocol, fixed newstyle, simple replies:
// https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md
const (
	magicHello   = 0x4e42444d41474943 // NBDMAGIC
	magicOption  = 0x49484156454f5054 // IHAVEOPT
	magicAnswer  = 0x3e889045565a9
	magicRequest = 0x25609513
	magicReply   = 0x67446698

	optExportName, optAbort, optInfo, optGo = 1, 2, 6, 7
	repAck, repInfo, repUnsupported         = 1, 3, 1<<31 + 1
	infoExport, infoBlockSize               = 0, 3

	cmdRead, cmdWrite, cmdLeave, cmdFlush, cmdTrim, cmdZeroes = 0, 1, 2, 3, 4, 6
	flagFUA                                                   = 1

	exportFlags = 1<<0 | 1<<2 | 1<<3 | 1<<5 | 1<<6 // has flags; takes flush, FUA, trim, zeroes
	requestMax  = 32 << 20
	optionMax   = 4096
)

// Serve serves the disk to one client until it leaves. A client that is gone is no error.
func (d *Disk) Serve(conn io.ReadWriter) error {
	s := &session{disk: d, in: bufio.NewReaderSize(conn, 256<<10), out: bufio.NewWriterSize(conn, 256<<10)}
	err := s.greet()
	for err == nil {
		err = s.request()
	}
	if errors.Is(err, io.EOF) || errors.Is(err, errLeft) || errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
		return nil
	}
	return fmt.Errorf("serve the disk: %w", err)
}

var errLeft = errors.New("the client left")

// session is one client.
type session struct {
	disk *Disk
	in   *bufio.Reader
	out  *bufio.Writer
	buf  []byte
}

func (s *session) send(values ...any) {
	for _, v := range values {
		binary.Write(s.out, binary.BigEndian, v) // its errors stay with the writer, for Flush
	}
}

func (s *session) greet() error {
	s.send(uint64(magicHello), uint64(magicOption), uint16(1|2)) // fixed newstyle, no zeroes
	if err := s.out.Flush(); err != nil {
		return err
	}
	var flags uint32
	if err := binary.Read(s.in, binary.BigEndian, &flags); err != nil {
		return err
	}
	for {
		ready, err := s.option(flags&2 != 0)
		if err != nil || ready {
			return err
		}
	}
}

// option answers one wish of the handshake, and tells whether it was the last.
func (s *session) option(noZeroes bool) (ready bool, err error) {
	var head struct {
		Magic       uint64
		Option, Len uint32
	}
	if err := binary.Read(s.in, binary.BigEndian, &head); err != nil {
		return false, err
	}
	if head.Magic != magicOption || head.Len > optionMax {
		return false, fmt.Errorf("option %d with magic %x and %d bytes: this is no NBD client", head.Option, head.Magic, head.Len)
	}
	if _, err := s.in.Discard(int(head.Len)); err != nil { // there is one export, by any name
		return false, err
	}
	answer := func(kind, n uint32) { s.send(uint64(magicAnswer), head.Option, kind, n) }
	switch head.Option {
	case optExportName:
		s.send(uint64(s.disk.size), uint16(exportFlags))
		if !noZeroes {
			s.send([124]byte{})
		}
		ready = true
	case optAbort:
		answer(repAck, 0)
		return false, errors.Join(s.out.Flush(), errLeft)
	case optGo, optInfo:
		answer(repInfo, 12)
		s.send(uint16(infoExport), uint64(s.disk.size), uint16(exportFlags))
		answer(repInfo, 14)
		s.send(uint16(infoBlockSize), uint32(sector), uint32(page), uint32(requestMax))
		answer(repAck, 0)
		ready = head.Option == optGo
	default:
		answer(repUnsupported, 0)
	}
	return ready, s.out.Flush()
}

func (s *session) request() error {
	if s.in.Buffered() == 0 { // more may be on its way: answer together
		if err := s.out.Flush(); err != nil {
			return err
		}
	}
	var r struct {
		Magic       uint32
		Flags, Kind uint16
		Cookie      uint64
		Off         uint64
		Len         uint32
	}
	if err := binary.Read(s.in, binary.BigEndian, &r); err != nil {
		return err
	}
	if r.Magic != magicRequest {
		return fmt.Errorf("a request with magic %x: this is no NBD client", r.Magic)
	}
	if r.Kind == cmdLeave {
		return errLeft
	}
	durable := r.Flags&flagFUA != 0
	var data []byte
	var err error
	switch r.Kind {
	case cmdRead, cmdWrite:
		if r.Len > requestMax {
			return fmt.Errorf("a request of %d bytes, at most %d are allowed", r.Len, requestMax)
		}
		if cap(s.buf) < int(r.Len) {
			s.buf = make([]byte, r.Len)
		}
		buf := s.buf[:r.Len]
		if r.Kind == cmdRead {
			_, err = s.disk.ReadAt(buf, int64(r.Off))
			data = buf
			break
		}
		if _, err := io.ReadFull(s.in, buf); err != nil {
			return err
		}
		err = s.disk.write(buf, int64(r.Off), durable)
	case cmdFlush:
		err = s.disk.Flush()
	case cmdTrim, cmdZeroes:
		err = s.disk.clear(int64(r.Off), int64(r.Len), durable)
	default:
		err = unix.EINVAL
	}
	if errors.Is(err, ErrOff) {
		return errLeft // a disk without power says nothing at all
	}
	s.send(uint32(magicReply), code(err), r.Cookie)
	if err == nil {
		s.out.Write(data)
	}
	return nil
}

// code is err as the protocol's number.
func code(err error) uint32 {
	var number unix.Errno
	switch {
	case err == nil:
		return 0
	case errors.As(err, &number) && number == unix.ENOSPC:
		return uint32(unix.ENOSPC)
	case errors.As(err, &number) && number != unix.EINVAL:
		return uint32(unix.EIO)
	}
	return uint32(unix.EINVAL)
}
