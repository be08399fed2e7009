package disks

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/holdfast-edge/holdfast/internal/durable"
	"github.com/holdfast-edge/holdfast/machine/metal/luks"
	"github.com/holdfast-edge/holdfast/machine/metal/tpm"
	"github.com/holdfast-edge/holdfast/osimage/uki"
)

// STATE's header: slot 0 opens by a secret that the TPM has sealed, once for each boot slot; slot 1 by the recovery key. DATA's slot 0 opens by dataSecret.
const (
	sealedSlot   = 0
	recoverySlot = 1

	tokenSealed   = "holdfast-tpm2"     // slot, blob, pcr7, pcr11
	tokenRecovery = "holdfast-recovery" // escrow, recipients

	tokenEscrow     = "escrow"
	tokenRecipients = "recipients" // whom the escrow was made to; only once nothing opens to those before

	recoveryToken = 2 // number; 0 and 1 are the tokens of slots a and b

	dataSecret = "data.key" // on STATE
	stateNote  = "state.json"
)

var sealedTokens = map[string]int{slotA: 0, slotB: 1}

// note is what the machine remembers of STATE in its box.
type note struct {
	Key []byte `json:"key"` // digest of the volume key
}

func keyDigest(key []byte) []byte {
	sum := sha256.Sum256(append([]byte("holdfast STATE volume key 1\x00"), key...))
	return sum[:]
}

// remembered is the digest in the box; nil when there is none.
func (r *rim) remembered() ([]byte, error) {
	b, err := r.o.Notes.ReadNote(stateNote)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var n note
	if err := durable.DecodeJSON(b, &n); err != nil || len(n.Key) != sha256.Size {
		return nil, fmt.Errorf("read note %s: it is not what was written: %w", stateNote, err)
	}
	return n.Key, nil
}

func (r *rim) remember(key []byte) error {
	b, err := json.Marshal(note{keyDigest(key)})
	if err != nil {
		return err
	}
	return r.o.Notes.WriteNote(stateNote, b)
}

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

// bootSlot is the slot that this boot counts as: what a stick installs is slot a.
func (r *rim) bootSlot() string {
	if r.o.Boot.Slot == slotB {
		return slotB
	}
	return slotA
}

// seal makes a token that opens with the given measurements.
func (r *rim) seal(slot string, secret []byte, to tpm.PCRs) (*luks.Token, error) {
	blob, err := r.o.TPM.Seal(secret, to)
	if err != nil {
		return nil, err
	}
	if policy, err := tpm.BlobPolicy(blob); err != nil || policy != to.Policy() {
		return nil, fmt.Errorf("the TPM sealed to policy %x, want %x: %w", policy, to.Policy(), err)
	}
	return &luks.Token{Type: tokenSealed, Slots: []int{sealedSlot}, Data: map[string]string{"slot": slot,
		"blob": base64.StdEncoding.EncodeToString(blob), "pcr7": hex.EncodeToString(to.PCR7[:]), "pcr11": hex.EncodeToString(to.PCR11[:])}}, nil
}

// sealNow seals to this boot, which must be one with nothing beside its image.
func (r *rim) sealNow(secret []byte) (*luks.Token, error) {
	now, err := r.o.TPM.ReadPCRs()
	if err != nil {
		return nil, err
	}
	if now != tpm.Expect(now.PCR7, now.PCR11) {
		return nil, fmt.Errorf("%w: PCR 12 or 13 is not zero: something was given to this boot beside its image, such as an add-on or a credential on the boot partition", tpm.ErrMeasurements)
	}
	return r.seal(r.bootSlot(), secret, now)
}

// recovery makes slot and token of a recovery key that nobody here keeps. Without people to encrypt it to there is neither.
func recovery(escrow func([]byte) ([]byte, error)) (secret []byte, token *luks.Token, err error) {
	secret = random(luks.MinSecret)
	sealed, err := escrow(secret)
	if err != nil {
		return nil, nil, fmt.Errorf("encrypt the recovery key: %w", err)
	}
	if len(sealed) == 0 {
		return nil, nil, nil
	}
	return secret, &luks.Token{Type: tokenRecovery, Slots: []int{recoverySlot}, Data: map[string]string{tokenEscrow: base64.StdEncoding.EncodeToString(sealed)}}, nil
}

