package fleet_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/fleet/fleetgen"
)

// The key and its fingerprint are what ssh-keygen -l said of it.
const (
	anna   = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDtqJ7zOtqQtYqOo0CpvDXNlMhV3HeJDpjrASKGLWdop anna@example.com"
	skAnna = "sk-ssh-ed25519@openssh.com AAAAGnNrLXNzaC1lZDI1NTE5QG9wZW5zc2guY29tAAAAIDtqJ7zOtqQtYqOo0CpvDXNlMhV3HeJDpjrASKGLWdopAAAABHNzaDo= anna"
)

func publicLine(t *testing.T, key any) string {
	t.Helper()
	k, err := ssh.NewPublicKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(k)))
}

func TestWhichKeysMaySign(t *testing.T) {
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	r, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	edPublic, _, _, _, err := ssh.ParseAuthorizedKey([]byte(anna))
	if err != nil {
		t.Fatal(err)
	}
	caKey, err := ssh.NewSignerFromKey(p256)
	if err != nil {
		t.Fatal(err)
	}
	cert := &ssh.Certificate{Key: edPublic, CertType: ssh.UserCert, ValidBefore: ssh.CertTimeInfinity}
	if err := cert.SignCert(rand.Reader, caKey); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		line string
		ok   bool
	}{
		"ed25519":     {anna, true},
		"sk-ed25519":  {skAnna, true},
		"ecdsa-p256":  {publicLine(t, p256.Public()), true},
		"ecdsa-p384":  {publicLine(t, p384.Public()), false},
		"rsa":         {publicLine(t, r.Public()), false},
		"certificate": {strings.TrimSpace(string(ssh.MarshalAuthorizedKey(cert))), false},
		"options":     {`command="x" ` + anna, false},
		"two lines":   {anna + "\n" + skAnna, false},
		"nothing":     {"", false},
	} {
		if _, err := fleet.Fingerprint(c.line); (err == nil) != c.ok {
			t.Errorf("%s: fingerprint: %v, want ok %v", name, err, c.ok)
		}
		_, err := fleet.ParseTrust("trust.yaml", []byte("apiVersion: holdfast.dev/v1alpha1\nkind: Trust\nspec:\n  version: 1\n  signers:\n    - {name: a, roles: [release], key: "+strconv.Quote(c.line)+"}\n"))
		if (err == nil) != c.ok {
			t.Errorf("%s: as signer: %v, want ok %v", name, err, c.ok)
		}
	}
}

func TestFingerprintIsWhatOpenSSHSays(t *testing.T) {
	got, err := fleet.Fingerprint(anna)
	if err != nil {
		t.Fatal(err)
	}
	if want := "SHA256:tAXFyTXI8xtDaujAEcwJslAYc9/6FKcUkd2Lw0xDhPo"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestParseTrust(t *testing.T) {
	got, err := fleet.ParseTrust("trust.yaml", []byte(`apiVersion: holdfast.dev/v1alpha1
kind: Trust
spec:
  version: 7
  threshold: 2
  signers:
    - {name: anna-1, person: anna, key: "`+anna+`", roles: [release, promote], from: 2026-01-01, until: 2027-01-01T12:00:00+01:00}
    - {name: bert, key: "`+skAnna+`", roles: [release]}
  hubs:
    - {name: one, role: active, pin: "sha256:`+strings.Repeat("0a", 32)+`"}
`))
	if err != nil {
		t.Fatal(err)
	}
	if got.Version != 7 || got.Threshold != 2 || got.Signers[1].Person != "bert" || got.Hubs[0].Role != "active" {
		t.Errorf("got %+v", got)
	}
	if want := time.Date(2027, 1, 1, 11, 0, 0, 0, time.UTC); !got.Signers[0].Until.Equal(want) {
		t.Errorf("until %v, want %v", got.Signers[0].Until, want)
	}
}

func TestIDs(t *testing.T) {
	id := fleetgen.MachineID(1, 2)
	if got, err := fleet.ParseMachineID(string(id)); err != nil || got != id || len(id) != 52 {
		t.Errorf("%s, %v", got, err)
	}
	if got, err := fleet.ParseID(string(fleet.NewID())); err != nil {
		t.Errorf("%s, %v", got, err)
	}
	last := []byte(id)
	last[51]++ // bits beyond the digest
	for _, bad := range []string{"", strings.ToUpper(string(id)), string(id[:51]), string(id) + "a", string(last), strings.Repeat("1", 52)} {
		if _, err := fleet.ParseMachineID(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

func TestRecipients(t *testing.T) {
	line := func(r string) error {
		_, err := fleet.ParseTrust("t", []byte("apiVersion: holdfast.dev/v1alpha1\nkind: Trust\nspec:\n  version: 1\n  signers: [{name: a, roles: [release], key: '"+anna+"'}]\n  recovery: ["+r+"]\n"))
		return err
	}
	const good = "age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj"
	if err := line(good); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{good[:len(good)-1] + "q", strings.Replace(good, "z", "x", 1), "AGE-SECRET-KEY-1", "age1"} {
		if err := line(bad); err == nil {
			t.Errorf("%s is taken", bad)
		}
	}
}

func TestImagesLockHasOneSpelling(t *testing.T) {
	a := fleet.LockedImage{Name: "docker.io/library/nginx:1.27", Digest: "sha256:" + strings.Repeat("0", 64), Size: 3, Platforms: []string{"linux/arm64", "linux/amd64"}}
	b := fleet.LockedImage{Name: "localhost:5000/a:b", Digest: a.Digest, Size: 1}
	got := string(fleet.EncodeImagesLock(fleet.ImagesLock{Images: []fleet.LockedImage{b, a}}))
	want := `# Written by holdfast lock.
apiVersion: holdfast.dev/v1alpha1
kind: ImagesLock
spec:
  images:
    - name: docker.io/library/nginx:1.27
      digest: sha256:` + strings.Repeat("0", 64) + `
      size: 3
      platforms: [linux/amd64, linux/arm64]
    - name: localhost:5000/a:b
      digest: sha256:` + strings.Repeat("0", 64) + `
      size: 1
`
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if _, err := fleet.ParseImagesLock("images.lock", []byte(got)); err != nil {
		t.Error(err)
	}
	if _, err := fleet.ParseImagesLock("images.lock", fleet.EncodeImagesLock(fleet.ImagesLock{})); err != nil {
		t.Errorf("an empty one: %v", err)
	}
}

func TestLargeFoldersAreWarnedOf(t *testing.T) {
	files := fleetgen.Files(1)
	for i := range 257 {
		files["docs/"+strings.Repeat("x", i+1)] = nil
	}
	f, err := fleet.Load(fleetgen.FS(files))
	if err != nil {
		t.Fatal(err)
	}
	if w := f.Warnings(); len(w) != 1 || w[0].File != "docs" || w[0].Severity != fleet.Warning || !strings.Contains(w[0].Problem, "257 entries") {
		t.Errorf("warnings: %v", w)
	}
}

func TestWriteDir(t *testing.T) {
	dir := t.TempDir()
	if err := fleetgen.WriteDir(dir, 30); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("fleet.yaml", dir+"/link.yaml"); err != nil {
		t.Fatal(err)
	}
	f, err := fleet.Load(os.DirFS(dir))
	if err == nil || err.Error() != "link.yaml: is a symbolic link: a file: machines take no links" {
		t.Errorf("got %v", err)
	}
	if len(f.Sites()) != 30 {
		t.Errorf("%d sites", len(f.Sites()))
	}
}
