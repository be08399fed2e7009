// Package fleetgen makes fleets of any size for tests and benchmarks: the same
// number of sites gives the same bytes.
//
// It promises trees that fleet.Load takes without a fault, shaped like a chain
// of shops: countries, formats, hardware, three rings, a few apps in two
// versions. It leaves out secrets, signatures and app images that exist.
package fleetgen

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"sort"
	"strings"

	"github.com/holdfast-edge/holdfast/fleet"
)

// Countries are the folders below sites/, and the classes country/….
var Countries = []string{"de", "fr", "nl", "at", "pl"}

// Files are the files of a fleet repo with so many sites, by path.
func Files(sites int) map[string][]byte {
	f := map[string][]byte{}
	put := func(name, text string) { f[name] = []byte(text) }
	put("fleet.yaml", `apiVersion: holdfast.dev/v1alpha1
kind: Fleet
metadata:
  name: shops
spec:
  id: 00112233445566778899aabbccddeeff
  edition: 0
  hubs:
    - url: https://hub.example.com
  mirrors:
    - https://mirror.example.com/holdfast
  vars:
    shop: {type: string, required: true, description: number of the shop}
    city: {type: string, default: somewhere}
    currency: {type: string, default: EUR}
    tills: {type: int, default: 2}
    selfService: {type: bool, default: false}
    languages: {type: list, default: [en]}
  defaults:
    ring: stable
    apps:
      - name: base
    network:
      ntp: [ntp.example.com]
`)
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)).Public().(ed25519.PublicKey)
	put("trust.yaml", `apiVersion: holdfast.dev/v1alpha1
kind: Trust
spec:
  version: 1
  threshold: 1
  signers:
    - name: ci
      key: `+sshLine(key)+`
      roles: [release, promote, heartbeat]
`)
	put("os/1.4.2.yaml", osDocument)
	for i, ring := range []string{"canary", "early", "stable"} {
		put("rings/"+ring+".yaml", fmt.Sprintf(`apiVersion: holdfast.dev/v1alpha1
kind: Ring
spec:
  os: 1.4.2
  apps: {base: 1.0.0, pos: %s, signage: 2.0.1}
  waves:
    - {name: first, count: 3}
    - {name: rest}
  stopAfter: {failures: 1}
  soak: %dh
  windows:
    - {days: [mon, tue, wed, thu], from: "22:00", to: "05:00"}
`, []string{"4.3.0", "4.2.1", "4.2.1"}[i], i+1))
	}
	for _, c := range Countries {
		put("classes/country/"+c+".yaml", class("vars:\n    languages: ["+c+", en]\n  network:\n    dns: [192.0.2.53]"))
	}
	put("classes/format/express.yaml", class("apps:\n    - name: pos\n      values: {tills: 1}\n  vars:\n    tills: 1"))
	put("classes/format/market.yaml", class("apps:\n    - name: pos\n      values: {tills: 4}\n    - name: signage\n  vars:\n    tills: 4\n    selfService: true"))
	put("classes/hardware/nuc12.yaml", class("machine:\n    architecture: amd64\n    protection: tpm"))
	put("classes/hardware/pi5.yaml", class("machine:\n    architecture: arm64\n    protection: none\n  kubernetes:\n    diskSlow: true"))
	for app, versions := range map[string][]string{"base": {"1.0.0"}, "pos": {"4.2.1", "4.3.0"}, "signage": {"2.0.1"}} {
		needs := ""
		if app != "base" {
			needs = "  needs: [base]\n"
		}
		put("apps/"+app+"/app.yaml", "apiVersion: holdfast.dev/v1alpha1\nkind: App\nspec:\n  onFailure: undo-app\n"+needs)
		for _, v := range versions {
			put("apps/"+app+"/"+v+"/deployment.yaml", deployment(app, v))
			image := fleet.LockedImage{Name: "registry.example.com/" + app + ":" + v, Digest: digest(app + v), Size: 12345678, Platforms: []string{"linux/amd64", "linux/arm64"}}
			f["apps/"+app+"/"+v+"/images.lock"] = fleet.EncodeImagesLock(fleet.ImagesLock{Images: []fleet.LockedImage{image}})
		}
	}
	for i := range sites {
		site(put, i)
	}
	return f
}

