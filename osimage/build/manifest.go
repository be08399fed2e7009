package build

import (
	"cmp"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-edge/holdfast/osimage/debian"
)

// Manifest says what an OS image is made of, with digests.
type Manifest struct {
	Version      string            `json:"version"`
	Architecture string            `json:"architecture"`
	Flavour      string            `json:"flavour"`
	Built        time.Time         `json:"built"`
	Builder      string            `json:"builder,omitempty"` // Go version of the program that wrote it
	Kernel       string            `json:"kernel"`
	Cmdline      string            `json:"cmdline"`
	Verity       string            `json:"verity"`   // root hash, salt, blocks of data
	RootData     int64             `json:"rootData"` // bytes of the file system; the hash tree follows
	Modules      int               `json:"modules"`  // that the kernel's package has
	Versions     map[string]string `json:"versions"` // of the programs from source
	Files        []PartFile        `json:"files"`
	Debian       []debian.Package  `json:"debian"`
	Root         []RootFile        `json:"root"`
}

// PartFile is a file of the folder of parts.
type PartFile struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

// RootFile is a file or link of the root.
type RootFile struct {
	Path    string `json:"path"`
	Size    int64  `json:"size,omitempty"`
	SHA256  string `json:"sha256,omitempty"`
	Link    string `json:"link,omitempty"`
	Program bool   `json:"program,omitempty"` // has the x bit
	Why     string `json:"why,omitempty"`     // what a program is there for; none for shared libraries
	From    string `json:"from"`
}

// File finds a file of the folder of parts.
func (m *Manifest) File(name string) PartFile {
	for _, f := range m.Files {
		if f.Name == name {
			return f
		}
	}
	return PartFile{}
}

func digestOf(dir, name string) (PartFile, error) {
	f, err := os.Open(filepath.Join(dir, name))
	if err != nil {
		return PartFile{}, err
	}
	defer f.Close()
	sum := sha256.New()
	n, err := io.Copy(sum, f)
	return PartFile{Name: name, Size: n, SHA256: hex.EncodeToString(sum.Sum(nil))}, err
}

// upstream are the modules whose version is that of a program from source.
var upstream = map[string]string{
	"kube":       "k8s.io/kubernetes",
	"containerd": "github.com/containerd/containerd/v2",
	"runc":       "github.com/opencontainers/runc",
	"coredns":    "github.com/coredns/coredns",
	"cni/ptp":    "github.com/containernetworking/plugins",
	"machined":   "",
}

// modules reads what Go wrote into a program: itself first, then what it was linked of.
func modules(file string) (list []*debug.Module, tool string, err error) {
	info, err := buildinfo.ReadFile(file)
	if err != nil {
		return nil, "", fmt.Errorf("read what %s was built of: %w", file, err)
	}
	main := info.Main
	list = append(list, &main)
	for _, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		list = append(list, m)
	}
	return list, info.GoVersion, nil
}

func (b *builder) programs() map[string]string {
	all := map[string]string{"machined": b.o.Programs.Machined, "init": b.o.Programs.Init}
	for _, p := range own {
		all[p.name] = filepath.Join(b.o.Programs.System, filepath.FromSlash(p.name))
	}
	return all
}

func (b *builder) versions(m *Manifest) error {
	all := b.programs()
	for name, module := range upstream {
		list, _, err := modules(all[name])
		if err != nil {
			return err
		}
		for _, found := range list {
			if found.Path == module {
				short, _, _ := strings.Cut(name, "/")
				m.Versions[short] = found.Version
			}
		}
	}
	m.Versions["machined"] = b.o.Version
	return nil
}

// SPDX 2.3, as far as it is used.
type spdx struct {
	Version       string             `json:"spdxVersion"`
	License       string             `json:"dataLicense"`
	ID            string             `json:"SPDXID"`
	Name          string             `json:"name"`
	Namespace     string             `json:"documentNamespace"`
	Creation      spdxCreation       `json:"creationInfo"`
	Packages      []spdxPackage      `json:"packages"`
	Relationships []spdxRelationship `json:"relationships"`
}

type spdxCreation struct {
	Created  string   `json:"created"`
	Creators []string `json:"creators"`
}

