package debian

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// member is a part of an ar archive.
func member(name string, data []byte) []byte {
	b := fmt.Appendf(nil, "%-16s%-12d%-6d%-6d%-8s%-10d`\n", name, 0, 0, 0, "100644", len(data))
	b = append(b, data...)
	if len(data)%2 == 1 {
		b = append(b, '\n')
	}
	return b
}

func tarball() []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range []tar.Header{
		{Name: "./usr/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "./usr/bin/mount", Typeflag: tar.TypeReg, Mode: 0o4755, Size: 5},
		{Name: "./usr/bin/link", Typeflag: tar.TypeSymlink, Linkname: "mount"},
		{Name: "./usr/bin/hard", Typeflag: tar.TypeLink, Linkname: "./usr/bin/mount"},
		{Name: "../../etc/escape", Typeflag: tar.TypeReg, Size: 5},
	} {
		w.WriteHeader(&h)
		if h.Size > 0 {
			w.Write([]byte("hello"))
		}
	}
	w.Close()
	return b.Bytes()
}

func deb(packing string, data []byte) []byte {
	return bytes.Join([][]byte{[]byte(arMagic), member("debian-binary", []byte("2.0\n")), member("control.tar.xz", []byte("odd")), member("data.tar"+packing, data)}, nil)
}

func packings() map[string][]byte {
	plain := tarball()
	var gz, x bytes.Buffer
	g := gzip.NewWriter(&gz)
	g.Write(plain)
	g.Close()
	w, _ := xz.NewWriter(&x)
	w.Write(plain)
	w.Close()
	z, _ := zstd.NewWriter(nil)
	return map[string][]byte{"": plain, ".gz": gz.Bytes(), ".xz": x.Bytes(), ".zst": z.EncodeAll(plain, nil)}
}

func pinned(data []byte) Package {
	sum := sha256.Sum256(data)
	return Package{Name: "libgmp10", Version: "2:6.3.0+dfsg-3", Architecture: "amd64", Path: "debian/pool/main/g/gmp/libgmp10_6.3.0+dfsg-3_amd64.deb", Size: int64(len(data)), SHA256: hex.EncodeToString(sum[:])}
}

// mirror serves what it is given, and counts.
func mirror(t *testing.T, data []byte) (string, *atomic.Int32) {
	var asked atomic.Int32
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		if !strings.HasSuffix(r.URL.Path, "/debian/pool/main/g/gmp/libgmp10_6.3.0+dfsg-3_amd64.deb") {
			http.NotFound(w, r)
			return
		}
		w.Write(data)
	}))
	t.Cleanup(s.Close)
	return s.URL, &asked
}

