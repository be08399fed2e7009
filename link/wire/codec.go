package wire

import (
	"bytes"
	"compress/flate"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"unicode"
)

// MaxBytes bounds an ordinary message, encoded and decoded.
const MaxBytes = 256 << 10

// Refusals of Decode.
var (
	ErrOversized = errors.New("message is too long")
	ErrMalformed = errors.New("message is malformed")
)

// deflated opens a message that is deflated with dictionary1; others are JSON
// and open with a brace.
const deflated = 1

// dictionary1 holds what messages repeat, the most frequent last. It is part of
// the format: another one is another first byte.
const dictionary1 = `{"capability":1,"fleet":"","machine":"","introduction":"","n":0,"slice":"","version":"","architecture":"amd64","addresses":["192.168.","10."],` +
	`"listed":true,"site":"","reported":` +
	`"conditions":[{"name":"","ok":false,"detail":""}],"cleared":[""],"gone":[""],` +
	`"phase":"quarantined","phase":"evicted","phase":"waiting","phase":"failed","phase":"refused","phase":"staging","phase":"applying",` +
	`"detail":"","restarts":0,"unchanged":0,"applied":1,` +
	`{"seq":1,"base":,"time":17,"state":{"site":"","ring":"stable","n":1,"effect":"","phase":"ok"},"apps":[{"name":"","version":"1.0.0","phase":"ok","ready":1,"wanted":1,"applied":0}]}`

var deflaters = sync.Pool{New: func() any {
	w, err := flate.NewWriterDict(io.Discard, flate.BestCompression, []byte(dictionary1))
	if err != nil {
		panic(err) // the level is a constant
	}
	return w
}}

// Encode writes a message in its shorter form.
func Encode(message any) ([]byte, error) {
	plain, err := json.Marshal(message)
	if err != nil {
		return nil, fmt.Errorf("encode %T: %w", message, err)
	}
	packed := bytes.NewBuffer([]byte{deflated})
	w := deflaters.Get().(*flate.Writer)
	defer deflaters.Put(w)
	w.Reset(packed) // keeps the dictionary
	w.Write(plain)  // a buffer takes everything
	w.Close()
	if packed.Len() < len(plain) {
		return packed.Bytes(), nil
	}
	return plain, nil
}

// validated is a message that knows its bounds.
type validated interface{ Validate() error }

// Decode reads one message of at most limit bytes, packed and unpacked; 0 means
// MaxBytes. Message is a pointer; if it has a Validate method, that has been
// passed when Decode returns nil. Its error is ErrOversized or ErrMalformed, or
// the reader's.
func Decode(r io.Reader, limit int64, message any) error {
	if limit == 0 {
		limit = MaxBytes
	}
	data, err := readAll(r, limit)
	if err != nil {
		return fmt.Errorf("decode %T: %w", message, err)
	}
	if len(data) > 0 && data[0] == deflated {
		inflater := flate.NewReaderDict(bytes.NewReader(data[1:]), []byte(dictionary1))
		data, err = readAll(inflater, limit)
		if err != nil && !errors.Is(err, ErrOversized) {
			err = fmt.Errorf("%w: %v", ErrMalformed, err)
		}
		if err != nil {
			return fmt.Errorf("decode %T: %w", message, err)
		}
	}
	if err := json.Unmarshal(data, message); err != nil {
		return fmt.Errorf("decode %T: %w: %v", message, ErrMalformed, err)
	}
	if v, ok := message.(validated); ok {
		if err := v.Validate(); err != nil {
			return fmt.Errorf("decode %T: %w: %v", message, ErrMalformed, err)
		}
	}
	return nil
}

func readAll(r io.Reader, limit int64) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%w: more than %d bytes", ErrOversized, limit)
	}
	return data, nil
}

// Bounds of what a message may hold.
const (
	maxName   = 256
	maxDetail = 2 << 10
	maxList   = 512
)

// name checks a word that programs compare: short, and nothing that a terminal
// would obey.
func name(field, s string) error {
	if len(s) > maxName {
		return fmt.Errorf("%s: longer than %d bytes", field, maxName)
	}
	if strings.ContainsFunc(s, unprintable) {
		return fmt.Errorf("%s: holds control characters", field)
	}
	return nil
}

func unprintable(r rune) bool { return !unicode.IsGraphic(r) }

// Clean makes text of other people's programs fit for a message and a terminal:
// control characters become spaces, and the end of a long text is cut.
func Clean(s string) string {
	s = strings.Map(func(r rune) rune {
		if unprintable(r) || r == unicode.ReplacementChar {
			return ' '
		}
		return r
	}, s)
	for len(s) > maxDetail {
		cut := maxDetail - len("…")
		for cut > 0 && s[cut]&0xc0 == 0x80 { // not inside a character
			cut--
		}
		s = s[:cut] + "…"
	}
	return s
}

func list[T any](field string, l []T) error {
	if len(l) > maxList {
		return fmt.Errorf("%s: more than %d", field, maxList)
	}
	return nil
}
