package efivar

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"unicode/utf16"
)

// Dir is where efivarfs is mounted.
const Dir = "/sys/firmware/efi/efivars"

// Vendors of variables.
const (
	Loader   = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f" // the boot loader interface of systemd
	holdfast = "010b6743-534b-40ad-a472-ec9eb8b1c11f"
)

// kept is the attributes of a variable that outlives a boot and that programs of
// the OS may change (UEFI 2.10, section 8.2): non-volatile, boot and run time.
var kept = []byte{7, 0, 0, 0}

// header is the bytes of attributes before those of the variable.
const header = 4

// most is the size of a variable that is read here; errSize is of one that is not.
const most = 4 << 10

var errSize = errors.New("not a variable")

func file(dir, name, vendor string) string { return filepath.Join(dir, name+"-"+vendor) }

// read reads a variable, without its attributes. fs.ErrNotExist: there is none.
func read(dir, name, vendor string) ([]byte, error) {
	fail := func(err error) ([]byte, error) {
		return nil, fmt.Errorf("read the firmware's variable %s: %w", name, err)
	}
	f, err := os.Open(file(dir, name, vendor))
	if err != nil {
		return fail(err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && (len(data) < header || len(data) > most) {
		err = fmt.Errorf("%w: it has %d bytes or more: want %d to %d", errSize, len(data), header, most)
	}
	if err != nil {
		return fail(err)
	}
	return data[header:], nil
}

// write makes or replaces a variable, in the one write that the firmware wants.
func write(dir, name, vendor string, data []byte) error {
	path := file(dir, name, vendor)
	err := mutable(path)
	if err == nil {
		err = writeOnce(path, append(bytes.Clone(kept), data...))
	}
	if err != nil {
		return fmt.Errorf("write the firmware's variable %s: %w", name, err)
	}
	return nil
}

func writeOnce(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Close())
}

func remove(dir, name, vendor string) error {
	path := file(dir, name, vendor)
	err := mutable(path)
	if err == nil {
		err = os.Remove(path)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the firmware's variable %s: %w", name, err)
	}
	return nil
}

// LoaderText is a variable of the boot loader that is text, in lower case; empty
// where there is none, as without firmware.
func LoaderText(dir, name string) (string, error) {
	data, err := read(dir, name, Loader)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return strings.ToLower(decode(data)), err
}

// Unprotected says why the firmware checks nothing of what it starts (UEFI 2.10,
// section 32.3); "" where it does, or where no firmware started this machine.
func Unprotected(dir string) string {
	if _, err := os.Stat(dir); err != nil {
		return ""
	}
	is := func(name string) bool {
		state, err := read(dir, name, global)
		return err == nil && bytes.Equal(state, []byte{1})
	}
	switch {
	case is("SecureBoot"):
		return ""
	case is("SetupMode"):
		return "Secure Boot is in setup mode"
	}
	return "Secure Boot is off"
}

// BootOnce tells the boot loader which entry to boot next time, once.
func BootOnce(dir, entry string) error {
	return write(dir, "LoaderEntryOneShot", Loader, encode(entry))
}

// decode is the text of a variable: UTF-16, which may end in a NUL.
func decode(data []byte) string {
	var units []uint16
	for ; len(data) >= 2; data = data[2:] {
		units = append(units, uint16(data[0])|uint16(data[1])<<8)
	}
	text, _, _ := strings.Cut(string(utf16.Decode(units)), "\x00")
	return text
}

func encode(text string) (data []byte) {
	for _, u := range append(utf16.Encode([]rune(text)), 0) {
		data = append(data, byte(u), byte(u>>8))
	}
	return data
}
