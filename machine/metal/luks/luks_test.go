package luks

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

const deviceSize = 32 << 20

var (
	key    = bytes.Repeat([]byte("k"), KeySize)
	secret = bytes.Repeat([]byte("s"), MinSecret)
	other  = bytes.Repeat([]byte("o"), MinSecret)
)

func file(t *testing.T) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(deviceSize); err != nil {
		t.Fatal(err)
	}
	return f
}

func format(t *testing.T, d Device, c Change) *Volume {
	t.Helper()
	v, err := Format(d, deviceSize, "holdfast-state", "holdfast", key, c)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func cryptsetup(t *testing.T, stdin []byte, args ...string) (string, error) {
	t.Helper()
	cmd := exec.Command("cryptsetup", args...)
	cmd.Stdin = bytes.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("cryptsetup (apt install cryptsetup-bin): %v", err)
	}
	return string(out), err
}

func TestCryptsetupOpensOurs(t *testing.T) {
	f := file(t)
	v := format(t, f, Change{Slots: map[int][]byte{0: secret, 1: other},
		Tokens: map[int]*Token{0: {Type: "holdfast-tpm2", Slots: []int{0}, Data: map[string]string{"slot": "a", "blob": "AAAA"}}}})
	test := func(slot int, with []byte, good bool) {
		t.Helper()
		out, err := cryptsetup(t, with, "open", "--test-passphrase", "--key-file", "-", "--key-slot", fmt.Sprint(slot), f.Name())
		if (err == nil) != good {
			t.Errorf("slot %d: %v %s", slot, err, out)
		}
	}
	test(0, secret, true)
	test(0, other, false)
	test(1, other, true)
	out, err := cryptsetup(t, nil, "luksDump", f.Name())
	if err != nil {
		t.Fatal(err, out)
	}
	for _, want := range []string{"holdfast-state", v.UUID(), "holdfast-tpm2", "sector: 4096", "aes-xts-plain64", "offset: 4194304"} {
		if !strings.Contains(out, want) {
			t.Errorf("luksDump does not show %q:\n%s", want, out)
		}
	}
	if err := v.Apply(key, Change{Slots: map[int][]byte{0: other, 1: nil}, Tokens: map[int]*Token{3: {Type: "x", Slots: []int{0}}}}); err != nil {
		t.Fatal(err)
	}
	test(0, other, true)
	test(0, secret, false)
	test(1, other, false)
	if out, err := cryptsetup(t, nil, "luksDump", "--debug-json", f.Name()); err != nil || strings.Contains(out, "holdfast-tpm2") {
		t.Errorf("the token of the replaced slot is still there: %v %s", err, out)
	}
	// cryptsetup mends what we read from the second copy.
	if _, err := f.WriteAt(make([]byte, 4096), 0); err != nil {
		t.Fatal(err)
	}
	test(0, other, true)
}

func TestOpensCryptsetups(t *testing.T) {
	for name, args := range map[string][]string{
		"pbkdf2":   {"--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"},
		"argon2id": {"--pbkdf", "argon2id", "--pbkdf-force-iterations", "4", "--pbkdf-memory", "8192", "--pbkdf-parallel", "2"},
	} {
		t.Run(name, func(t *testing.T) {
			f := file(t)
			args := append([]string{"luksFormat", "-q", "--type", "luks2", "--sector-size", "4096", "--key-file", "-"}, append(args, f.Name())...)
			if out, err := cryptsetup(t, secret, args...); err != nil {
				t.Fatal(err, out)
			}
			v, err := Open(f)
			if err != nil {
				t.Fatal(err)
			}
			k, err := v.Unlock(0, secret)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := v.Unlock(0, other); !errors.Is(err, ErrSecret) {
				t.Errorf("another secret: %v", err)
			}
			if v.Quick(0) != (name == "pbkdf2") {
				t.Errorf("quick: %v", v.Quick(0))
			}
			if err := v.Apply(k, Change{Slots: map[int][]byte{5: other}}); err != nil {
				t.Fatal(err)
			}
			if out, err := cryptsetup(t, other, "open", "--test-passphrase", "--key-file", "-", "--key-slot", "5", f.Name()); err != nil {
				t.Error("cryptsetup and the slot that we added:", err, out)
			}
			if got, err := v.Unlock(5, other); err != nil || !bytes.Equal(got, k) {
				t.Errorf("our own slot: %v", err)
			}
		})
	}
}

