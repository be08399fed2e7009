package tpm_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"reflect"
	"strings"
	"testing"

	"filippo.io/age"
	"github.com/google/go-tpm/tpm2"

	"github.com/holdfast-edge/holdfast/link"
	"github.com/holdfast-edge/holdfast/machine/box"
	"github.com/holdfast-edge/holdfast/machine/metal/tpm"
	"github.com/holdfast-edge/holdfast/machine/metal/tpm/tpmtest"
)

func open(t *testing.T, c *tpmtest.Chip) (*tpm.TPM, *tpm.Box) {
	t.Helper()
	chip := c.Open()
	b, err := chip.Box()
	if err != nil {
		t.Fatal(err)
	}
	return chip, b
}

func TestIdentityOutlivesPowerAndDisks(t *testing.T) {
	c := tpmtest.New(t)
	_, first := open(t, c)
	c.Reset()
	_, second := open(t, c)
	if !first.Signer().Public().(*ecdsa.PublicKey).Equal(second.Signer().Public()) {
		t.Error("another identity key after a reset")
	}
	if got, want := second.Recipient().String(), first.Recipient().String(); got != want {
		t.Error("another recipient after a reset")
	}
	_, other := open(t, tpmtest.New(t))
	if first.Signer().Public().(*ecdsa.PublicKey).Equal(other.Signer().Public()) || first.Recipient().String() == other.Recipient().String() {
		t.Error("two TPMs with the same keys")
	}
	if got := first.Protection(); got != box.ProtectionTPM {
		t.Errorf("protection %q", got)
	}
}

func TestSignsMessagesOnly(t *testing.T) {
	_, b := open(t, tpmtest.New(t))
	public := b.Signer().Public().(*ecdsa.PublicKey)
	for _, size := range []int{0, 1, 1024, 1025, 5000} {
		message := bytes.Repeat([]byte("m"), size)
		signature, err := crypto.SignMessage(b.Signer(), rand.Reader, message, crypto.SHA256)
		if err != nil {
			t.Fatalf("%d bytes: %v", size, err)
		}
		if digest := sha256.Sum256(message); !ecdsa.VerifyASN1(public, digest[:], signature) {
			t.Errorf("%d bytes: the signature is not good", size)
		}
	}
	if _, err := b.Signer().Sign(rand.Reader, make([]byte, 32), crypto.SHA256); !errors.Is(err, tpm.ErrForeignDigest) {
		t.Errorf("sign a digest: %v", err)
	}
	if _, err := crypto.SignMessage(b.Signer(), rand.Reader, []byte("m"), crypto.SHA512); err == nil {
		t.Error("signed with SHA-512")
	}
	// What looks like a quote is not signed: else quotes would prove nothing.
	if _, err := crypto.SignMessage(b.Signer(), rand.Reader, []byte("\xffTCG\x80\x18 made up"), crypto.SHA256); err == nil {
		t.Error("signed a made-up quote")
	}
}

func TestLinkIdentityAndTLS(t *testing.T) {
	_, b := open(t, tpmtest.New(t))
	id, err := link.NewIdentity(b.Signer())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := id.Delegate(); err != nil {
		t.Error("a boot key:", err)
	}
	certificate := tlsCertificate(t, b.Signer())
	a, z := net.Pipe()
	client := tls.Client(a, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{certificate}})
	server := tls.Server(z, &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{certificate}, ClientAuth: tls.RequireAnyClientCert})
	done := make(chan error, 1)
	go func() { done <- server.Handshake() }()
	if err := client.Handshake(); err != nil {
		t.Error("client:", err)
	}
	if err := <-done; err != nil {
		t.Error("server:", err)
	}
	a.Close()
	z.Close()
}

func TestRecipientDecrypts(t *testing.T) {
	_, b := open(t, tpmtest.New(t))
	var sealed bytes.Buffer
	w, err := age.Encrypt(&sealed, b.Recipient().Recipient())
	if err != nil {
		t.Fatal(err)
	}
	w.Write([]byte("secret"))
	w.Close()
	r, err := age.Decrypt(&sealed, b.Recipient())
	if err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	got.ReadFrom(r)
	if got.String() != "secret" {
		t.Errorf("got %q", got.String())
	}
}