// formatState makes a new STATE. The note of its key comes first: a power cut in between leaves a note of a volume that never was, and the next boot does
// this again.
func (r *rim) formatState() error {
	if r.state.state == keyForeign {
		r.swapped = true
	}
	r.forget(&r.state)
	key, secret := random(luks.KeySize), random(luks.MinSecret)
	defer clear(secret)
	token, err := r.sealNow(secret)
	if err != nil {
		return err
	}
	c := luks.Change{Slots: map[int][]byte{sealedSlot: secret}, Tokens: map[int]*luks.Token{sealedTokens[r.bootSlot()]: token}}
	if r.o.Escrow != nil {
		key, escrow, err := recovery(r.o.Escrow)
		if err != nil {
			return err
		}
		if escrow != nil {
			if r.o.Recipients != "" {
				escrow.Data[tokenRecipients] = r.o.Recipients
			}
			c.Slots[recoverySlot], c.Tokens[recoveryToken] = key, escrow
		}
	}
	if err := r.remember(key); err != nil {
		return err
	}
	return r.format(&r.state, key, c)
}

func (r *rim) format(o *opened, key []byte, c luks.Change) error {
	size, err := r.partSize(o.part)
	if err != nil {
		return err
	}
	if o.volume, err = luks.Format(o.dev, size, o.label, subsystem, key, c); err != nil {
		return err
	}
	o.key, o.state, o.fresh = key, keyRight, true
	return nil
}

func (r *rim) forget(o *opened) {
	clear(o.key)
	o.volume, o.key, o.state = nil, nil, keyUntried
}

// openState opens STATE by its TPM token, or by the recovery key if that is what was asked for.
func (r *rim) openState() error {
	v, err := luks.Open(r.state.dev)
	if err != nil {
		return err
	}
	r.state.volume = v
	if r.recoveryKey != nil {
		return r.recover(v)
	}
	secret, err := r.unseal(v)
	if err != nil {
		return &LockedError{Reason: err, Differs: r.differs(v), Escrow: escrowOf(v)}
	}
	defer clear(secret)
	if !v.Quick(sealedSlot) {
		return &LockedError{Reason: fmt.Errorf("its key slot is not one that this program made: %w", luks.ErrFormat), Escrow: escrowOf(v)}
	}
	key, err := v.Unlock(sealedSlot, secret)
	if err != nil {
		return &LockedError{Reason: err, Escrow: escrowOf(v)}
	}
	known, err := r.remembered()
	if err != nil {
		return &LockedError{Reason: err, Escrow: escrowOf(v)}
	}
	r.state.state = keyForeign
	if slices.Equal(keyDigest(key), known) {
		r.state.key, r.state.state = key, keyRight
	}
	return nil
}

// unseal tries the token of this boot's policy, wherever it stands; else any, which tells what is wrong.
func (r *rim) unseal(v *luks.Volume) ([]byte, error) {
	now, err := r.o.TPM.ReadPCRs()
	if err != nil {
		return nil, err
	}
	var blobs [][]byte
	tokens := v.Tokens()
	for _, i := range []int{sealedTokens[r.bootSlot()], 0, 1} {
		t, ok := tokens[i]
		if !ok || t.Type != tokenSealed || !slices.Equal(t.Slots, []int{sealedSlot}) {
			continue
		}
		blob, err := base64.StdEncoding.DecodeString(t.Data["blob"])
		if err != nil {
			continue
		}
		if policy, err := tpm.BlobPolicy(blob); err == nil && policy == now.Policy() {
			return r.o.TPM.Unseal(blob)
		}
		blobs = append(blobs, blob)
	}
	if len(blobs) == 0 {
		return nil, fmt.Errorf("its header has no secret that a TPM sealed: %w", tpm.ErrBlob)
	}
	secret, err := r.o.TPM.Unseal(blobs[0])
	if err == nil {
		clear(secret)
		err = fmt.Errorf("%w: it opens, and by another policy than it says", tpm.ErrBlob)
	}
	return nil, err
}

