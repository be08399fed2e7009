//go:build vm

package vmsite

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"filippo.io/age/armor"
	"github.com/erofs/go-erofs"

	"github.com/holdfast-edge/holdfast/lab/labtest"
	"github.com/holdfast-edge/holdfast/link/wire"
	"github.com/holdfast-edge/holdfast/osimage"
	"github.com/holdfast-edge/holdfast/osimage/audit"
	"github.com/holdfast-edge/holdfast/osimage/gpt"
	"github.com/holdfast-edge/holdfast/osimage/uki"
)

// box is a machine that is switched off: what an examiner has on the table.
type box struct {
	disk     string // raw
	tpm      string // folder of swtpm's state
	db       string // certificate of the key that signs what boots, PEM
	recovery string // the fleet's recovery key
	dir      string // to work in
}

// testStockTools switches the machine off, and looks at its disk and its TPM with
// other people's tools, after all that the drills did to them.
func (s shop) testStockTools(t *testing.T) {
	m := s.Machine(t)
	s.Run(t, "lab", "stop", siteName)
	lookAtBox(t, box{
		disk: filepath.Join(s.Lab.MachineDir(m), "disk0.raw"), tpm: filepath.Join(m.Folder, "swtpm"),
		db: filepath.Join(s.Lab.Dir, "os", "keys", "db.pem"), recovery: filepath.Join(s.Keys(), "recovery.age"), dir: t.TempDir(),
	})
}

// tool runs a program of others, and returns all that it said.
func tool(t *testing.T, stdin []byte, name string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Stdin = bytes.NewReader(stdin)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "MTOOLS_SKIP_CHECK=1")
	out, err := cmd.CombinedOutput()
	if _, exit := err.(*exec.ExitError); err != nil && !exit {
		t.Fatalf("%v (make setup)", err)
	}
	return string(out), err
}