func TestQuote(t *testing.T) {
	chip, b := open(t, tpmtest.New(t))
	extra := bytes.Repeat([]byte{7}, 32)
	attest, signature, err := chip.Quote(extra)
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256(attest)
	if !ecdsa.VerifyASN1(b.Signer().Public().(*ecdsa.PublicKey), digest[:], signature) {
		t.Error("the quote's signature is not the identity key's")
	}
	parsed, err := tpm2.Unmarshal[tpm2.TPMSAttest](attest)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(parsed.ExtraData.Buffer, extra) {
		t.Error("the quote is not bound to what was asked")
	}
}

func extend(t *testing.T, chip *tpm.TPM, pcr int, what string) {
	t.Helper()
	extendOn(t, tpm.BusOf(chip), pcr, what)
}

func extendOn(t *testing.T, bus tpm.Bus, pcr int, what string) {
	t.Helper()
	digest := sha256.Sum256([]byte(what))
	if _, err := (tpm2.PCRExtend{PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(pcr), Auth: tpm2.PasswordAuth(nil)},
		Digests: tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA256, Digest: digest[:]}}}}).Execute(bus); err != nil {
		t.Fatal(err)
	}
}

// extended is what extend makes of a PCR at zero.
func extended(what string) tpm.Digest {
	digest := sha256.Sum256([]byte(what))
	return sha256.Sum256(append(make([]byte, 32), digest[:]...))
}

func TestSealing(t *testing.T) {
	c := tpmtest.New(t)
	chip := c.Open()
	extend(t, chip, 7, "keys")
	extend(t, chip, 11, "slot a")
	now, err := chip.ReadPCRs()
	if err != nil {
		t.Fatal(err)
	}
	if want := tpm.Expect(extended("keys"), extended("slot a")); now != want {
		t.Fatalf("PCRs %x, want %x", now, want)
	}
	secret := bytes.Repeat([]byte("s"), 32)
	a, err := chip.Seal(secret, now)
	if err != nil {
		t.Fatal(err)
	}
	b, err := chip.Seal(secret, tpm.Expect(extended("keys"), extended("slot b")))
	if err != nil {
		t.Fatal(err)
	}
	if p, err := tpm.BlobPolicy(a); err != nil || p != now.Policy() {
		t.Errorf("policy of the blob %x, %v; want %x", p, err, now.Policy())
	}
	check := func(name string, chip *tpm.TPM, blob []byte, want error) {
		t.Helper()
		got, err := chip.Unseal(blob)
		if !errors.Is(err, want) || want == nil && !bytes.Equal(got, secret) {
			t.Errorf("%s: %q, %v; want error %v", name, got, err, want)
		}
	}
	check("a in a", chip, a, nil)
	check("b in a", chip, b, tpm.ErrMeasurements)
	check("a in another TPM", tpmtest.New(t).Open(), a, tpm.ErrOtherTPM)
	c.Reset()
	chip = c.Open()
	check("a in nothing", chip, a, tpm.ErrMeasurements)
	extend(t, chip, 7, "keys")
	extend(t, chip, 11, "slot b")
	check("b in b", chip, b, nil)
	check("a in b", chip, a, tpm.ErrMeasurements)
	extend(t, chip, 12, "a command line from the ESP")
	check("b with a command line", chip, b, tpm.ErrMeasurements)
	c.PowerCut()
	check("no TPM", chip, b, tpm.ErrGone)
	for _, bad := range [][]byte{nil, a[:5], a[:40], []byte(strings.Repeat("x", 300)), append([]byte("HFS1\xff\xff"), a...)} {
		if _, err := chip.Unseal(bad); !errors.Is(err, tpm.ErrBlob) {
			t.Errorf("bad blob: %v", err)
		}
	}
}