// differs names the measurements that are not those that the header says STATE was sealed to, by its nearest token. It explains and decides nothing.
func (r *rim) differs(v *luks.Volume) (best []string) {
	now, err := r.o.TPM.ReadPCRs()
	if err != nil {
		return nil
	}
	if zero := (tpm.Digest{}); now.PCR12 != zero || now.PCR13 != zero {
		return []string{"PCR 12 or 13"}
	}
	for i, t := range v.Tokens() {
		if i == recoveryToken || t.Type != tokenSealed {
			continue
		}
		var d []string
		if t.Data["pcr7"] != hex.EncodeToString(now.PCR7[:]) {
			d = append(d, "PCR 7")
		}
		if t.Data["pcr11"] != hex.EncodeToString(now.PCR11[:]) {
			d = append(d, "PCR 11")
		}
		if best == nil || len(d) < len(best) {
			best = d
		}
	}
	return best
}

// recover opens STATE by the recovery key and seals it to this boot. Tokens of other boots go: their policies are only what a header says. A remembered key
// that is another is refused here too: an escrow can be made by anybody, so the right recovery key proves no volume.
func (r *rim) recover(v *luks.Volume) error {
	key, err := v.Unlock(recoverySlot, r.recoveryKey)
	if errors.Is(err, luks.ErrSecret) || errors.Is(err, luks.ErrSlot) {
		return fmt.Errorf("%w: %w", ErrWrongKey, err)
	}
	if err != nil {
		return err
	}
	known, err := r.remembered()
	if err != nil {
		return err
	}
	if known != nil && !slices.Equal(keyDigest(key), known) {
		return ErrSwapped
	}
	secret := random(luks.MinSecret)
	defer clear(secret)
	token, err := r.sealNow(secret)
	if err != nil {
		return err
	}
	if err := r.remember(key); err != nil {
		return err
	}
	c := luks.Change{Slots: map[int][]byte{sealedSlot: secret}, Tokens: map[int]*luks.Token{sealedTokens[r.bootSlot()]: token}}
	if err := v.Apply(key, c); err != nil {
		return err
	}
	r.state.key, r.state.state = key, keyRight
	r.say("STATE was opened by the recovery key and sealed to this boot")
	return nil
}

func escrowOf(v *luks.Volume) []byte {
	t, ok := v.Tokens()[recoveryToken]
	if !ok || t.Type != tokenRecovery {
		return nil
	}
	b, err := base64.StdEncoding.DecodeString(t.Data[tokenEscrow])
	if err != nil {
		return nil
	}
	return b
}

// escrow is that of a STATE that was not opened.
func (r *rim) escrow() []byte {
	if r.state.dev == nil {
		return nil
	}
	v, err := luks.Open(r.state.dev)
	if err != nil {
		return nil
	}
	return escrowOf(v)
}

// formatData makes a new DATA. Its secret is on STATE, durable, before anything needs it.
func (r *rim) formatData() error {
	r.forget(&r.data)
	secret := random(luks.MinSecret)
	defer clear(secret)
	if err := durable.WriteFile(filepath.Join(r.state.dir, dataSecret), secret, 0o600); err != nil {
		return err
	}
	return r.format(&r.data, random(luks.KeySize), luks.Change{Slots: map[int][]byte{sealedSlot: secret}})
}

func (r *rim) openData() error {
	v, err := luks.Open(r.data.dev)
	if err != nil {
		return err
	}
	r.data.volume, r.data.state = v, keyForeign
	secret, err := os.ReadFile(filepath.Join(r.state.dir, dataSecret))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer clear(secret)
	if !v.Quick(sealedSlot) {
		return nil
	}
	key, err := v.Unlock(sealedSlot, secret)
	if errors.Is(err, luks.ErrSecret) {
		return nil
	}
	if err != nil {
		return err
	}
	r.data.key, r.data.state = key, keyRight
	return nil
}

const (
	mke2fs = "/usr/sbin/mke2fs"
	e2fsck = "/usr/sbin/e2fsck"

	backupBlock = "32768" // where ext4 with blocks of 4096 bytes has its first other superblock
)

