package release

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hiddeco/sshsig"
	"golang.org/x/crypto/ssh"

	"github.com/holdfast-edge/holdfast/fleet"
)

func TestPayload(t *testing.T) {
	p := newWorld(t).payload()
	p.Destroys, p.Urgency, p.Root, p.Previous = []string{"pos", "signage"}, Urgent, "infra/fleet", Digest{1}
	for name, edit := range map[string]func(*Payload){
		"OK":                   func(p *Payload) {},
		"OK first":             func(p *Payload) { p.Previous, p.Destroys = Digest{}, nil },
		"OK SHA-256":           func(p *Payload) { p.Object = strings.Repeat("ab", 32) },
		"OK paragraphs":        func(p *Payload) { p.Message = "a\n\n\n\nb: c\n\td" },
		"OK no tagger":         func(p *Payload) { p.TaggerName, p.TaggerEmail = "", "" },
		"OK words":             func(p *Payload) { p.Message = "The root of it: a time\nRelease the tills: now" },
		"ErrMessage":           func(p *Payload) { p.Message = "" },
		"ErrBlank":             func(p *Payload) { p.Message = "a\n" },
		"ErrSpaces":            func(p *Payload) { p.Message = " \n " },
		"ErrCR":                func(p *Payload) { p.Message = "a\r\nb" },
		"ErrEscape":            func(p *Payload) { p.Message = "a\x1b[2Jb" },
		"ErrBidi":              func(p *Payload) { p.Message = "a\u202eb" },
		"ErrUTF8":              func(p *Payload) { p.Message = "a\xff" },
		"ErrArmor":             func(p *Payload) { p.Message = "a\n-----BEGIN SSH SIGNATURE-----\nb" },
		"ErrPGP":               func(p *Payload) { p.Message = "a\n-----BEGIN PGP SIGNATURE-----" },
		"ErrKey":               func(p *Payload) { p.Message = "Fleet-ID: x" },
		"ErrKeyCase":           func(p *Payload) { p.Message = "a\n\nFLEET-id :x\n\nb" },
		"ErrLongMessage":       func(p *Payload) { p.Message = strings.Repeat("a", DefaultLimits().Message+1) },
		"ErrTagger":            func(p *Payload) { p.TaggerName = "a <b>" },
		"ErrTaggerLine":        func(p *Payload) { p.TaggerName = "a\nobject b" },
		"ErrTaggerTime":        func(p *Payload) { p.TaggerTime = time.Unix(-1, 0) },
		"ErrObject":            func(p *Payload) { p.Object = "HEAD" },
		"ErrObjectUpperCase":   func(p *Payload) { p.Object = strings.Repeat("AB", 20) },
		"ErrFleet":             func(p *Payload) { p.FleetID = "x" },
		"ErrNumber":            func(p *Payload) { p.N = 0 },
		"ErrTrustNumber":       func(p *Payload) { p.TrustVersion = 0 },
		"ErrVersion":           func(p *Payload) { p.MinMachined = "" },
		"ErrVersionWords":      func(p *Payload) { p.MinMachined = "any version" },
		"ErrEdition":           func(p *Payload) { p.Edition = -1 },
		"ErrUrgency":           func(p *Payload) { p.Urgency = "Urgent" },
		"ErrDestroysOrder":     func(p *Payload) { p.Destroys = []string{"b", "a"} },
		"ErrDestroysTwice":     func(p *Payload) { p.Destroys = []string{"a", "a"} },
		"ErrMeantDestroysNone": func(p *Payload) { p.Destroys = []string{"none"} },
		"ErrDestroysBoth":      func(p *Payload) { p.Destroys = []string{"a", "none"} },
		"ErrMeantDestroysName": func(p *Payload) { p.Destroys = []string{"a, b"} },
		"ErrMeantFraction":     func(p *Payload) { p.Time = p.Time.Add(time.Millisecond) },
		"ErrRoot":              func(p *Payload) { p.Root = "../other" },
		"ErrRootAbsolute":      func(p *Payload) { p.Root = "/" },
		"ErrRootEmpty":         func(p *Payload) { p.Root = "" },
		"ErrRootGit":           func(p *Payload) { p.Root = "a/.git" },
		"ErrYear":              func(p *Payload) { p.Time = time.Date(12026, 1, 1, 0, 0, 0, 0, time.UTC) },
	} {
		t.Run(name, func(t *testing.T) {
			p := p
			edit(&p)
			b := p.Encode()
			got, err := ParsePayload(b)
			if strings.HasPrefix(name, "Err") {
				if !strings.HasPrefix(name, "ErrMeant") && !errors.Is(err, ErrGrammar) { // what was not meant may still read well
					t.Fatalf("got %v, want ErrGrammar\n%s", err, b)
				}
				if _, err := SignTag(p, key("ci")); !errors.Is(err, ErrGrammar) {
					t.Errorf("SignTag: got %v, want ErrGrammar", err)
				}
				return
			}
			if err != nil {
				t.Fatalf("%v\n%s", err, b)
			}
			if diff := cmp.Diff(p, *got, cmp.Comparer(func(a, b time.Time) bool { return a.Equal(b) })); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if !bytes.Equal(got.Encode(), b) {
				t.Error("encodes to other bytes")
			}
		})
	}
}

