package build

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/osimage"
	"github.com/holdfast-edge/holdfast/osimage/debian"
)

// Flavours of the kernel.
const (
	Cloud   = "cloud"   // virtual machines: small
	Generic = "generic" // bare machines too
)

// Profile is what an OS image is made for.
type Profile struct {
	Architecture string   `json:"architecture" yaml:"architecture"`               // amd64 or arm64
	Flavour      string   `json:"flavour" yaml:"flavour"`                         // cloud (default) or generic
	Consoles     []string `json:"consoles" yaml:"consoles"`                       // the kernel's names; default tty0 and the first serial port
	Drivers      []string `json:"drivers,omitempty" yaml:"drivers,omitempty"`     // kernel modules to load besides those that every machine has
	Firmware     string   `json:"firmware,omitempty" yaml:"firmware,omitempty"`   // folder whose files go to /usr/lib/firmware; relative to the profile's file
	StateSize    int64    `json:"stateSize" yaml:"stateSize,omitempty"`           // bytes of STATE, made at first boot
	DataSizeMin  int64    `json:"dataSizeMin" yaml:"dataSizeMin,omitempty"`       // bytes of DATA below which a disk is refused
	Arguments    []string `json:"arguments,omitempty" yaml:"arguments,omitempty"` // of the kernel, besides those that every machine has
	Classes      []string `json:"classes,omitempty" yaml:"classes,omitempty"`     // of the fleet repo, that machines are of before a release says so

	// Disk is the rule of the fleet's defaults and of Classes. A machine has no
	// release before it has a disk, and network.yaml, which anybody may write, must
	// not have one erased: so the rule comes in here, where it is signed.
	Disk fleet.DiskRule `json:"disk,omitzero" yaml:"-"`

	firmware string // Firmware, found
}

// ReadProfile reads a profile of people.
func ReadProfile(file string) (Profile, error) {
	var p Profile
	data, err := os.ReadFile(file)
	if err != nil {
		return p, err
	}
	d := yaml.NewDecoder(bytes.NewReader(data))
	d.KnownFields(true)
	if err := d.Decode(&p); err != nil {
		return p, fmt.Errorf("%s: %w", file, err)
	}
	if p.Firmware != "" {
		p.firmware = filepath.Join(filepath.Dir(file), filepath.FromSlash(p.Firmware))
	}
	return p, nil
}

// Default fills in what a profile does not say.
func (p *Profile) Default() {
	if p.Architecture == "" {
		p.Architecture = "amd64"
	}
	if p.Flavour == "" {
		p.Flavour = Cloud
	}
	if len(p.Consoles) == 0 {
		serial := "ttyS0"
		if p.Architecture == "arm64" {
			serial = "ttyAMA0"
		}
		p.Consoles = []string{"tty0", serial}
	}
	if p.StateSize == 0 {
		p.StateSize = osimage.StateSize
	}
	if p.DataSizeMin == 0 {
		p.DataSizeMin = osimage.DataSizeMin
	}
}

var (
	consoleName  = regexp.MustCompile(`^[A-Za-z0-9]+(,[0-9a-z]+)?$`)
	argumentText = regexp.MustCompile(`^[A-Za-z0-9_.-]+(=[!-~]*)?$`)
	versionText  = regexp.MustCompile(`^[0-9]+\.[0-9]+\.[0-9]+(-[0-9A-Za-z.-]+)?$`)
)

// reserved are arguments that would undo what the OS image promises.
var reserved = []string{"holdfast.", "init", "rdinit", "root", "lockdown", "module.", "initrd", "dm-mod.", "systemd."}

// validate returns all faults of a profile.
func (p *Profile) validate() error {
	var faults []error
	if !slices.Contains(debian.Architectures(), p.Architecture) {
		faults = append(faults, fmt.Errorf("architecture: %q: want %s", p.Architecture, strings.Join(debian.Architectures(), " or ")))
	}
	if p.Flavour != Cloud && p.Flavour != Generic {
		faults = append(faults, fmt.Errorf("flavour: %q: want %s or %s", p.Flavour, Cloud, Generic))
	}
	for i, c := range p.Consoles {
		if !consoleName.MatchString(c) {
			faults = append(faults, fmt.Errorf("consoles[%d]: %q: want a name such as ttyS0 or ttyS0,115200", i, c))
		}
	}
	for i, a := range p.Arguments {
		name, _, _ := strings.Cut(a, "=")
		if !argumentText.MatchString(a) || slices.ContainsFunc(reserved, func(r string) bool {
			return name == r || strings.HasSuffix(r, ".") && strings.HasPrefix(name, r)
		}) {
			faults = append(faults, fmt.Errorf("arguments[%d]: %q: no argument of the kernel that a profile may give", i, a))
		}
	}
	if p.StateSize < 256<<20 || p.StateSize%osimage.Alignment != 0 {
		faults = append(faults, fmt.Errorf("stateSize: %d: want at least 256 MiB, in whole MiB", p.StateSize))
	}
	if p.DataSizeMin < 256<<20 || p.DataSizeMin%osimage.Alignment != 0 {
		faults = append(faults, fmt.Errorf("dataSizeMin: %d: want at least 256 MiB, in whole MiB", p.DataSizeMin))
	}
	return errors.Join(faults...)
}