// makeFS makes a file system where none is seen. One whose first superblock was lost is brought back by its copy instead.
func (r *rim) makeFS(ctx context.Context, o *opened) error {
	if o.path == "" {
		o.path = devPath(o.part)
	}
	if o.volume != nil && !o.revived { // in a plain partition the copy could be somebody else's
		o.revived = true
		if r.revive(ctx, o) {
			return nil
		}
	}
	if o.volume != nil && !o.fresh {
		r.say("%s held no file system any more; it was made anew", o.name)
	}
	// STATE is small and has few files: its inode tables are written at once, and the disk is quiet after that. DATA's are written by the kernel in the
	// background. The journal of an encrypted volume need not be zeroed: under a new key, what was there before is noise.
	lazy, files := "nodiscard,lazy_itable_init=0", "65536"
	if o == &r.data {
		lazy, files = "nodiscard,lazy_itable_init=1", "16384"
	}
	if o.volume != nil {
		lazy += ",lazy_journal_init=1"
	}
	size, err := r.partSize(o.part)
	if err != nil {
		return err
	}
	args := []string{"-q", "-F", "-t", "ext4", "-b", "4096", "-m", "1", "-i", files, "-L", o.label, "-E", lazy, "-J", "size=" + journal(size)}
	out, code, err := r.sys.run(ctx, mke2fs, append(args, r.sys.path(o.path))...)
	if err == nil && code != 0 {
		err = fmt.Errorf("mke2fs ended with %d: %s", code, last(out))
	}
	return err
}

// journal is its size in MiB: mke2fs would take an eighth of a small disk, and 1 GiB, which is all written, of a large one.
func journal(size int64) string {
	switch {
	case size < 512<<20:
		return "4"
	case size < 8<<30:
		return "32"
	}
	return "64"
}

func (r *rim) revive(ctx context.Context, o *opened) bool {
	out, code, err := r.sys.run(ctx, e2fsck, "-f", "-y", "-b", backupBlock, "-B", "4096", r.sys.path(o.path))
	if err != nil || code > 2 {
		return false
	}
	r.o.Log.Warn("a file system was brought back by the copy of its superblock", "volume", o.label, "output", last(out))
	return true
}

func last(out []byte) string { return string(out[max(0, len(out)-400):]) }

// mount mounts a volume; a file system that is not clean enough is repaired first. What cannot be repaired is an error, not a reason to make it anew.
func (r *rim) mount(ctx context.Context, o *opened) error {
	if o.path == "" {
		o.path = devPath(o.part)
	}
	if o.volume == nil { // nobody else may have the device open for writing
		o.dev.Close()
		o.dev = nil
	}
	flags := uintptr(unix.MS_NOATIME | unix.MS_NOSUID | unix.MS_NODEV)
	if o == &r.state {
		flags |= unix.MS_NOEXEC
	}
	clean := false
	err := r.sys.mount(r.sys.path(o.path), o.dir, flags)
	for i, how := range [][]string{{"-p"}, {"-y"}, {"-y", "-b", backupBlock, "-B", "4096"}} {
		if err == nil || i == 2 && clean { // what is clean and does not mount has another fault
			break
		}
		out, code, failed := r.sys.run(ctx, e2fsck, append(append([]string{"-f"}, how...), r.sys.path(o.path))...)
		r.o.Log.Warn("a file system did not mount and was checked", "volume", o.label, "err", err, "how", how, "code", code, "output", last(out))
		if failed != nil {
			return errors.Join(err, failed)
		}
		if clean = code <= 2; !clean {
			err = fmt.Errorf("%w; e2fsck %s ended with %d", err, how[0], code)
			continue
		}
		err = r.sys.mount(r.sys.path(o.path), o.dir, flags)
	}
	o.mounted = err == nil
	return err
}

// Escrow is the encrypted recovery key of STATE, to be kept on the boot partition and reported; nil when there is none.
func (d *Disks) Escrow() []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.rim.state.volume == nil {
		return nil
	}
	return escrowOf(d.rim.state.volume)
}

// Recipients is what Rekey was last told of whom the escrow is made to; "" when there is no recovery key, when a Rekey was cut off, and for an escrow of
// which nobody noted that.
func (d *Disks) Recipients() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.rim.state.volume == nil {
		return ""
	}
	t := d.rim.state.volume.Tokens()[recoveryToken]
	if t.Type != tokenRecovery {
		return ""
	}
	return t.Data[tokenRecipients]
}

// Recoverable tells whether a recovery key opens STATE.
func (d *Disks) Recoverable() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.rim.state.volume != nil && slices.Contains(d.rim.state.volume.Slots(), recoverySlot)
}

