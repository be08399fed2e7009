package link

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/holdfast-edge/holdfast/fleet"
)

func TestKeyFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "identity.pem")
	first, err := LoadOrCreateKey(path)
	if err != nil {
		t.Fatal(err)
	}
	again, err := LoadOrCreateKey(path)
	if err != nil {
		t.Fatal(err)
	}
	a, err := NewIdentity(first)
	if err != nil {
		t.Fatal(err)
	}
	b, err := NewIdentity(again)
	if err != nil {
		t.Fatal(err)
	}
	if a.ID() != b.ID() {
		t.Errorf("the key changed from %s to %s", a.ID(), b.ID())
	}
	if _, err := fleet.ParseMachineID(string(a.ID())); err != nil {
		t.Error(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if mode := info.Mode().Perm(); mode != 0o600 && runtime.GOOS != "windows" {
		t.Errorf("mode %04o, want 0600", mode)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), "*")); len(left) != 1 {
		t.Errorf("files left behind: %v", left)
	}
}

func TestWrongKeyFileIsNeverReplaced(t *testing.T) {
	encode := func(key any) []byte {
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		return pem.EncodeToMemory(&pem.Block{Type: keyBlock, Bytes: der})
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		data []byte
		mode os.FileMode
	}{
		{"empty", nil, 0o600},
		{"cut short", encode(p256)[:100], 0o600},
		{"RSA", encode(rsaKey), 0o600},
		{"P-384", encode(p384), 0o600},
		{"readable by others", encode(p256), 0o644},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "identity.pem")
			if err := os.WriteFile(path, c.data, c.mode); err != nil {
				t.Fatal(err)
			}
			if _, err := LoadOrCreateKey(path); err == nil || !strings.Contains(err.Error(), path) {
				t.Errorf("got error %v, want one that names the file", err)
			}
			if now, _ := os.ReadFile(path); string(now) != string(c.data) {
				t.Error("the file was changed")
			}
		})
	}
}

func TestCode(t *testing.T) {
	id := fleet.MachineIDOf([]byte("a key"))
	code := Code(id)
	if len(code) != 19 || strings.Count(code, "-") != 3 || code != strings.ToUpper(code) {
		t.Fatalf("code %q", code)
	}
	plain := strings.ReplaceAll(code, "-", "")
	wrong := []byte(plain)
	wrong[15]++
	other := Code(fleet.MachineIDOf([]byte("another key")))
	for _, c := range []struct {
		name, typed string
		want        bool
	}{
		{"as shown", code, true},
		{"lower case", strings.ToLower(code), true},
		{"with spaces", " " + strings.ReplaceAll(code, "-", " ") + "\n", true},
		{"in one piece", plain, true},
		{"with a typographer's dashes", strings.ReplaceAll(code, "-", "\u2013"), true},
		{"noughts and eights", strings.NewReplacer("O", "0", "B", "8").Replace(code), true},
		{"the whole id", string(id), true},
		{"one character short", plain[:15], false},
		{"empty", "", false},
		{"last character wrong", string(wrong), false},
		{"another machine's", other, false},
		{"the whole id and more", string(id) + "a", false},
		{"the code and something else", plain + "2222", strings.HasPrefix(string(id), strings.ToLower(plain)+"2222")},
	} {
		if got := MatchCode(id, c.typed); got != c.want {
			t.Errorf("%s: MatchCode(%q) = %t, want %t", c.name, c.typed, got, c.want)
		}
	}
}

func TestPin(t *testing.T) {
	pin := PinOf([]byte("a key"))
	back, err := ParsePin(pin.String())
	if err != nil || back != pin {
		t.Errorf("got %v, %v; want %v", back, err, pin)
	}
	for _, s := range []string{"", "sha256:", pin.String()[7:], strings.ToUpper(pin.String()), pin.String() + "00", "sha512:" + pin.String()[7:], "sha256:" + strings.Repeat("g", 64)} {
		if _, err := ParsePin(s); err == nil {
			t.Errorf("ParsePin(%q) was accepted", s)
		}
	}
}

func TestBootKey(t *testing.T) {
	id := newTestIdentity(t)
	boot, err := id.Delegate()
	if err != nil {
		t.Fatal(err)
	}
	if boot.Pin() != id.Pin() || boot.ID() != id.ID() {
		t.Error("a boot key changes the name")
	}
	parse := func(id *Identity) (chain []*x509.Certificate) {
		for _, der := range id.cert.Certificate {
			c, err := x509.ParseCertificate(der)
			if err != nil {
				t.Fatal(err)
			}
			chain = append(chain, c)
		}
		return chain
	}
	chain := parse(boot)
	spki, err := identityOf(chain, true)
	if err != nil || PinOf(spki) != id.Pin() {
		t.Errorf("got %x, %v; want the identity key", spki, err)
	}
	stranger := newTestIdentity(t)
	strangersBoot, err := stranger.Delegate()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name  string
		chain []*x509.Certificate
		boot  bool
		want  error
	}{
		{"no certificate", nil, true, ErrNoKey},
		{"boot key from who dials", chain, false, ErrPeerKey},
		{"boot key that a stranger certified", []*x509.Certificate{parse(strangersBoot)[0], chain[1]}, true, ErrPeerKey},
		{"no boot key but another identity", []*x509.Certificate{parse(stranger)[0], chain[1]}, true, ErrPeerKey},
		{"three certificates", append(chain[:2:2], chain[1]), true, ErrPeerKey},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := identityOf(c.chain, c.boot); !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
}