// TestOtherPCRsChange: the kernel measures modules into PCR 10 all the time.
func TestOtherPCRsChange(t *testing.T) {
	chip := tpmtest.New(t).Open()
	now, err := chip.ReadPCRs()
	if err != nil {
		t.Fatal(err)
	}
	blob, err := chip.Seal([]byte("secret"), now)
	if err != nil {
		t.Fatal(err)
	}
	modules := 0
	tpm.Before(chip, tpm2.TPMCCUnseal, func(bus tpm.Bus) {
		if modules++; modules < 5 {
			extendOn(t, bus, 10, "module")
		}
	})
	if got, err := chip.Unseal(blob); err != nil || string(got) != "secret" || modules != 5 {
		t.Errorf("got %q, %v after %d tries", got, err, modules)
	}
	tpm.Before(chip, tpm2.TPMCCUnseal, func(bus tpm.Bus) { extendOn(t, bus, 11, "foreign image") })
	if _, err := chip.Unseal(blob); !errors.Is(err, tpm.ErrMeasurements) {
		t.Errorf("one of ours changed: %v", err)
	}
}

func TestNoTPM(t *testing.T) {
	if _, err := tpm.Open(t.TempDir() + "/none"); !errors.Is(err, tpm.ErrGone) || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

func TestToolsAgree(t *testing.T) {
	c := tpmtest.New(t)
	chip, b := open(t, c)
	if err := b.WriteNote("anchor.json", []byte("anchor of the fleet")); err != nil {
		t.Fatal(err)
	}
	extend(t, chip, 11, "uki")
	pcrs, err := chip.ReadPCRs()
	if err != nil {
		t.Fatal(err)
	}
	chip.Close()
	tool := func(args ...string) string {
		t.Helper()
		args = append(args, "-T", "swtpm:path="+c.Socket)
		out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s (apt install tpm2-tools): %v\n%s", strings.Join(args, " "), err, out)
		}
		return string(out)
	}
	file := t.TempDir() + "/policy"
	tool("tpm2_startauthsession", "-S", file+".s")
	tool("tpm2_policypcr", "-S", file+".s", "-l", "sha256:7,11,12,13", "-L", file)
	policy := pcrs.Policy()
	if theirs, err := os.ReadFile(file); err != nil || !bytes.Equal(theirs, policy[:]) {
		t.Errorf("tpm2_policypcr says %x, %v; we %x", theirs, err, policy)
	}
	tool("tpm2_flushcontext", file+".s")
	if out := tool("tpm2_nvread", "0x01804846", "-C", "0x01804846"); !strings.Contains(out, "anchor of the fleet") {
		t.Errorf("tpm2_nvread shows %q", out)
	}
	if out := tool("tpm2_nvreadpublic", "0x01804846"); !strings.Contains(out, "authwrite") || strings.Contains(out, "ownerwrite") || !strings.Contains(out, "no_da") {
		t.Errorf("tpm2_nvreadpublic shows %s", out)
	}
}