// Programs are files of this computer.
type Programs struct {
	Machined string // process 1
	Init     string // stage 1, in the initramfs
	System   string // folder with kube, containerd, ...: bin/system
}

// Keys sign what the firmware starts, and enrol themselves on a machine in setup mode.
type Keys struct {
	Signer      crypto.Signer // of db; RSA for a firmware's sake
	Certificate *x509.Certificate
	Enrol       map[string][]byte // PK.auth, KEK.auth, db.auth for loader/keys/auto; nil: machines must be set up by hand
}

// Options are all that an OS image depends on, besides the lock of Debian packages in this program.
type Options struct {
	Version  string    // such as 0.1.0; machines prefer the greatest
	Built    time.Time // what the OS image takes for its own age; a machine's clock is never before it
	Profile  Profile
	Seed     []byte // release.Seed as JSON
	Programs Programs
	Keys     Keys
	Output   string // folder, made when missing

	Cache    *debian.Cache // nil: the user's
	Progress func(string)  // called before what takes time; may be nil

	// For drills and the lab.
	Replace  map[string][]byte // files of the root, by path without a slash in front
	Remove   []string          // likewise, left out
	ESPFiles map[string][]byte // further files of the ESP, such as holdfast/network.yaml
}

func (o *Options) say(format string, args ...any) {
	if o.Progress != nil {
		o.Progress(fmt.Sprintf(format, args...))
	}
}

// IsVersion tells whether an OS image can have the version: three numbers, and
// optionally a dash and a word.
func IsVersion(text string) bool { return versionText.MatchString(text) }

// check defaults and validates.
func (o *Options) check() error {
	o.Profile.Default()
	faults := []error{o.Profile.validate()}
	if !IsVersion(o.Version) {
		faults = append(faults, fmt.Errorf("version %q: want three numbers, such as 0.1.0, and optionally a dash and a word", o.Version))
	}
	if o.Built.Unix() <= 0 {
		faults = append(faults, errors.New("the time of the build is not set"))
	}
	if !json.Valid(o.Seed) {
		faults = append(faults, errors.New("the fleet seed is no JSON"))
	}
	if o.Keys.Signer == nil || o.Keys.Certificate == nil {
		faults = append(faults, errors.New("no key to sign with"))
	}
	return errors.Join(faults...)
}

// osRelease is the file os-release, in the root and in the UKI. systemd-boot
// sorts by its version, and package slots reads it; package update goes by the
// Kubernetes minor.
func (o *Options) osRelease() string {
	return fmt.Sprintf("ID=holdfast\nNAME=Holdfast\nPRETTY_NAME=\"Holdfast %s\"\nVERSION_ID=%s\nIMAGE_ID=holdfast\nIMAGE_VERSION=%s\nBUILD_ID=%s\nHOLDFAST_KUBERNETES=%s\n",
		o.Version, o.Version, o.Version, o.Built.UTC().Format(time.RFC3339), o.kubernetes())
}

// kubernetes is the minor that goes in, such as 1.36; "" where the program does
// not say what it was built of.
func (o *Options) kubernetes() string {
	list, _, err := modules(filepath.Join(o.Programs.System, "kube"))
	if err != nil {
		return ""
	}
	for _, m := range list {
		if m.Path == upstream["kube"] {
			major, rest, _ := strings.Cut(strings.TrimPrefix(m.Version, "v"), ".")
			minor, _, _ := strings.Cut(rest, ".")
			return major + "." + minor
		}
	}
	return ""
}

// cmdline is the kernel's command line, signed with the UKI. Hardening follows
// the kernel's own self-protection list; what Debian builds in already (no
// vsyscall page, zeroed allocations, a random stack offset) is named again, so
// that it does not end unseen. The kernel's tests of its own cryptography are left
// out, as the kernel itself does by default from 6.16 on: they are a fifth of its
// start, and a wrong SHA-256 or AES shows at once here, in the root's first block
// and in the volumes' keys.
func (o *Options) cmdline(v osimage.Verity) string {
	args := []string{v.Argument()}
	for _, c := range o.Profile.Consoles {
		args = append(args, "console="+c)
	}
	args = append(args,
		"quiet",
		"gpt",                   // the backup of a partition table, after a power cut in the midst of writing one
		"panic=1", "oops=panic", // a machine that nobody visits starts again, and falls back if that is no use
		"lockdown=integrity", "module.sig_enforce=1", "debugfs=off",
		"init_on_alloc=1", "slab_nomerge", "page_alloc.shuffle=1", "randomize_kstack_offset=on",
		"cryptomgr.notests",
	)
	if o.Profile.Architecture == "amd64" {
		args = append(args, "vsyscall=none")
	}
	return strings.Join(append(args, o.Profile.Arguments...), " ")
}
