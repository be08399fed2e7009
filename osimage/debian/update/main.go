// Command update writes the lock files of package debian anew, with the newest
// versions that Debian has. It asks apt, in a state of its own, so that Debian's
// signatures are checked by Debian's program with the keys of this computer
// (package debian-archive-keyring); nothing of the computer is changed. Run it in
// the folder of package debian: go run ./update.
package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-edge/holdfast/osimage/debian"
)

const suite = "trixie"

// packages are what an OS image takes files from, besides the kernels.
var packages = []string{
	"systemd-boot-efi",
	"nftables", "libnftables1", "libnftnl11", "libmnl0", "libjansson4", "libgmp10", "libxtables12", "libedit2", "libbsd0", "libmd0", "libtinfo6",
	"e2fsprogs", "libext2fs2t64", "libcom-err2", "libuuid1", "libblkid1",
	"mount", "libmount1", "libselinux1", "libpcre2-8-0",
	"libc6",
}

// kernels are the packages that depend on the newest kernel of a flavour.
func kernels(architecture string) map[string]string {
	return map[string]string{"cloud": "linux-image-cloud-" + architecture, "generic": "linux-image-" + architecture}
}

func main() {
	mirror := flag.String("mirror", "http://deb.debian.org", "URL above debian/ and debian-security/")
	keyring := flag.String("keyring", "/usr/share/keyrings/debian-archive-keyring.gpg", "keys of Debian's archive")
	flag.Parse()
	if err := run(*mirror, *keyring); err != nil {
		fmt.Fprintln(os.Stderr, "update:", err)
		os.Exit(1)
	}
}

func run(mirror, keyring string) error {
	if _, err := os.Stat("lock.go"); err != nil {
		return errors.New("run it in osimage/debian")
	}
	dir, err := os.MkdirTemp("", "holdfast-apt-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	a, err := newApt(dir, mirror, keyring)
	if err != nil {
		return err
	}
	if _, err := a.run("apt-get", "update", "-q"); err != nil {
		return err
	}
	for _, architecture := range debian.Architectures() {
		l, err := a.lock(architecture)
		if err != nil {
			return err
		}
		data, err := json.MarshalIndent(l, "", "  ")
		if err != nil {
			return err
		}
		if _, err := debian.ParseLock(data); err != nil {
			return err
		}
		if err := os.WriteFile("lock-"+architecture+".json", append(data, '\n'), 0o644); err != nil {
			return err
		}
		fmt.Printf("lock-%s.json: %d packages, kernel %s\n", architecture, len(l.Packages), l.Kernels["cloud"])
	}
	return nil
}

// apt is Debian's own client with a state of its own.
type apt struct{ config, mirror string }

func newApt(dir, mirror, keyring string) (*apt, error) {
	for _, d := range []string{"lists/partial", "archives/partial"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	architectures := strings.Join(debian.Architectures(), ",")
	var sources strings.Builder
	for _, line := range []string{"debian " + suite, "debian " + suite + "-updates", "debian-security " + suite + "-security"} {
		archive, of, _ := strings.Cut(line, " ")
		fmt.Fprintf(&sources, "deb [arch=%s signed-by=%s] %s/%s %s main\n", architectures, keyring, mirror, archive, of)
	}
	config := fmt.Sprintf(`Dir::State %q; Dir::State::lists %q; Dir::State::status %q; Dir::Cache %q; Dir::Cache::archives %q;
Dir::Etc::sourcelist %q; Dir::Etc::sourceparts "-"; Dir::Etc::preferences "-"; Dir::Etc::preferencesparts "-";
APT::Architecture %q; APT::Architectures { %s; }; Acquire::Languages "none"; APT::Sandbox::User "root";
`, dir, filepath.Join(dir, "lists"), filepath.Join(dir, "status"), dir, filepath.Join(dir, "archives"),
		filepath.Join(dir, "sources.list"), debian.Architectures()[0], `"`+strings.Join(debian.Architectures(), `"; "`)+`"`)
	files := map[string]string{"sources.list": sources.String(), "apt.conf": config, "status": ""}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return nil, err
		}
	}
	return &apt{config: filepath.Join(dir, "apt.conf"), mirror: mirror}, nil
}

func (a *apt) run(name string, args ...string) ([]byte, error) {
	c := exec.Command(name, args...)
	c.Env = append(os.Environ(), "APT_CONFIG="+a.config, "LC_ALL=C")
	var stderr bytes.Buffer
	c.Stderr = &stderr
	out, err := c.Output()
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return out, nil
}

func (a *apt) lock(architecture string) (*debian.Lock, error) {
	l := &debian.Lock{Suite: suite, Architecture: architecture, Snapshot: time.Now().UTC().Format("20060102T150405Z"), Kernels: map[string]string{}}
	names := slices.Clone(packages)
	for flavour, meta := range kernels(architecture) {
		kernel, err := a.kernel(meta, architecture)
		if err != nil {
			return nil, err
		}
		l.Kernels[flavour] = kernel
		names = append(names, kernel)
	}
	args := []string{"download", "--print-uris", "-q"}
	for _, n := range names {
		args = append(args, n+":"+architecture)
	}
	out, err := a.run("apt-get", args...)
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(out)) {
		p, err := a.parse(line)
		if err != nil {
			return nil, err
		}
		if i := slices.Index(names, p.Name); i >= 0 && p.Architecture == architecture {
			l.Packages = append(l.Packages, p)
			continue
		}
		return nil, fmt.Errorf("apt answers with %s for %s, which nobody asked for", p.Name, p.Architecture)
	}
	if len(l.Packages) != len(names) {
		return nil, fmt.Errorf("apt knows %d of %d packages for %s", len(l.Packages), len(names), architecture)
	}
	slices.SortFunc(l.Packages, func(a, b debian.Package) int { return cmp.Compare(a.Name, b.Name) })
	return l, nil
}

// kernel is the package that a flavour's meta package depends on now.
func (a *apt) kernel(meta, architecture string) (string, error) {
	out, err := a.run("apt-cache", "show", "--no-all-versions", meta+":"+architecture)
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(out)) {
		if rest, ok := strings.CutPrefix(line, "Depends: "); ok {
			name, _, _ := strings.Cut(strings.TrimSpace(rest), " ")
			return name, nil
		}
	}
	return "", fmt.Errorf("%s depends on no kernel", meta)
}

var uris = regexp.MustCompile(`^'([^']+)' ([^ ]+)_([^ ]+)_([a-z0-9]+)\.deb (\d+) SHA256:([0-9a-f]{64})\s*$`)

// parse reads a line of apt-get download --print-uris.
func (a *apt) parse(line string) (debian.Package, error) {
	m := uris.FindStringSubmatch(line)
	if m == nil {
		return debian.Package{}, fmt.Errorf("apt prints %q", line)
	}
	rest, ok := strings.CutPrefix(m[1], strings.TrimSuffix(a.mirror, "/")+"/")
	path, err := url.PathUnescape(rest)
	if !ok || err != nil {
		return debian.Package{}, fmt.Errorf("%s is not on %s", m[1], a.mirror)
	}
	version, err := url.PathUnescape(m[3])
	if err != nil {
		return debian.Package{}, err
	}
	size, err := strconv.ParseInt(m[5], 10, 64)
	return debian.Package{Name: m[2], Version: version, Architecture: m[4], Path: path, Size: size, SHA256: m[6]}, err
}
