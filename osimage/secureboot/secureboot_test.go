package secureboot

import (
	"bytes"
	"crypto/rsa"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/holdfast-edge/holdfast/osimage/gpt"
)

var keys = sync.OnceValue(func() Keys {
	k, err := Generate("test fleet")
	if err != nil {
		panic(err)
	}
	return k
})

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func read(t *testing.T, file string) []byte {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestEfitoolsMakeTheSameBytes: what firmware is known to take.
func TestEfitoolsMakeTheSameBytes(t *testing.T) {
	dir := t.TempDir()
	if err := keys().Save(dir); err != nil {
		t.Fatal(err)
	}
	auth, err := keys().Enrolment()
	if err != nil {
		t.Fatal(err)
	}
	if len(auth) != 3 {
		t.Errorf("%d files", len(auth))
	}
	for _, v := range keys().variables() {
		signer := "PK"
		if v.name == "db" {
			signer = "KEK"
		}
		file := func(suffix string) string { return filepath.Join(dir, v.name+suffix) }
		owner := gpt.GUID(v.list[28:44]).String()
		run(t, "cert-to-efi-sig-list", "-g", owner, file(".pem"), file(".esl"))
		if got, want := v.list, read(t, file(".esl")); !bytes.Equal(got, want) {
			t.Errorf("%s: signature list\ngot  %x\nwant %x", v.name, got, want)
		}
		cmd := exec.Command("sign-efi-sig-list", "-t", "2024-01-01 00:00:00", "-k", filepath.Join(dir, signer+".key"), "-c", filepath.Join(dir, signer+".pem"), v.name, file(".esl"), file(".auth"))
		cmd.Env = append(os.Environ(), "TZ=UTC")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if got, want := auth[v.name+".auth"], read(t, file(".auth")); !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, sign-efi-sig-list has %d others", v.name, len(got), len(want))
		}
	}
}

func TestSaveAndLoad(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	if err := keys().Save(dir); err != nil {
		t.Fatal(err)
	}
	if err := keys().Save(dir); err == nil {
		t.Error("keys were replaced")
	}
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 6 {
		t.Fatalf("%v, %v", files, err)
	}
	for _, f := range files {
		if info, err := f.Info(); err != nil || info.Mode() != 0o600 {
			t.Errorf("%s: mode %v, %v", f.Name(), info.Mode(), err)
		}
		run(t, "openssl", map[string]string{".key": "pkey", ".pem": "x509"}[filepath.Ext(f.Name())], "-in", filepath.Join(dir, f.Name()), "-noout")
	}
	got, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range got.pairs() {
		k := keys()
		if want := k.pairs()[i].pair; !p.pair.Cert.Equal(want.Cert) || !want.Key.Public().(*rsa.PublicKey).Equal(p.pair.Key.Public()) {
			t.Errorf("%s is another one", p.name)
		}
	}
}

func TestLoadWithoutPrivateKeys(t *testing.T) {
	dir := t.TempDir()
	if err := keys().Save(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "PK.key")); err != nil {
		t.Fatal(err)
	}
	k, err := Load(dir)
	if err != nil || k.PK.Key != nil || k.DB.Key == nil {
		t.Fatalf("%v", err)
	}
	if _, err := k.Enrolment(); err == nil || !strings.Contains(err.Error(), "private key") {
		t.Errorf("enrolment without a key: %v", err)
	}
}

func TestLoadRefuses(t *testing.T) {
	for name, damage := range map[string]func(dir string) error{
		"no certificate": func(dir string) error { return os.Remove(filepath.Join(dir, "db.pem")) },
		"no PEM":         func(dir string) error { return os.WriteFile(filepath.Join(dir, "db.key"), []byte("x"), 0o600) },
		"another's key": func(dir string) error {
			return os.Rename(filepath.Join(dir, "PK.key"), filepath.Join(dir, "db.key"))
		},
	} {
		dir := t.TempDir()
		if err := keys().Save(dir); err != nil {
			t.Fatal(err)
		}
		if err := damage(dir); err != nil {
			t.Fatal(err)
		}
		if _, err := Load(dir); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// template is the variable store of the firmware that the lab uses.
func template(t *testing.T) []byte {
	t.Helper()
	return read(t, "/usr/share/OVMF/OVMF_VARS_4M.fd")
}

func TestVarsFile(t *testing.T) {
	blank := template(t)
	got, err := keys().VarsFile(blank)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != len(blank) {
		t.Errorf("%d bytes, the template has %d", len(got), len(blank))
	}
	for _, v := range keys().variables() {
		if !bytes.Contains(got, append(utf16le(v.name+"\x00"), v.list...)) {
			t.Errorf("%s is not there", v.name)
		}
	}
	if _, err := keys().VarsFile(got); err == nil || !strings.Contains(err.Error(), "already") {
		t.Errorf("a second time: %v", err)
	}
	small := bytes.Clone(blank)
	le.PutUint32(small[0x48+16:], 1000)
	torn := bytes.Clone(blank)
	clear(torn[0x48 : 0x48+16])
	for name, bad := range map[string][]byte{"nothing": nil, "code": make([]byte, 1<<16), "small": small, "no store": torn, "cut": blank[:0x50]} {
		if _, err := keys().VarsFile(bad); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