func must(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := tool(t, nil, name, args...)
	if err != nil {
		t.Errorf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

func lookAtBox(t *testing.T, b box) {
	if out := must(t, "sgdisk", "-v", b.disk); !strings.Contains(out, "No problems found") {
		t.Errorf("sgdisk -v: %s", out)
	}
	f, err := os.Open(b.disk)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	table, err := gpt.Read(f, info.Size())
	if err != nil {
		t.Fatal(err)
	}
	// cut brings the beginning of a partition into a file, at most so many bytes; holes stay holes.
	cut := func(name string, most int64) string {
		t.Helper()
		number := table.Find(name)
		if number == 0 {
			t.Fatalf("the disk has no partition %s", name)
		}
		p := table.Partitions[number-1]
		to := filepath.Join(b.dir, name)
		must(t, "dd", "if="+b.disk, "of="+to, "bs=1M", "conv=sparse", "status=none", fmt.Sprintf("skip=%d", p.Offset()>>20), fmt.Sprintf("count=%d", min(most, p.Size())>>20))
		return to
	}
	esp := cut(osimage.PartESP, 1<<40)
	lookAtESP(t, esp)
	for _, name := range []string{"EFI/BOOT/BOOTX64.EFI", "EFI/Linux/holdfast-a.efi", "EFI/Linux/holdfast-b.efi"} {
		file, ok := fromESP(t, b.dir, esp, name)
		if !ok && name == "EFI/Linux/holdfast-b.efi" {
			continue // no update yet
		}
		must(t, "sbverify", "--cert", b.db, file)
		if slot, isUKI := strings.CutPrefix(name, "EFI/Linux/holdfast-"); isUKI {
			lookAtSlot(t, file, cut(map[string]string{"a.efi": osimage.PartRootA, "b.efi": osimage.PartRootB}[slot], 1<<40))
		}
	}
	recovery, _ := fromESP(t, b.dir, esp, osimage.PublicFolder+"/recovery.age")
	lookAtVolumes(t, cut(osimage.PartState, 64<<20), cut(osimage.PartData, 64<<20), openEscrow(t, recovery, b.recovery))
	lookAtTPM(t, b)
}

// blemishes are what fsck.vfat says of a file system that lost its power: the
// mark and a stale count stay until the next boot repairs them.
var blemishes = []string{"fsck.fat ", "There are differences between boot sector and its backup", "This is mostly harmless", "65:01/00", "Not automatically fixing",
	"Dirty bit is set", "Automatically removing dirty bit", "Free cluster summary", "Auto-correcting", "Reclaimed ", "Leaving filesystem unchanged", " files, "}

func lookAtESP(t *testing.T, esp string) {
	out, _ := tool(t, nil, "fsck.vfat", "-n", esp)
	for line := range strings.Lines(out) {
		known := func(b string) bool { return strings.Contains(line, b) }
		if strings.TrimSpace(line) != "" && !slices.ContainsFunc(blemishes, known) {
			t.Errorf("fsck.vfat -n says:\n%s", out)
			return
		}
	}
}

// fromESP copies a file out of the boot partition.
func fromESP(t *testing.T, dir, esp, name string) (string, bool) {
	t.Helper()
	to := filepath.Join(dir, filepath.Base(name))
	out, err := tool(t, nil, "mcopy", "-n", "-i", esp, "::"+name, to)
	if err != nil {
		t.Logf("%s: %s", name, strings.TrimSpace(out))
	}
	return to, err == nil
}

// lookAtSlot holds a root partition to the hash in its signed boot image, and walks it.
func lookAtSlot(t *testing.T, file, root string) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	u, err := uki.Open(f)
	if err != nil {
		t.Fatal(err)
	}
	line, err := u.Cmdline()
	if err != nil {
		t.Fatal(err)
	}
	v, err := osimage.ParseVerity(line)
	if err != nil {
		t.Fatal(err)
	}
	must(t, "veritysetup", "verify", root, root, fmt.Sprintf("%x", v.RootHash), fmt.Sprintf("--hash-offset=%d", v.DataBlocks*osimage.VerityBlock))
	r, err := os.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	files, err := erofs.Open(io.NewSectionReader(r, 0, int64(v.DataBlocks)*osimage.VerityBlock))
	if err != nil {
		t.Fatal(err)
	}
	report, err := audit.Root(files)
	if err != nil || len(report.Faults) > 0 {
		t.Errorf("%s: %v, %v", filepath.Base(root), report, err)
	}
}

// openEscrow is the recovery key of the disk, as a person with the fleet's recovery key finds it.
func openEscrow(t *testing.T, escrow, recovery string) []byte {
	t.Helper()
	keys, err := os.Open(recovery)
	if err != nil {
		t.Fatal(err)
	}
	defer keys.Close()
	identities, err := age.ParseIdentities(keys)
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := os.ReadFile(escrow)
	if err != nil {
		t.Fatal(err)
	}
	in := io.Reader(bytes.NewReader(sealed))
	if bytes.HasPrefix(sealed, []byte(armor.Header)) {
		in = armor.NewReader(bufio.NewReader(in))
	}
	text, err := age.Decrypt(in, identities...)
	if err != nil {
		t.Fatalf("the escrow on the boot partition: %v", err)
	}
	plain, err := io.ReadAll(text)
	if err != nil {
		t.Fatal(err)
	}
	e, err := wire.ParseEscrow(plain)
	if err != nil {
		t.Fatal(err)
	}
	return e.Key
}

// lookAtVolumes asks cryptsetup what STATE and DATA are, and who opens them.
func lookAtVolumes(t *testing.T, state, data string, key []byte) {
	for _, file := range []string{state, data} {
		out := must(t, "cryptsetup", "luksDump", file)
		for _, want := range []string{"Version:       \t2", "aes-xts-plain64", "sector: 4096"} {
			if !strings.Contains(out, want) {
				t.Errorf("luksDump of %s does not show %q:\n%s", filepath.Base(file), want, out)
			}
		}
	}
	if out := must(t, "cryptsetup", "luksDump", state); strings.Count(out, ": luks2\n") != 2 || !strings.Contains(out, ": holdfast-tpm2\n") || !strings.Contains(out, ": holdfast-recovery\n") {
		t.Errorf("STATE wants a key slot for its TPM and one for people, and tokens that say so:\n%s", out)
	}
	open := func(key []byte) error {
		out, err := tool(t, key, "cryptsetup", "open", "--test-passphrase", "--key-file", "-", state)
		if err != nil {
			err = fmt.Errorf("%w: %s", err, strings.TrimSpace(out))
		}
		return err
	}
	if err := open(key); err != nil {
		t.Errorf("the recovery key does not open STATE: %v", err)
	}
	wrong := slices.Clone(key)
	wrong[0] ^= 1
	if err := open(wrong); err == nil {
		t.Error("a wrong recovery key opens STATE")
	}
}

// lookAtTPM starts the machine's TPM without the machine, and asks it for what it remembers.
func lookAtTPM(t *testing.T, b box) {
	dir, err := os.MkdirTemp("", "swtpm") // short: a socket's path has at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.CopyFS(filepath.Join(dir, "state"), os.DirFS(b.tpm)); err != nil { // the machine's own stays as it is
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "s")
	swtpm := exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+filepath.Join(dir, "state"), "--flags", "not-need-init,startup-clear",
		"--server", "type=unixio,path="+socket, "--ctrl", "type=unixio,path="+socket+".ctrl")
	if err := swtpm.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		swtpm.Process.Kill()
		swtpm.Wait()
	}()
	labtest.Within(t, time.Minute, func() error {
		c, err := net.Dial("unix", socket+".ctrl")
		if err == nil {
			c.Close()
		}
		return err
	})
	t.Setenv("TPM2TOOLS_TCTI", "swtpm:path="+socket)
	anchors := 0
	for index := range strings.Lines(must(t, "tpm2_getcap", "handles-nv-index")) {
		index = strings.Trim(strings.TrimSpace(index), "- ")
		public := must(t, "tpm2_nvreadpublic", index)
		if strings.Contains(public, "ownerwrite") || !strings.Contains(public, "authwrite") {
			t.Errorf("NV index %s: %s", index, public)
		}
		if out := must(t, "tpm2_nvread", index, "-C", index); strings.Contains(out, "anchor.json") {
			anchors++
		}
	}
	if anchors == 0 {
		t.Error("the TPM holds no anchor")
	}
}