// Other spellings of the same values.
func TestPayloadSpelling(t *testing.T) {
	good := string(newWorld(t).payload().Encode())
	for name, c := range map[string][2]string{
		"leading zero in the tag":   {"tag release/1\n", "tag release/01\n"},
		"leading zero":              {"\nRelease: 1\n", "\nRelease: 01\n"},
		"plus":                      {"\nRelease: 1\n", "\nRelease: +1\n"},
		"no Previous":               {"\nPrevious: none\n", "\n"},
		"empty Previous":            {"Previous: none", "Previous: "},
		"zero Previous":             {"Previous: none", "Previous: " + strings.Repeat("0", 64)},
		"upper case":                {"Tree-SHA256: ", "Tree-SHA256: A"},
		"other order":               {"Edition: 0\nUrgency: normal\n", "Urgency: normal\nEdition: 0\n"},
		"key in lower case":         {"Urgency: ", "urgency: "},
		"two spaces":                {"Urgency: ", "Urgency:  "},
		"space at the end":          {"Urgency: normal", "Urgency: normal "},
		"folded line":               {"Urgency: normal\n", "Urgency: normal\n more\n"},
		"CRLF":                      {"\n", "\r\n"},
		"zone of the time":          {"T13:00:00Z", "T13:00:00+00:00"},
		"fraction of the time":      {"T13:00:00Z", "T13:00:00.0Z"},
		"tagger zone -0000":         {"+0100\n\n", "-0000\n\n"},
		"tagger zone":               {"+0100\n\n", "+0160\n\n"},
		"header too many":           {"type commit\n", "type commit\nencoding x\n"},
		"type tree":                 {"type commit\n", "type tree\n"},
		"signature header":          {"\n\nTills", "\ngpgsig x\n\nTills"},
		"no line break at the end":  {".*", ""},
		"two line breaks":           {"\n\nFleet-ID", "\n\n\nFleet-ID"},
		"blank line in the last":    {"Edition: 0\n", "\nEdition: 0\n"},
		"edition with leading zero": {"Edition: 0\n", "Edition: 00\n"},
	} {
		t.Run(name, func(t *testing.T) {
			bad := strings.Replace(good, c[0], c[1], 1)
			if c[0] == ".*" {
				bad = strings.TrimSuffix(good, "\n")
			}
			if bad == good {
				t.Fatalf("%q is not in the payload:\n%s", c[0], good)
			}
			if _, err := ParsePayload([]byte(bad)); !errors.Is(err, ErrGrammar) {
				t.Errorf("got %v, want ErrGrammar", err)
			}
		})
	}
}

// skKey is a hardware key of ours: what it signs is as OpenSSH's PROTOCOL.u2f says.
type skKey struct {
	ed    ed25519.PrivateKey
	ec    *ecdsa.PrivateKey
	flags byte // 1: somebody touched it
}

const skApplication = "ssh:"

func (k skKey) PublicKey() ssh.PublicKey {
	var blob []byte
	if k.ec != nil {
		point, err := k.ec.PublicKey.Bytes()
		if err != nil {
			panic(err)
		}
		blob = ssh.Marshal(struct {
			Type, Curve string
			Point       []byte
			App         string
		}{ssh.KeyAlgoSKECDSA256, "nistp256", point, skApplication})
	} else {
		blob = ssh.Marshal(struct {
			Type string
			Key  []byte
			App  string
		}{ssh.KeyAlgoSKED25519, k.ed.Public().(ed25519.PublicKey), skApplication})
	}
	pub, err := ssh.ParsePublicKey(blob)
	if err != nil {
		panic(err)
	}
	return pub
}

func (k skKey) Sign(_ io.Reader, data []byte) (*ssh.Signature, error) {
	app, message := sha256.Sum256([]byte(skApplication)), sha256.Sum256(data)
	rest := binary.BigEndian.AppendUint32([]byte{k.flags}, 7)
	signed := append(append(append([]byte{}, app[:]...), rest...), message[:]...)
	if k.ec == nil {
		return &ssh.Signature{Format: ssh.KeyAlgoSKED25519, Blob: ed25519.Sign(k.ed, signed), Rest: rest}, nil
	}
	digest := sha256.Sum256(signed)
	r, s, err := ecdsa.Sign(rand.Reader, k.ec, digest[:])
	return &ssh.Signature{Format: ssh.KeyAlgoSKECDSA256, Blob: ssh.Marshal(struct{ R, S *big.Int }{r, s}), Rest: rest}, err
}

func newEC(t testing.TB, c elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	return must(ecdsa.GenerateKey(c, rand.Reader))(t)
}

