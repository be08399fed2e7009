package release

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// The kinds of objects.
const (
	KindTree = "tree"
	KindBlob = "blob"
)

// Object is a file or a folder listing, as Git stores it.
type Object struct {
	Kind string
	Data []byte
}

// ID is the SHA-256 Git id of the object.
func (o Object) ID() ObjectID { return HashObject(o.Kind, o.Data) }

// HashObject is the id that a SHA-256 Git repository gives to these bytes.
func HashObject(kind string, data []byte) ObjectID {
	h := sha256.New()
	h.Write([]byte(kind + " " + strconv.Itoa(len(data)) + "\x00"))
	h.Write(data)
	return ObjectID(h.Sum(nil))
}

// Source is where objects are found by id. What it returns is hashed again by whoever uses it; a Source is trusted with nothing.
type Source interface {
	// Object returns ErrObjectMissing when there is no such object.
	Object(id ObjectID) (kind string, data []byte, err error)
}

// Objects is a Source in memory.
type Objects map[ObjectID]Object

// Object is Source.
func (o Objects) Object(id ObjectID) (string, []byte, error) {
	obj, ok := o[id]
	if !ok {
		return "", nil, fmt.Errorf("object %s: %w", id, ErrObjectMissing)
	}
	return obj.Kind, obj.Data, nil
}

// Add puts an object in; it has the shape that Import wants.
func (o Objects) Add(id ObjectID, kind string, data []byte) error {
	o[id] = Object{kind, data}
	return nil
}

// fetch takes an object from src and makes sure that it is the one.
func fetch(src Source, id ObjectID, kind string) ([]byte, error) {
	got, data, err := src.Object(id)
	if err != nil {
		return nil, err
	}
	if limit := DefaultLimits().Object; len(data) > limit {
		return nil, fmt.Errorf("object %s: %w: %d bytes, at most %d", id, ErrOversized, len(data), limit)
	}
	if got != kind || HashObject(kind, data) != id {
		return nil, fmt.Errorf("object %s: %w: got a %s with the id %s, want a %s", id, ErrAltered, got, HashObject(got, data), kind)
	}
	return data, nil
}

// Mode is what an entry of a folder is. There are three, spelled as Git spells them.
type Mode string

// The modes that are allowed.
const (
	ModeFile   Mode = "100644"
	ModeExec   Mode = "100755"
	ModeFolder Mode = "40000"
)

// Entry is one name in a folder.
type Entry struct {
	Mode Mode
	Name string
	ID   ObjectID
}

// Kind is the kind of the object that the entry names.
func (e Entry) Kind() string {
	if e.Mode == ModeFolder {
		return KindTree
	}
	return KindBlob
}

// sortKey orders entries as Git does: a folder as if its name ended in a slash.
func (e Entry) sortKey() string {
	if e.Mode == ModeFolder {
		return e.Name + "/"
	}
	return e.Name
}

// EncodeTree writes a folder listing. The entries must be valid and in order.
func EncodeTree(entries []Entry) []byte {
	var b bytes.Buffer
	for _, e := range entries {
		b.WriteString(string(e.Mode))
		b.WriteByte(' ')
		b.WriteString(e.Name)
		b.WriteByte(0)
		b.Write(e.ID[:])
	}
	return b.Bytes()
}

// ParseTree reads a folder listing, strictly: entries in Git's order, no name twice, no name that leads elsewhere,
// no symlink, no submodule, no mode spelled in another way.
func ParseTree(data []byte) ([]Entry, error) {
	limits := DefaultLimits()
	if len(data) > limits.Object {
		return nil, fmt.Errorf("read folder: %w: %d bytes, at most %d", ErrOversized, len(data), limits.Object)
	}
	var entries []Entry
	for len(data) > 0 {
		if len(entries) == limits.Entries {
			return nil, fmt.Errorf("read folder: %w: more than %d names", ErrOversized, limits.Entries)
		}
		e, rest, err := parseEntry(data)
		if err != nil {
			return nil, fmt.Errorf("read folder: %w", err)
		}
		if n := len(entries); n > 0 && entries[n-1].sortKey() >= e.sortKey() {
			return nil, fmt.Errorf("read folder: %w: %q after %q", ErrName, e.Name, entries[n-1].Name)
		}
		entries, data = append(entries, e), rest
	}
	return entries, checkTwice(entries)
}

// checkTwice finds a file and a folder of one name, which Git's order lets stand apart ("a", "a.b", "a/").
func checkTwice(entries []Entry) error {
	for i, e := range entries {
		if e.Mode != ModeFolder {
			continue
		}
		_, twice := slices.BinarySearchFunc(entries[:i], e.Name, func(o Entry, name string) int { return strings.Compare(o.sortKey(), name) })
		if twice {
			return fmt.Errorf("read folder: %w: %q is there twice", ErrName, e.Name)
		}
	}
	return nil
}

func parseEntry(data []byte) (e Entry, rest []byte, err error) {
	head, rest, ok := bytes.Cut(data, []byte{0})
	if !ok || len(rest) < len(e.ID) {
		return e, nil, fmt.Errorf("%w: a listing ends within an entry", ErrTruncated)
	}
	mode, name, _ := strings.Cut(string(head), " ")
	switch e = (Entry{Mode(mode), name, ObjectID(rest[:len(e.ID)])}); e.Mode {
	case ModeFile, ModeExec, ModeFolder:
	case "120000":
		return e, nil, fmt.Errorf("%w: %q is a symlink; put the file itself there", ErrMode, name)
	case "160000":
		return e, nil, fmt.Errorf("%w: %q is a submodule; put the files themselves there", ErrMode, name)
	default:
		return e, nil, fmt.Errorf("%w: %q has the mode %q", ErrMode, name, mode)
	}
	return e, rest[len(e.ID):], checkName(name)
}

// checkName refuses names that are not one step down, that Git keeps for itself, or that a terminal or another system would read differently.
func checkName(name string) error {
	limit := DefaultLimits().Name
	var err error
	switch {
	case name == "" || name == "." || name == "..":
		err = errors.New("it does not name anything in its folder")
	case len(name) > limit:
		err = fmt.Errorf("more than %d bytes", limit)
	case strings.ContainsAny(name, "/\\"):
		err = errors.New("a slash")
	case strings.EqualFold(name, ".git") || strings.EqualFold(name, "git~1"):
		err = errors.New("Git keeps it for itself")
	default:
		err = checkText(name)
	}
	if err != nil {
		return fmt.Errorf("%w: %q: %w", ErrName, name, err)
	}
	return nil
}