func TestNotes(t *testing.T) {
	c := tpmtest.New(t)
	chip, b := open(t, c)
	if _, err := b.ReadNote("anchor.json"); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("a note in a new TPM: %v", err)
	}
	if err := b.RemoveNote("anchor.json"); err != nil {
		t.Fatal(err)
	}
	want := map[string][]byte{"anchor.json": bytes.Repeat([]byte("a"), 700), "applied.json": []byte("x"), "empty.json": {}}
	for name, data := range want {
		if err := b.WriteNote(name, data); err != nil {
			t.Fatal(err)
		}
	}
	count := tpm.Commands(chip)
	if err := b.WriteNote("applied.json", []byte("x")); err != nil {
		t.Fatal(err)
	}
	if n := count(); n != 0 {
		t.Errorf("the same again took %d commands", n)
	}
	if err := b.WriteNote("big.json", make([]byte, box.MaxNotes)); !errors.Is(err, box.ErrFull) {
		t.Errorf("too big: %v", err)
	}
	if err := b.WriteNote("", nil); !errors.Is(err, box.ErrName) {
		t.Errorf("a note without a name: %v", err)
	}
	for i := range 8 { // grows and shrinks over both copies
		if err := b.WriteNote("grows.json", make([]byte, 100*i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.RemoveNote("grows.json"); err != nil {
		t.Fatal(err)
	}
	c.Reset()
	_, b = open(t, c)
	for name, data := range want {
		if got, err := b.ReadNote(name); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%s: %d bytes, %v; want %d", name, len(got), err, len(data))
		}
	}
	if _, err := b.ReadNote("grows.json"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("removed and still there: %v", err)
	}
}

// TestNotesPowerCut ends the TPM after each command of a write, with that
// command carried out or not: there is the old note or the new, and a write
// that was acknowledged is the new.
func TestNotesPowerCut(t *testing.T) {
	c := tpmtest.New(t)
	value := func(i int) []byte { return bytes.Repeat([]byte{byte('a' + i)}, 300+300*(i%4)) } // has to grow, more than one command
	last := -1
	for n, cuts := 0, 0; ; n++ {
		for _, done := range []bool{false, true} {
			chip, b := open(t, c)
			next := last + 1
			tpm.Cut(chip, n%8, done)
			err := b.WriteNote("anchor.json", value(next))
			chip.Close()
			c.Reset()
			chip, b = open(t, c)
			got, readErr := b.ReadNote("anchor.json")
			switch {
			case errors.Is(readErr, fs.ErrNotExist) && last < 0 && err != nil:
			case readErr != nil:
				t.Fatalf("cut after %d: %v", n%8, readErr)
			case bytes.Equal(got, value(next)):
				last = next
			case err == nil || !bytes.Equal(got, value(last)):
				t.Fatalf("cut after %d commands: %d bytes of %q; the write said %v", n%8, len(got), got[:1], err)
			}
			if err != nil {
				cuts++
			}
			chip.Close()
		}
		if n == 15 {
			if cuts < 10 || last < 3 {
				t.Errorf("%d cuts, %d writes: the test does not test", cuts, last)
			}
			return
		}
	}
}

func TestNotesDamaged(t *testing.T) {
	c := tpmtest.New(t)
	chip, b := open(t, c)
	for _, v := range []string{"one", "two"} {
		if err := b.WriteNote("n.json", []byte(v)); err != nil {
			t.Fatal(err)
		}
	}
	flip := func(i int) {
		t.Helper()
		public, err := tpm2.NVReadPublic{NVIndex: tpm.NotesIndexes[i]}.Execute(tpm.BusOf(chip))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := (tpm2.NVWrite{AuthHandle: tpm2.AuthHandle{Handle: tpm.NotesIndexes[i], Name: public.NVName, Auth: tpm2.PasswordAuth(nil)},
			NVIndex: tpm2.NamedHandle{Handle: tpm.NotesIndexes[i], Name: public.NVName}, Data: tpm2.TPM2BMaxNVBuffer{Buffer: []byte{0xee}}, Offset: 47}).Execute(tpm.BusOf(chip)); err != nil {
			t.Fatal(err)
		}
	}
	flip(1)
	chip.Close()
	c.Reset()
	_, b = open(t, c)
	if got, err := b.ReadNote("n.json"); err != nil || string(got) != "one" {
		t.Errorf("newest copy damaged: %q, %v; want the one before", got, err)
	}
	c.Reset()
	chip = c.Open()
	flip(0)
	chip.Close()
	if _, err := c.Open().Box(); !errors.Is(err, tpm.ErrDamagedNotes) {
		t.Errorf("both damaged: %v", err)
	}
}

func FuzzBlob(f *testing.F) {
	f.Add([]byte("HFS1\x00\x02\x00\x00\x00\x00"))
	f.Add([]byte("HFS1\x00\x30"))
	f.Fuzz(func(t *testing.T, b []byte) { tpm.ParseBlob(b) })
}

func FuzzNotes(f *testing.F) {
	body, _ := tpm.EncodeNotes(map[string][]byte{"a": []byte("b"), "c": {}})
	f.Add(body)
	f.Add([]byte{5, 'a'})
	f.Fuzz(func(t *testing.T, b []byte) {
		values, err := tpm.DecodeNotes(b)
		if err != nil {
			return
		}
		again, err := tpm.EncodeNotes(values)
		if err != nil {
			return // more than a box holds
		}
		if back, err := tpm.DecodeNotes(again); err != nil || !reflect.DeepEqual(back, values) {
			t.Errorf("%q, %v; want %q", back, err, values)
		}
	})
}