// The bytes that device-mapper would show are those that cryptsetup thinks of: both agree on the key.
func TestSameVolumeKey(t *testing.T) {
	f := file(t)
	format(t, f, Change{Slots: map[int][]byte{0: secret}})
	to := filepath.Join(t.TempDir(), "key")
	if out, err := cryptsetup(t, secret, "luksDump", "-q", "--dump-volume-key", "--volume-key-file", to, "--key-file", "-", f.Name()); err != nil {
		t.Fatal(err, out)
	}
	if got, err := os.ReadFile(to); err != nil || !bytes.Equal(got, key) {
		t.Errorf("cryptsetup finds the key %x, %v", got, err)
	}
}

func TestSlotsAndTokens(t *testing.T) {
	f := file(t)
	v := format(t, f, Change{Slots: map[int][]byte{0: secret}})
	if err := v.Apply([]byte("wrong"), Change{Slots: map[int][]byte{1: other}}); !errors.Is(err, ErrSecret) {
		t.Errorf("a slot for another key: %v", err)
	}
	if err := v.Apply(key, Change{Slots: map[int][]byte{1: other[:31]}}); err == nil {
		t.Error("a short secret")
	}
	if err := v.Apply(key, Change{Slots: map[int][]byte{32: other}}); !errors.Is(err, ErrSlot) {
		t.Errorf("slot 32: %v", err)
	}
	if err := v.Apply(nil, Change{Tokens: map[int]*Token{0: {Type: "x", Slots: []int{9}}}}); !errors.Is(err, ErrSlot) && err == nil {
		t.Error("a token for a slot that is not there")
	}
	if err := v.Apply(nil, Change{Tokens: map[int]*Token{0: {Type: "x", Data: map[string]string{"y": strings.Repeat("z", 13000)}}}}); err == nil {
		t.Error("a token that does not fit")
	}
	token := Token{Type: "t", Slots: []int{0}, Data: map[string]string{"a": "b"}}
	if err := v.Apply(nil, Change{Tokens: map[int]*Token{7: &token}}); err != nil {
		t.Fatal(err)
	}
	again, err := Open(f)
	if err != nil {
		t.Fatal(err)
	}
	if got := again.Tokens(); !reflect.DeepEqual(got, map[int]Token{7: token}) {
		t.Errorf("tokens %v", got)
	}
	if got := again.Slots(); !slices.Equal(got, []int{0}) {
		t.Errorf("slots %v", got)
	}
	if got, err := again.Unlock(0, secret); err != nil || !bytes.Equal(got, key) || !again.Quick(0) || again.Quick(1) {
		t.Errorf("unlock: %v", err)
	}
	if _, err := again.Unlock(1, secret); !errors.Is(err, ErrSlot) {
		t.Errorf("a slot that is not there: %v", err)
	}
	for i := range 5 { // areas come round
		if err := v.Apply(key, Change{Slots: map[int][]byte{0: other}}); err != nil {
			t.Fatal(i, err)
		}
	}
}

func TestRemovedSlotIsWiped(t *testing.T) {
	f := file(t)
	v := format(t, f, Change{Slots: map[int][]byte{0: secret, 1: other}})
	a := v.h.meta.Keyslots["1"].Area
	if err := v.Apply(nil, Change{Slots: map[int][]byte{1: nil}}); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, a.Size)
	if _, err := f.ReadAt(b, a.Offset); err != nil || !bytes.Equal(b, make([]byte, a.Size)) {
		t.Errorf("key material of a removed slot stays: %v", err)
	}
}

func TestOldHeaderDoesNotWin(t *testing.T) {
	f := file(t)
	v := format(t, f, Change{Slots: map[int][]byte{0: secret}})
	for range 3 {
		if err := v.Apply(nil, Change{Tokens: map[int]*Token{0: {Type: "x", Slots: []int{0}}}}); err != nil {
			t.Fatal(err)
		}
	}
	whole := snapshot(t, f)
	r := &recorder{File: f}
	if _, err := Format(r, deviceSize, "", "", bytes.Repeat([]byte("n"), KeySize), Change{Slots: map[int][]byte{0: other}}); err != nil {
		t.Fatal(err)
	}
	r.eachCut(t, whole, func(d Device, done bool) {
		v, err := Open(d)
		switch {
		case err == nil:
			_, old := v.Unlock(0, secret)
			_, now := v.Unlock(0, other)
			if old != nil && now != nil && len(v.Slots()) > 0 && done {
				t.Errorf("neither: %v, %v", old, now)
			}
			if done && now != nil {
				t.Errorf("formatted, and: %v", now)
			}
		case done:
			t.Error("formatted, and:", err)
		case !errors.Is(err, ErrNone) && !errors.Is(err, ErrDamaged):
			t.Error(err)
		}
	})
}