// Rekey makes a new recovery key and forgets the old one, such as when the recovery recipients have changed, and notes the new ones. It returns the new
// escrow; nil when escrow gave no bytes, and then there is no recovery key any more. A power cut leaves the old key with its escrow or the new one with its
// own; the recipients are noted when the old key's slot is wiped, so that what was cut before that is done again, and wipes it then.
func (d *Disks) Rekey(recipients string, escrow func(key []byte) ([]byte, error)) ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	v, key := d.rim.state.volume, d.rim.state.key
	if v == nil {
		return nil, nil
	}
	change := func(secret []byte, token *luks.Token) error {
		c := luks.Change{Slots: map[int][]byte{recoverySlot: secret}, Tokens: map[int]*luks.Token{recoveryToken: token}}
		if err := v.Apply(key, c); err != nil {
			return fmt.Errorf("change the recovery key: %w", err)
		}
		return nil
	}
	secret, token, err := recovery(escrow)
	if err != nil {
		return nil, err
	}
	defer clear(secret)
	if token == nil {
		// A key that nobody knows first: as long as the slot is there, a cut is seen.
		if err := change(random(luks.MinSecret), nil); err != nil {
			return nil, err
		}
		return nil, change(nil, nil)
	}
	if err := change(secret, token); err != nil {
		return nil, err
	}
	if recipients != "" {
		token.Data[tokenRecipients] = recipients
		if err := v.Apply(nil, luks.Change{Tokens: map[int]*luks.Token{recoveryToken: token}}); err != nil {
			return nil, fmt.Errorf("note the recovery recipients: %w", err)
		}
	}
	return escrowOf(v), nil
}

// Seal makes STATE open in the next boot of the slot ("a" or "b"), whose unified kernel image is at path: it predicts that image's PCR 11, keeps PCR 7, and
// lets the TPM seal STATE's secret to that. The image must be one that the caller has verified. It does nothing when that is so already, or when nothing is
// encrypted. It shows on the way that the TPM still opens STATE as this boot is.
func (d *Disks) Seal(ctx context.Context, slot, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("seal STATE for slot %s: %w", slot, err)
	}
	defer f.Close()
	image, err := uki.Open(f)
	if err != nil {
		return fmt.Errorf("seal STATE for slot %s: %w", slot, err)
	}
	pcr11, err := image.PCR11()
	if err != nil {
		return fmt.Errorf("seal STATE for slot %s: predict PCR 11: %w", slot, err)
	}
	return d.SealTo(ctx, slot, pcr11)
}

// SealTo is Seal for a known PCR 11.
func (d *Disks) SealTo(ctx context.Context, slot string, pcr11 tpm.Digest) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	r := d.rim
	if r.state.volume == nil {
		return nil
	}
	if err := r.sealFor(slot, pcr11); err != nil {
		return fmt.Errorf("seal STATE for slot %s: %w", slot, err)
	}
	return ctx.Err()
}

func (r *rim) sealFor(slot string, pcr11 tpm.Digest) error {
	number, ok := sealedTokens[slot]
	if !ok {
		return fmt.Errorf("there is no slot %q", slot)
	}
	now, err := r.o.TPM.ReadPCRs()
	if err != nil {
		return err
	}
	to := tpm.Expect(now.PCR7, pcr11)
	secret, err := r.unseal(r.state.volume)
	if err != nil {
		return fmt.Errorf("STATE would not open again in this boot: %w", err)
	}
	defer clear(secret)
	if t, ok := r.state.volume.Tokens()[number]; ok && t.Type == tokenSealed {
		blob, err := base64.StdEncoding.DecodeString(t.Data["blob"])
		if policy, wrong := tpm.BlobPolicy(blob); err == nil && wrong == nil && policy == to.Policy() {
			return nil
		}
	}
	token, err := r.seal(slot, secret, to)
	if err != nil {
		return err
	}
	if err := r.state.volume.Apply(nil, luks.Change{Tokens: map[int]*luks.Token{number: token}}); err != nil {
		return err
	}
	again, err := luks.Open(r.state.dev)
	if err != nil {
		return fmt.Errorf("read back: %w", err)
	}
	if t := again.Tokens()[number]; t.Data["blob"] != token.Data["blob"] {
		return errors.New("read back: the disk does not hold what was written")
	}
	return nil
}