func TestKeys(t *testing.T) {
	ed := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	sshKey := func(k any) ssh.Signer { return must(ssh.NewSignerFromKey(k))(t) }
	rsaKey := must(rsa.GenerateKey(rand.Reader, 2048))(t)
	ca := key("ci")
	cert := &ssh.Certificate{Key: ca.PublicKey(), CertType: ssh.UserCert, ValidBefore: ssh.CertTimeInfinity}
	if err := cert.SignCert(rand.Reader, ca); err != nil {
		t.Fatal(err)
	}
	payload := newWorld(t).payload()
	for name, s := range map[string]ssh.Signer{
		"OK ed25519":                 key("ci"),
		"OK ecdsa-p256":              sshKey(newEC(t, elliptic.P256())),
		"OK sk-ed25519":              skKey{ed: ed, flags: 1},
		"OK sk-ecdsa-p256":           skKey{ec: newEC(t, elliptic.P256()), flags: 5},
		"Err sk-ed25519 no presence": skKey{ed: ed},
		"Err sk-ecdsa no presence":   skKey{ec: newEC(t, elliptic.P256()), flags: 4},
		"Err ecdsa-p384":             sshKey(newEC(t, elliptic.P384())),
		"Err rsa":                    sshKey(rsaKey),
		"Err certificate":            must(ssh.NewCertSigner(cert, ca))(t),
	} {
		t.Run(name, func(t *testing.T) {
			trust := &fleet.Trust{Version: 1, Signers: []fleet.Signer{{Name: "x", Key: keyLine(s), Roles: []string{"release"}}}}
			raw, err := SignTag(payload, s)
			if strings.HasPrefix(name, "Err") {
				if !errors.Is(err, ErrSigner) {
					t.Errorf("sign: got %v, want ErrSigner", err)
				}
				// The same made without our help.
				sig, err := sshsig.Sign(bytes.NewReader(payload.Encode()), s, sshsig.HashSHA512, namespace)
				if err != nil {
					t.Fatal(err)
				}
				if tag, err := ParseTag(append(payload.Encode(), encodeArmor(sig.Marshal())...)); err == nil {
					_, err = tag.VerifySignature(trust, time.Time{})
					if !errors.Is(err, ErrSigner) {
						t.Errorf("verify: got %v, want ErrSigner", err)
					}
				} else if !errors.Is(err, ErrSigner) {
					t.Errorf("parse: got %v, want ErrSigner", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			tag := must(ParseTag(raw))(t)
			if got, err := tag.VerifySignature(trust, time.Time{}); err != nil || got.Name != "x" {
				t.Errorf("got %v, %v", got, err)
			}
		})
	}
}

func TestHashes(t *testing.T) {
	payload := newWorld(t).payload().Encode()
	trust := &fleet.Trust{Version: 1, Signers: []fleet.Signer{{Name: "ci", Key: keyLine(key("ci")), Roles: []string{"release"}}}}
	for _, h := range []sshsig.HashAlgorithm{sshsig.HashSHA256, sshsig.HashSHA512} {
		sig := must(sshsig.Sign(bytes.NewReader(payload), key("ci"), h, namespace))(t)
		tag := must(ParseTag(append(bytes.Clone(payload), encodeArmor(sig.Marshal())...)))(t)
		if _, err := tag.VerifySignature(trust, time.Time{}); err != nil {
			t.Errorf("%s: %v", h, err)
		}
	}
}

// One signature, spelled otherwise, is refused: lines of another width, spaces, PEM headers.
func TestArmorSpelling(t *testing.T) {
	payload := newWorld(t).payload().Encode()
	armor := must(SignPayload(payload, key("ci")))(t)
	sig := must(sshsig.Unarmor(armor))(t)
	lines := bytes.SplitAfter(armor, []byte("\n"))
	for name, bad := range map[string][]byte{
		"64 columns": sshsig.Armor(sig),
		"header":     bytes.Join(append([][]byte{lines[0], []byte("Comment: x\n\n")}, lines[1:]...), nil),
		"blank":      bytes.Join(append([][]byte{lines[0], []byte("\n")}, lines[1:]...), nil),
		"CRLF":       bytes.ReplaceAll(armor, []byte("\n"), []byte("\r\n")),
		"no base64":  bytes.Replace(armor, lines[1][:4], []byte("!!!!"), 1),
		"two blobs":  append(bytes.Clone(armor), armor...),
		"long":       bytes.Replace(armor, lines[1], bytes.Repeat(lines[1], 100), 1),
	} {
		_, err := ParseTag(append(bytes.Clone(payload), bad...))
		if !errors.Is(err, ErrGrammar) && !errors.Is(err, ErrUnsigned) && !errors.Is(err, ErrTruncated) && !errors.Is(err, ErrOversized) {
			t.Errorf("%s: got %v, want a refusal for its form", name, err)
		}
	}
}