// recorder keeps what is written, in order, with syncs.
type recorder struct {
	*os.File
	log []write
}

type write struct {
	at   int64
	data []byte // nil: a sync
}

func (r *recorder) WriteAt(b []byte, at int64) (int, error) {
	r.log = append(r.log, write{at, bytes.Clone(b)})
	return r.File.WriteAt(b, at)
}

func (r *recorder) Sync() error {
	r.log = append(r.log, write{})
	return nil
}

// looked is as much of a disk as the tests of power cuts look at: headers and the first few slots.
const looked = 2 << 20

func snapshot(t *testing.T, f *os.File) []byte {
	t.Helper()
	b := make([]byte, looked)
	if _, err := f.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	return b
}

// eachCut shows the disk as a power cut leaves it at each write: what was synced is there, and of what was not, nothing, or all but the last, or the last
// alone and of that one the beginning or the end.
func (r *recorder) eachCut(t *testing.T, before []byte, check func(d Device, done bool)) {
	t.Helper()
	synced := bytes.Clone(before)
	var loose []write
	scratch := &memory{}
	show := func(last write) {
		scratch.b = append(scratch.b[:0], synced...)
		copy(scratch.b[last.at:], last.data)
		check(scratch, false)
	}
	for _, w := range r.log {
		if w.at >= looked {
			continue // the wiping of what the test has no slot in
		}
		if w.data == nil {
			for _, l := range loose {
				copy(synced[l.at:], l.data)
			}
			loose = nil
			show(write{})
			continue
		}
		loose = append(loose, w)
		half := len(w.data) / 1024 * 512
		show(w)
		show(write{w.at, w.data[:min(512, half)]})
		show(write{w.at, w.data[:half]})
		show(write{w.at + int64(half), w.data[half:]})
	}
	if len(loose) > 0 {
		t.Error("the last writes are not synced")
	}
	scratch.b = append(scratch.b[:0], synced...)
	check(scratch, true)
}

type memory struct{ b []byte }