type spdxPackage struct {
	ID        string         `json:"SPDXID"`
	Name      string         `json:"name"`
	Version   string         `json:"versionInfo,omitempty"`
	Location  string         `json:"downloadLocation"`
	Analysed  bool           `json:"filesAnalyzed"`
	Checksums []spdxChecksum `json:"checksums,omitempty"`
	Refs      []spdxRef      `json:"externalRefs,omitempty"`
}

type spdxChecksum struct {
	Algorithm string `json:"algorithm"`
	Value     string `json:"checksumValue"`
}

type spdxRef struct {
	Category string `json:"referenceCategory"`
	Type     string `json:"referenceType"`
	Locator  string `json:"referenceLocator"`
}

type spdxRelationship struct {
	From string `json:"spdxElementId"`
	Type string `json:"relationshipType"`
	To   string `json:"relatedSpdxElement"`
}

const noAssertion = "NOASSERTION"

// sbom lists the Debian packages, the programs from source and the Go modules that they were linked of.
func (b *builder) sbom() ([]byte, error) {
	name := Name(b.o.Version, b.o.Profile.Architecture)
	doc := spdx{Version: "SPDX-2.3", License: "CC0-1.0", ID: "SPDXRef-DOCUMENT", Name: name,
		Creation: spdxCreation{Created: b.o.Built.UTC().Format(time.RFC3339), Creators: []string{"Organization: Holdfast", "Tool: holdfast os build"}}}
	image := spdxPackage{ID: "SPDXRef-OS", Name: "holdfast-os", Version: b.o.Version, Location: noAssertion}
	doc.Packages = append(doc.Packages, image)
	relate := func(from, kind, to string) {
		doc.Relationships = append(doc.Relationships, spdxRelationship{from, kind, to})
	}
	relate(doc.ID, "DESCRIBES", image.ID)
	packs := slices.SortedFunc(slices.Values(b.packs), func(a, c *packed) int { return cmp.Compare(a.Name, c.Name) })
	for _, p := range packs {
		id := spdxID("deb", p.Name)
		doc.Packages = append(doc.Packages, spdxPackage{
			ID: id, Name: p.Name, Version: p.Version, Location: "https://deb.debian.org/" + p.Path,
			Checksums: []spdxChecksum{{"SHA256", p.SHA256}},
			Refs:      []spdxRef{{"PACKAGE-MANAGER", "purl", "pkg:deb/debian/" + p.Name + "@" + p.Version + "?arch=" + p.Architecture + "&distro=" + b.lock.Suite}},
		})
		relate(image.ID, "CONTAINS", id)
	}
	seen := map[string]bool{}
	all := b.programs()
	for _, program := range slices.Sorted(maps.Keys(all)) {
		list, tool, err := modules(all[program])
		if err != nil {
			return nil, err
		}
		digest, err := digestOf(filepath.Dir(all[program]), filepath.Base(all[program]))
		if err != nil {
			return nil, err
		}
		id := spdxID("program", program)
		doc.Packages = append(doc.Packages, spdxPackage{ID: id, Name: program, Version: list[0].Version, Location: noAssertion, Checksums: []spdxChecksum{{"SHA256", digest.SHA256}}})
		relate(image.ID, "CONTAINS", id)
		for _, m := range append(list[1:], &debug.Module{Path: "stdlib", Version: strings.TrimPrefix(tool, "go")}) {
			mid := spdxID("go", m.Path+"-"+m.Version)
			if !seen[mid] {
				seen[mid] = true
				doc.Packages = append(doc.Packages, spdxPackage{
					ID: mid, Name: m.Path, Version: m.Version, Location: noAssertion,
					Refs: []spdxRef{{"PACKAGE-MANAGER", "purl", "pkg:golang/" + m.Path + "@" + m.Version}},
				})
			}
			relate(id, "STATIC_LINK", mid)
		}
	}
	body, err := json.Marshal(doc)
	if err != nil {
		return nil, err
	}
	doc.Namespace = fmt.Sprintf("https://holdfast.dev/sbom/%s-%x", name, sha256.Sum256(body))
	data, err := json.Marshal(doc)
	return append(data, '\n'), err
}

// spdxID is an identifier with the characters that SPDX allows. What had others
// ends in a digest, so that two names stay two.
func spdxID(kind, name string) string {
	clean := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' {
			return r
		}
		return '-'
	}, name)
	if clean != name {
		sum := sha256.Sum256([]byte(name))
		clean += "-" + hex.EncodeToString(sum[:4])
	}
	return "SPDXRef-" + kind + "-" + clean
}
