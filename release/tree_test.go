package release

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
)

// Ids that git 2.39 gives to these objects in a SHA-256 repository.
func TestHashObject(t *testing.T) {
	for _, c := range []struct{ kind, data, want string }{
		{KindBlob, "", "473a0f4c3be8a93681a267e3b1e9a7dcda1185436fe141f7749120a303721813"},
		{KindTree, "", "6ef19b41225c5369f1c104d45d8d85efa9b057b53b14b4b9b939dd74decc5321"},
	} {
		if got := HashObject(c.kind, []byte(c.data)); got.String() != c.want {
			t.Errorf("%s %q: got %s, want %s", c.kind, c.data, got, c.want)
		}
	}
}

func TestParseTree(t *testing.T) {
	e := func(mode Mode, name string) Entry { return Entry{mode, name, ObjectID{7}} }
	for name, c := range map[string]struct {
		entries []Entry
		want    error
	}{
		"OK empty":            {nil, nil},
		"OK order":            {[]Entry{e(ModeFile, "a"), e(ModeFile, "a-b"), e(ModeFile, "a.b"), e(ModeFolder, "aa"), e(ModeExec, "b")}, nil},
		"OK folder order":     {[]Entry{e(ModeFile, "a-b"), e(ModeFolder, "a"), e(ModeFile, "a0")}, nil},
		"OK odd names":        {[]Entry{e(ModeFile, "..."), e(ModeFile, ".gitignore"), e(ModeFile, "a b"), e(ModeFile, "ü")}, nil},
		"ErrUnsorted":         {[]Entry{e(ModeFile, "b"), e(ModeFile, "a")}, ErrName},
		"ErrFolderUnsorted":   {[]Entry{e(ModeFolder, "a"), e(ModeFile, "a-b")}, ErrName},
		"ErrDuplicate":        {[]Entry{e(ModeFile, "a"), e(ModeFile, "a")}, ErrName},
		"ErrFileAndFolder":    {[]Entry{e(ModeFile, "a"), e(ModeFolder, "a")}, ErrName},
		"ErrFileAndFolderFar": {[]Entry{e(ModeFile, "a"), e(ModeFile, "a-b"), e(ModeFile, "a.b"), e(ModeFolder, "a")}, ErrName},
		"ErrDot":              {[]Entry{e(ModeFile, ".")}, ErrName},
		"ErrDotDot":           {[]Entry{e(ModeFolder, "..")}, ErrName},
		"ErrEmpty":            {[]Entry{e(ModeFile, "")}, ErrName},
		"ErrSlash":            {[]Entry{e(ModeFile, "a/b")}, ErrName},
		"ErrAbsolute":         {[]Entry{e(ModeFile, "/etc")}, ErrName},
		"ErrGit":              {[]Entry{e(ModeFolder, ".git")}, ErrName},
		"ErrGitCase":          {[]Entry{e(ModeFolder, ".GiT")}, ErrName},
		"ErrGitShort":         {[]Entry{e(ModeFolder, "GIT~1")}, ErrName},
		"ErrBackslash":        {[]Entry{e(ModeFile, `a\b`)}, ErrName},
		"ErrLineBreak":        {[]Entry{e(ModeFile, "a\nb")}, ErrName},
		"ErrUTF8":             {[]Entry{e(ModeFile, "a\xff")}, ErrName},
		"ErrLong":             {[]Entry{e(ModeFile, strings.Repeat("a", 256))}, ErrName},
		"ErrSymlink":          {[]Entry{e("120000", "a")}, ErrMode},
		"ErrSubmodule":        {[]Entry{e("160000", "a")}, ErrMode},
		"ErrModeZero":         {[]Entry{e("040000", "a")}, ErrMode},
		"ErrModeGroup":        {[]Entry{e("100664", "a")}, ErrMode},
		"ErrModeEmpty":        {[]Entry{e("", "a")}, ErrMode},
	} {
		t.Run(name, func(t *testing.T) {
			data := EncodeTree(c.entries)
			got, err := ParseTree(data)
			if !errors.Is(err, c.want) {
				t.Fatalf("got %v, want %v", err, c.want)
			}
			if c.want != nil {
				return
			}
			if diff := cmp.Diff(c.entries, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			for n := 1; n < len(data); n++ {
				if part, err := ParseTree(data[:n]); err == nil && !bytes.Equal(EncodeTree(part), data[:n]) {
					t.Errorf("%d of %d bytes are taken for a whole", n, len(data))
				}
			}
		})
	}
}

func TestParseTreeTooMany(t *testing.T) {
	entries := make([]Entry, DefaultLimits().Entries+1)
	for i := range entries {
		entries[i] = Entry{Mode: ModeFile, Name: fmt.Sprintf("%06d", i)}
	}
	if _, err := ParseTree(EncodeTree(entries)); !errors.Is(err, ErrOversized) {
		t.Errorf("got %v, want ErrOversized", err)
	}
	if got, err := ParseTree(EncodeTree(entries[1:])); err != nil || len(got) != DefaultLimits().Entries {
		t.Errorf("at the limit: %v", err)
	}
}

func files(names ...string) fstest.MapFS {
	m := fstest.MapFS{}
	for _, n := range names {
		m[n] = &fstest.MapFile{Data: []byte("data of " + n), Mode: 0o644}
	}
	return m
}

func TestImportAndTreeFS(t *testing.T) {
	tree := files("fleet.yaml", "a.b", "a/x", "a/y/z", "a-b")
	tree["a/run"] = &fstest.MapFile{Data: []byte("#!"), Mode: 0o755}
	tree["empty/below"] = &fstest.MapFile{Mode: fs.ModeDir | 0o755}
	o := Objects{}
	root := must(Import(tree, o.Add))(t)
	shown := TreeFS(o, root)
	if err := fstest.TestFS(shown, "fleet.yaml", "a.b", "a/x", "a/y/z", "a-b", "a/run"); err != nil {
		t.Error(err)
	}
	if st, err := fs.Stat(shown, "a/run"); err != nil || st.Mode() != 0o755 || st.Size() != 2 {
		t.Errorf("a/run: %v, %v", st, err)
	}
	if _, err := fs.Stat(shown, "empty"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("empty folder: got %v, want fs.ErrNotExist", err)
	}
	if _, err := fs.Stat(shown, "fleet.yaml/x"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("below a file: got %v, want fs.ErrNotExist", err)
	}
	if again := must(Import(shown, nil))(t); again != root {
		t.Errorf("imported again: got %s, want %s", again, root)
	}
	var walked []string
	if err := Walk(o, root, func(p string, e Entry) error {
		walked = append(walked, p)
		if p == "a" {
			return SkipTree
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{".", "a-b", "a.b", "a", "fleet.yaml"}, walked); diff != "" {
		t.Errorf("walk (-want +got):\n%s", diff)
	}
}

func TestTreeFSVerifies(t *testing.T) {
	o := Objects{}
	root := must(Import(files("a/b", "c"), o.Add))(t)
	blob, folder := o.at(root, "a/b"), o.at(root, "a")
	o[blob] = Object{KindBlob, []byte("other bytes")}
	if _, err := fs.ReadFile(TreeFS(o, root), "a/b"); !errors.Is(err, ErrAltered) {
		t.Errorf("altered file: got %v, want ErrAltered", err)
	}
	o[folder] = Object{KindTree, EncodeTree([]Entry{{ModeFile, "b", o.at(root, "c")}})}
	if _, err := fs.ReadFile(TreeFS(o, root), "a/b"); !errors.Is(err, ErrAltered) {
		t.Errorf("altered folder: got %v, want ErrAltered", err)
	}
	delete(o, folder)
	if _, err := fs.ReadDir(TreeFS(o, root), "a"); !errors.Is(err, ErrObjectMissing) {
		t.Errorf("missing folder: got %v, want ErrObjectMissing", err)
	}
	if _, err := fs.ReadDir(TreeFS(o, root), "."); err != nil {
		t.Errorf("the listing above: %v", err)
	}
	if _, err := fs.ReadFile(TreeFS(o, root), "../c"); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("outside: got %v, want fs.ErrInvalid", err)
	}
}

func TestImportRefuses(t *testing.T) {
	big := &fstest.MapFile{Data: make([]byte, DefaultLimits().Object+1)}
	for name, c := range map[string]struct {
		path string
		file *fstest.MapFile
		want error
	}{
		"ErrSymlink":   {"sites/l", &fstest.MapFile{Mode: fs.ModeSymlink}, ErrMode},
		"ErrSubmodule": {"sites/s", &fstest.MapFile{Mode: fs.ModeIrregular}, ErrMode},
		"ErrDevice":    {"sites/d", &fstest.MapFile{Mode: fs.ModeDevice}, ErrMode},
		"ErrOversized": {"sites/big", big, ErrOversized},
		"ErrGit":       {"sites/.git/config", &fstest.MapFile{}, ErrName},
		"ErrName":      {`sites/a\b`, &fstest.MapFile{}, ErrName},
		"ErrDeep":      {strings.Repeat("d/", 30) + "f", &fstest.MapFile{}, ErrOversized},
	} {
		tree := files("fleet.yaml")
		tree[c.path] = c.file
		if _, err := Import(tree, nil); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
	}
	stop := errors.New("stop")
	if _, err := Import(files("a"), func(ObjectID, string, []byte) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("fault of add: got %v", err)
	}
}

// What Import takes at its deepest, a machine takes too.
func TestDeepestFolder(t *testing.T) {
	o := Objects{}
	name := strings.Repeat("d/", DefaultLimits().Depth) + "f"
	root := must(Import(files(name), o.Add))(t)
	if _, err := fs.ReadFile(TreeFS(o, root), name); err != nil {
		t.Error(err)
	}
	if err := Walk(o, root, func(string, Entry) error { return nil }); err != nil {
		t.Error(err)
	}
	if _, err := Import(files("d/"+name), nil); !errors.Is(err, ErrOversized) {
		t.Errorf("one deeper: got %v, want ErrOversized", err)
	}
}