func (m *memory) ReadAt(b []byte, at int64) (int, error) {
	if at >= int64(len(m.b)) {
		return 0, io.EOF
	}
	n := copy(b, m.b[at:])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (m *memory) WriteAt(b []byte, at int64) (int, error) { return copy(m.b[at:], b), nil }
func (m *memory) Sync() error                             { return nil }

// TestPowerCut replaces a slot and its token with the power failing at each
// write, and after that, on what the cut left, does it again with the power
// failing again: the volume always opens by the old secret and its token or by
// the new ones, and never by nothing.
func TestPowerCut(t *testing.T) {
	third := bytes.Repeat([]byte("3"), MinSecret)
	change := func(d Device, to []byte) error {
		v, err := Open(d)
		if err != nil {
			return err
		}
		return v.Apply(key, Change{Slots: map[int][]byte{0: to}, Tokens: map[int]*Token{0: {Type: string(to[:1]), Slots: []int{0}}}})
	}
	opens := func(d Device, by ...[]byte) []byte {
		v, err := Open(d)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range by {
			if got, err := v.Unlock(0, s); err == nil {
				if !bytes.Equal(got, key) || v.Tokens()[0].Type != string(s[:1]) {
					t.Fatalf("opens by %q with token %q", s[:1], v.Tokens()[0].Type)
				}
				return s
			}
		}
		t.Fatal("opens by nothing")
		return nil
	}
	f := file(t)
	format(t, f, Change{Slots: map[int][]byte{0: secret}, Tokens: map[int]*Token{0: {Type: "s", Slots: []int{0}}}})
	before := snapshot(t, f)
	r := &recorder{File: f}
	if err := change(r, other); err != nil {
		t.Fatal(err)
	}
	states := 0
	var left [][]byte
	r.eachCut(t, before, func(d Device, done bool) {
		states++
		if by := opens(d, secret, other); done && !bytes.Equal(by, other) {
			t.Errorf("done, and opens by %q", by[:1])
		}
		b := d.(*memory).b
		if states%3 == 0 && !slices.ContainsFunc(left, func(l []byte) bool { return bytes.Equal(l, b) }) {
			left = append(left, bytes.Clone(b))
		}
	})
	for _, l := range left {
		if _, err := f.WriteAt(l, 0); err != nil {
			t.Fatal(err)
		}
		r := &recorder{File: f}
		if err := change(r, third); err != nil {
			t.Fatal(err)
		}
		r.eachCut(t, l, func(d Device, done bool) {
			states++
			if by := opens(d, third, secret, other); done && !bytes.Equal(by, third) {
				t.Errorf("done twice, and opens by %q", by[:1])
			}
		})
	}
	if states < 100 {
		t.Errorf("%d states: the test does not test", states)
	}
}

func TestOpenRefuses(t *testing.T) {
	f := file(t)
	if _, err := Open(f); !errors.Is(err, ErrNone) {
		t.Errorf("a blank disk: %v", err)
	}
	if there, err := Present(f); there || err != nil {
		t.Errorf("a blank disk: %v, %v", there, err)
	}
	format(t, f, Change{Slots: map[int][]byte{0: secret}})
	flip := func(at int64) {
		b := make([]byte, 1)
		f.ReadAt(b, at)
		b[0] ^= 1
		f.WriteAt(b, at)
	}
	flip(5000)
	v, err := Open(f)
	if err != nil || !v.mend {
		t.Fatalf("the first copy damaged: %v", err)
	}
	if err := v.Apply(nil, Change{Tokens: map[int]*Token{1: {Type: "x"}}}); err != nil {
		t.Fatal(err)
	}
	if v, err := Open(f); err != nil || v.mend {
		t.Errorf("not mended: %v", err)
	}
	flip(5000)
	flip(headerSize + 5000)
	if _, err := Open(f); !errors.Is(err, ErrDamaged) {
		t.Errorf("both copies damaged: %v", err)
	}
	if there, err := Present(f); !there || err != nil {
		t.Errorf("both copies damaged: present %v, %v", there, err)
	}
	if _, err := Open(broken{f}); errors.Is(err, ErrNone) || errors.Is(err, ErrDamaged) || !errors.Is(err, io.ErrNoProgress) {
		t.Errorf("a disk that fails: %v", err)
	}
	if _, err := Open(&memory{make([]byte, 100)}); !errors.Is(err, ErrNone) {
		t.Errorf("a tiny disk: %v", err)
	}
	f.WriteAt(make([]byte, 1<<20), 0)
	f.WriteAt([]byte("LUKS\xba\xbe\x00\x01"), 0)
	if there, err := Present(f); !there || err != nil {
		t.Errorf("LUKS1: present %v, %v", there, err)
	}
}

type broken struct{ Device }

func (broken) ReadAt([]byte, int64) (int, error) { return 0, io.ErrNoProgress }

// hostile are changes to our JSON, none of which may be believed.
func TestHostileMetadata(t *testing.T) {
	v := format(t, file(t), Change{Slots: map[int][]byte{0: secret, 1: other}, Tokens: map[int]*Token{0: {Type: "x", Slots: []int{0}}}})
	good, err := json.Marshal(v.h.meta)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := parseMetadata(good, headerSize); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(m map[string]any){
		"iterations":         func(m map[string]any) { at(m, "keyslots", "0", "kdf")["iterations"] = 1 << 30 },
		"digest iterations":  func(m map[string]any) { at(m, "digests", "0")["iterations"] = 1 << 30 },
		"memory":             func(m map[string]any) { at(m, "keyslots", "0")["kdf"] = argon(4, 64<<20, 4) },
		"time":               func(m map[string]any) { at(m, "keyslots", "0")["kdf"] = argon(1<<20, 65536, 4) },
		"threads":            func(m map[string]any) { at(m, "keyslots", "0")["kdf"] = argon(4, 65536, 0) },
		"area in header":     func(m map[string]any) { at(m, "keyslots", "0", "area")["offset"] = "4096" },
		"area in data":       func(m map[string]any) { at(m, "keyslots", "0", "area")["offset"] = "4194304" },
		"negative area":      func(m map[string]any) { at(m, "keyslots", "0", "area")["offset"] = "-4096" },
		"huge area":          func(m map[string]any) { at(m, "keyslots", "0", "area")["size"] = "9223372036854771712" },
		"small area":         func(m map[string]any) { at(m, "keyslots", "0", "area")["size"] = "4096" },
		"overlap":            func(m map[string]any) { at(m, "keyslots", "0")["area"] = at(m, "keyslots", "1")["area"] },
		"key size":           func(m map[string]any) { at(m, "keyslots", "0")["key_size"] = 1 << 20 },
		"stripes":            func(m map[string]any) { at(m, "keyslots", "0", "af")["stripes"] = 1 },
		"null cipher":        func(m map[string]any) { at(m, "segments", "0")["encryption"] = "cipher_null-ecb" },
		"sector size":        func(m map[string]any) { at(m, "segments", "0")["sector_size"] = 1 << 30 },
		"data in header":     func(m map[string]any) { at(m, "segments", "0")["offset"] = "4096" },
		"linear segment":     func(m map[string]any) { at(m, "segments", "0")["type"] = "linear" },
		"two segments":       func(m map[string]any) { at(m, "segments")["1"] = at(m, "segments")["0"] },
		"no segment":         func(m map[string]any) { delete(at(m, "segments"), "0") },
		"slot 32":            func(m map[string]any) { at(m, "keyslots")["32"] = at(m, "keyslots")["0"] },
		"slot 00":            func(m map[string]any) { at(m, "keyslots")["00"] = at(m, "keyslots")["0"] },
		"token without slot": func(m map[string]any) { at(m, "tokens", "0")["keyslots"] = []string{"7"} },
		"token without type": func(m map[string]any) { delete(at(m, "tokens", "0"), "type") },
		"digest of nothing":  func(m map[string]any) { at(m, "digests", "0")["keyslots"] = []string{"9"} },
		"requirement": func(m map[string]any) {
			at(m, "config")["requirements"] = map[string]any{"mandatory": []string{"online-reencrypt"}}
		},
		"unknown key": func(m map[string]any) { m["x"] = 1 },
		"sizes":       func(m map[string]any) { at(m, "config")["keyslots_size"] = "1099511627776" },
		"salt": func(m map[string]any) {
			at(m, "keyslots", "0", "kdf")["salt"] = base64.StdEncoding.EncodeToString(make([]byte, 4000))
		},
	} {
		var m map[string]any
		json.Unmarshal(good, &m)
		change(m)
		b, _ := json.Marshal(m)
		if _, err := parseMetadata(b, headerSize); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func at(m map[string]any, path ...string) map[string]any {
	for _, p := range path {
		m = m[p].(map[string]any)
	}
	return m
}

func argon(time, memory, cpus int) map[string]any {
	return map[string]any{"type": "argon2id", "time": time, "memory": memory, "cpus": cpus, "salt": "AAAA"}
}

func FuzzMetadata(f *testing.F) {
	v, err := Format(&memory{make([]byte, 2*DataOffset)}, deviceSize, "", "", key, Change{Slots: map[int][]byte{0: secret}, Tokens: map[int]*Token{0: {Type: "x", Slots: []int{0}}}})
	if err != nil {
		f.Fatal(err)
	}
	good, _ := json.Marshal(v.h.meta)
	f.Add(good)
	f.Add([]byte(`{"keyslots":{},"tokens":{},"segments":{},"digests":{},"config":{}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseMetadata(b, headerSize)
		if err != nil {
			return
		}
		js, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		again, err := parseMetadata(js, headerSize)
		if err != nil {
			t.Fatalf("our own spelling is refused: %v\n%s", err, js)
		}
		if got, want := slices.Sorted(maps.Keys(again.Keyslots)), slices.Sorted(maps.Keys(m.Keyslots)); !slices.Equal(got, want) {
			t.Errorf("slots %v, want %v", got, want)
		}
		(&Volume{d: &memory{}, h: header{meta: m}}).Tokens()
	})
}

func FuzzHeader(f *testing.F) {
	d := &memory{make([]byte, 2*DataOffset)}
	if _, err := Format(d, deviceSize, "l", "s", key, Change{Slots: map[int][]byte{0: secret}}); err != nil {
		f.Fatal(err)
	}
	f.Add(d.b[:2*headerSize])
	f.Add([]byte("LUKS\xba\xbe\x00\x02"))
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := Open(&memory{b})
		if err == nil {
			v.Tokens()
			v.Slots()
		}
		Present(&memory{b})
	})
}