func TestFetch(t *testing.T) {
	good := deb(".xz", packings()[".xz"])
	p := pinned(good)
	ours, asked := mirror(t, good)
	other := bytes.Clone(good)
	other[len(other)-1] ^= 1
	for name, data := range map[string][]byte{"another file": other, "too short": good[:len(good)-1], "too long": append(bytes.Clone(good), 0), "nothing": nil} {
		bad, badAsked := mirror(t, data)
		c := &Cache{Dir: t.TempDir(), Mirrors: []string{bad}}
		if _, err := c.Fetch(t.Context(), p); !errors.Is(err, ErrDigest) {
			t.Errorf("%s: %v", name, err)
		}
		if left, _ := os.ReadDir(c.Dir); len(left) > 0 {
			t.Errorf("%s: %v is left", name, left)
		}
		c.Mirrors = []string{bad, ours}
		path, err := c.Fetch(t.Context(), p)
		if err != nil {
			t.Errorf("%s: the second mirror: %v", name, err)
		}
		if got, _ := os.ReadFile(path); !bytes.Equal(got, good) {
			t.Errorf("%s: the cache has something else", name)
		}
		if filepath.Base(path) != "libgmp10_2%3a6.3.0+dfsg-3_amd64.deb" || badAsked.Load() != 2 {
			t.Errorf("%s: %s, bad mirror asked %d times", name, path, badAsked.Load())
		}
	}
	before := asked.Load()
	c := &Cache{Dir: t.TempDir(), Mirrors: []string{ours}}
	for range 3 {
		if _, err := c.Open(t.Context(), p); err != nil {
			t.Fatal(err)
		}
	}
	if n := asked.Load() - before; n != 1 {
		t.Errorf("asked %d times for one package", n)
	}
	// A damaged cache is no fault, only work.
	for _, file := range []string{p.file(), p.file() + "." + p.SHA256[:16] + ".tar"} {
		path := filepath.Join(c.Dir, file)
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		data[len(data)/2] ^= 1
		os.WriteFile(path, data, 0o644)
	}
	a, err := c.Open(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	if got := list(t, a); !cmp.Equal(got, content) {
		t.Error(cmp.Diff(content, got))
	}
}

var content = map[string]string{"usr/bin/mount": "hello", "usr/bin/link": "-> mount", "etc/escape": "hello"}

func list(t *testing.T, a *Archive) map[string]string {
	t.Helper()
	got := map[string]string{}
	err := a.Each(func(string) bool { return true }, func(f File) error {
		got[f.Name] = string(f.Data)
		if f.Link != "" {
			got[f.Name] = "-> " + f.Link
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	return got
}

func TestUnpack(t *testing.T) {
	for packing, data := range packings() {
		d := deb(packing, data)
		p := pinned(d)
		address, _ := mirror(t, d)
		a, err := (&Cache{Dir: t.TempDir(), Mirrors: []string{address}}).Open(t.Context(), p)
		if err != nil {
			t.Errorf("%q: %v", packing, err)
			continue
		}
		if got := list(t, a); !cmp.Equal(got, content) {
			t.Errorf("%q: %s", packing, cmp.Diff(content, got))
		}
	}
}

func TestUnpackRefuses(t *testing.T) {
	whole := deb("", tarball())
	for name, data := range map[string][]byte{
		"no ar":           []byte("PK\x03\x04 something else"),
		"nothing":         nil,
		"no data":         whole[:100],
		"a cut header":    whole[:len(arMagic)+30],
		"a broken header": bytes.Replace(whole, []byte("`\n"), []byte("xx"), 1),
		"lzma":            deb(".lzma", nil),
		"no xz":           deb(".xz", []byte("no")),
		"negative size":   bytes.Replace(whole, []byte("4         `"), []byte("-4        `"), 1),
	} {
		if _, err := dataOf(bytes.NewReader(data)); err == nil {
			t.Errorf("%s was read", name)
		}
	}
}

func FuzzDeb(f *testing.F) {
	for packing, data := range packings() {
		f.Add(deb(packing, data))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := dataOf(bytes.NewReader(data))
		if err != nil {
			return
		}
		eachFile(r, func(string) bool { return true }, func(f File) error {
			if strings.HasPrefix(f.Name, "/") || strings.HasPrefix(f.Name, "..") {
				t.Errorf("%q escapes", f.Name)
			}
			return nil
		})
	})
}

func TestLocks(t *testing.T) {
	for _, architecture := range Architectures() {
		l, err := ReadLock(architecture)
		if err != nil {
			t.Errorf("%s: %v", architecture, err)
			continue
		}
		for _, flavour := range []string{"cloud", "generic"} {
			if !strings.HasPrefix(l.Kernels[flavour], "linux-image-6.12.") {
				t.Errorf("%s: kernel %s is %q", architecture, flavour, l.Kernels[flavour])
			}
		}
		for _, p := range l.Packages {
			if p.Architecture != architecture {
				t.Errorf("%s is for %s", p.Name, p.Architecture)
			}
		}
	}
	if _, err := ReadLock("riscv64"); err == nil {
		t.Error("a lock for riscv64")
	}
}

func TestLockRefuses(t *testing.T) {
	const sum = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	good := `{"name":"a1","version":"1","architecture":"amd64","path":"debian/pool/a.deb","size":1,"sha256":"` + sum + `"}`
	lock := func(packages string) string { return `{"packages":[` + packages + `]}` }
	if _, err := ParseLock([]byte(lock(good))); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"path up":      lock(strings.Replace(good, "debian/pool", "debian/pool/../..", 1)),
		"absolute":     lock(strings.Replace(good, "debian/pool", "/debian/pool", 1)),
		"name up":      lock(strings.Replace(good, "a1", "../a", 1)),
		"version up":   lock(strings.Replace(good, `"version":"1"`, `"version":"../1"`, 1)),
		"no digest":    lock(strings.Replace(good, sum, "", 1)),
		"no size":      lock(strings.Replace(good, `"size":1`, `"size":0`, 1)),
		"huge":         lock(strings.Replace(good, `"size":1`, `"size":99999999999`, 1)),
		"twice":        lock(good + "," + good),
		"unknown key":  `{"packagez":[]}`,
		"lost kernel":  `{"kernels":{"cloud":"linux"}}`,
		"no JSON":      `lock`,
		"odd packages": `{"packages":[1]}`,
	} {
		if _, err := ParseLock([]byte(text)); err == nil {
			t.Errorf("%s was read", name)
		}
	}
}

func TestAddress(t *testing.T) {
	c := &Cache{Snapshot: "20261122T164620Z"}
	p := Package{Path: "debian-security/pool/updates/main/l/linux_6.12+deb13_amd64.deb"}
	for mirror, want := range map[string]string{
		"https://deb.debian.org/": "https://deb.debian.org/debian-security/pool/updates/main/l/linux_6.12+deb13_amd64.deb",
		snapshotMirror:            "https://snapshot.debian.org/archive/debian-security/20261122T164620Z/pool/updates/main/l/linux_6.12+deb13_amd64.deb",
	} {
		if got := c.address(mirror, p); got != want {
			t.Errorf("%s: %s, want %s", mirror, got, want)
		}
	}
}