// SiteDir is the folder of site i; a folder holds at most 200 of them.
func SiteDir(i int) string {
	country := Countries[i%len(Countries)]
	n := i / len(Countries)
	return fmt.Sprintf("sites/%s/r%02d/%s-%05d", country, n/200, country, i)
}

func site(put func(name, text string), i int) {
	dir := SiteDir(i)
	format, hardware := []string{"express", "market"}[i/7%2], []string{"nuc12", "pi5"}[i/3%2]
	ring := ""
	switch {
	case i%100 == 0:
		ring = "  ring: canary\n"
	case i%10 == 0:
		ring = "  ring: early\n"
	}
	put(dir+"/site.yaml", fmt.Sprintf(`apiVersion: holdfast.dev/v1alpha1
kind: Site
spec:
  uid: u%08x
%s  layers: [hardware/%s, country/%s, format/%s]
  vars:
    shop: "%05d"
    city: City %d
`, i, ring, hardware, Countries[i%len(Countries)], format, i, i))
	var b strings.Builder
	b.WriteString("apiVersion: holdfast.dev/v1alpha1\nkind: Machines\nspec:\n  members:\n")
	for m := range 1 + i%50/49*2 { // every 50th has three
		fmt.Fprintf(&b, "    - name: m%d\n      id: %s\n      role: control-plane\n      siteAddress: 10.213.0.%d\n      protection: none\n", m, MachineID(i, m), 11+m)
	}
	put(dir+"/machines.yaml", b.String())
}

// MachineID is the id of machine m of site i; nobody has its key.
func MachineID(i, m int) fleet.MachineID { return fleet.MachineIDOf(fmt.Appendf(nil, "%d/%d", i, m)) }

func class(spec string) string {
	return "apiVersion: holdfast.dev/v1alpha1\nkind: Class\nspec:\n  " + spec + "\n"
}

func digest(s string) string { return fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(s))) }

var osDocument = fmt.Sprintf(`apiVersion: holdfast.dev/v1alpha1
kind: OS
spec:
  kubernetes: "1.36"
  follows: [1.4.1]
  editions: [0]
  images:
    amd64: {digest: "%s", size: 120000000}
    arm64: {digest: "%s", size: 118000000}
`, digest("amd64"), digest("arm64"))

func deployment(app, version string) string {
	return fmt.Sprintf(`apiVersion: apps/v1
kind: Deployment
metadata:
  name: %[1]s
spec:
  selector: {matchLabels: {app: %[1]s}}
  template:
    metadata: {labels: {app: %[1]s}}
    spec:
      containers:
        - name: %[1]s
          image: registry.example.com/%[1]s:%[2]s
`, app, version)
}

// sshLine is an ed25519 key as in an OpenSSH .pub file.
func sshLine(key ed25519.PublicKey) string {
	var b []byte
	for _, part := range [][]byte{[]byte("ssh-ed25519"), key} {
		b = binary.BigEndian.AppendUint32(b, uint32(len(part)))
		b = append(b, part...)
	}
	return "ssh-ed25519 " + base64.StdEncoding.EncodeToString(b) + " ci@example.com"
}

// Tree is a fleet repo with so many sites, in memory.
func Tree(sites int) fs.FS { return FS(Files(sites)) }

// WriteDir writes a fleet repo with so many sites into a folder.
func WriteDir(dir string, sites int) error {
	files := Files(sites)
	for _, name := range sorted(files) {
		full := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(full, files[name], 0o644); err != nil {
			return err
		}
	}
	return nil
}

func sorted(files map[string][]byte) []string {
	names := make([]string, 0, len(files))
	for name := range files {
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}

// parents calls f for each folder above name, "." last.
func parents(name string, f func(dir, entry string)) {
	for name != "." {
		dir := path.Dir(name)
		f(dir, path.Base(name))
		name = dir
	}
}
