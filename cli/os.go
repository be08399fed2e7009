package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/internal/durable"
	"github.com/holdfast-edge/holdfast/osimage/build"
	"github.com/holdfast-edge/holdfast/osimage/debian"
	"github.com/holdfast-edge/holdfast/osimage/secureboot"
)

func (e *env) osVerb() *cobra.Command {
	cmd := &cobra.Command{Use: "os", Short: "make the OS image of your machines", GroupID: "release", Args: cobra.ArbitraryArgs, RunE: unknownVerb}
	cmd.AddCommand(e.osKeys(), e.osBuild(), e.osAdd(), e.osPush())
	return cmd
}

// defaultOSKeys is the folder beside the fleet repo where init puts private keys, too.
func (e *env) defaultOSKeys() (string, error) {
	dir, err := e.fleetDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(dir+"-keys", "os"), nil
}

func (e *env) osKeys() *cobra.Command {
	return &cobra.Command{
		Use:   "keys [DIR]",
		Short: "make the Secure Boot keys of the fleet",
		Long: `Keys makes PK, KEK and db: NAME.key (private), NAME.pem and NAME.auth for each. PK owns the
machine's firmware, KEK may change db, db signs what boots. Without DIR they go to the
folder os of the fleet's keys, beside the fleet repo.

A machine in setup mode enrols the .auth files by itself at its first boot. os build needs
db.key only: take PK.key and KEK.key off this computer, onto paper or a stick.`,
		Example: "  holdfast os keys\n  holdfast os keys /media/stick/os-keys",
		Args:    args(cobra.MaximumNArgs(1)),
		RunE: func(_ *cobra.Command, a []string) error {
			dir, err := e.defaultOSKeys()
			if len(a) == 1 {
				dir, err = a[0], nil
			}
			if err != nil {
				return err
			}
			return e.runOSKeys(dir)
		},
	}
}

func (e *env) runOSKeys(dir string) error {
	name := "Holdfast"
	if seed, err := e.makeSeed(); err == nil {
		name = seed.Fleet
	}
	keys, err := secureboot.Generate(name)
	if err != nil {
		return err
	}
	enrol, err := keys.Enrolment()
	if err != nil {
		return err
	}
	if err := keys.Save(dir); errors.Is(err, secureboot.ErrThere) {
		if done, fault := completeEnrolment(dir); fault != nil || done {
			switch {
			case fault != nil:
			case e.output == "json":
				return e.printJSON(map[string]string{"folder": dir})
			default:
				e.printf("Secure Boot keys in %s: the files of their enrolment were missing, and are there now\n", dir)
			}
			return fault
		}
		return hint(err, "machines that have enrolled these keys boot nothing that others signed: keep them, or name another folder")
	} else if err != nil {
		return err
	}
	if err := writeEnrolment(dir, enrol); err != nil {
		return err
	}
	if e.output == "json" {
		return e.printJSON(map[string]string{"folder": dir})
	}
	e.printf("Secure Boot keys of %s are in %s\n", name, dir)
	e.printf("  PK.key and KEK.key belong on a stick or paper in a safe place, off this computer\n")
	e.printf("  next: holdfast os build DIR --version 0.1.0 --keys %s\n", dir)
	return nil
}

func writeEnrolment(dir string, enrol map[string][]byte) error {
	for name, data := range enrol {
		if err := durable.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// completeEnrolment writes what of the enrolment of keys is missing, as after an
// os keys that was cut off; done says that something was.
func completeEnrolment(dir string) (done bool, err error) {
	keys, err := secureboot.Load(dir)
	if err != nil || keys.PK.Key == nil || keys.KEK.Key == nil {
		return false, nil // not whole enough: what is there stays as it is
	}
	enrol, err := keys.Enrolment()
	if err != nil {
		return false, err
	}
	maps.DeleteFunc(enrol, func(name string, _ []byte) bool {
		_, err := os.Lstat(filepath.Join(dir, name))
		return err == nil
	})
	return len(enrol) > 0, writeEnrolment(dir, enrol)
}

// completeClasses offers the classes of the fleet here.
func (e *env) completeClasses(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	dir, err := e.fleetDir()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	f, _ := fleet.Load(workTree(dir))
	if f == nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return f.Classes(), cobra.ShellCompDirectiveNoFileComp
}

// osBuildOptions are the flags of os build.
type osBuildOptions struct {
	version, profile, arch, flavour string
	keys, programs, built           string
	classes, mirrors, files         []string
	deltaFrom, follows              []string
}

func (e *env) osBuild() *cobra.Command {
	var o osBuildOptions
	cmd := &cobra.Command{
		Use:   "build DIR",
		Short: "make an OS image of the fleet: raw disk, stick, signed boot image",
		Long: `Build makes an OS image and writes it to DIR: a raw disk for machines, one for USB sticks,
and a folder of parts with the signed boot image (UKI), the root with its hash tree, a
manifest with all digests, and an SBOM (SPDX). Beside it goes the update for machines that
run older versions, with deltas against those that --delta-from names. The same inputs make
the same bytes.

The fleet's seed goes in: whoever boots it belongs to the fleet. The programs are those of
the folder that this one is in (make build system os). Kernel and a few programs come from
Debian packages that are pinned by digest; they are fetched once and kept.

At its first boot a machine has no release that could say which of its disks to live on, and
a foreign disk is never touched unless a class says so. So the rule (machine.disk) of the
fleet's defaults goes in, and that of the classes that --class or the profile names. What a
site or a single machine says of its disk counts once a release has named the machine: one
whose OS image decides on no disk waits for that.

A profile is a file such as:

  architecture: amd64            # or arm64
  flavour: generic               # cloud (virtual machines) or generic (bare machines too)
  consoles: [tty0, ttyS1]        # the kernel's; boot and faults show on all
  drivers: [mlx4_core]           # kernel modules to load besides the usual ones
  firmware: firmware             # folder beside the profile, for /usr/lib/firmware
  stateSize: 2147483648          # bytes of the volume STATE
  classes: [hardware/nuc12]      # whose rule chooses the disk at the first boot`,
		Example: "  holdfast os build images --version 0.1.0\n  holdfast os build images --version 0.1.0 --class hardware/nuc12\n  holdfast os build images --version 0.2.0 --profile shop.yaml --keys /media/stick/os-keys",
		Args:    args(cobra.ExactArgs(1)),
		RunE:    func(c *cobra.Command, a []string) error { return e.runOSBuild(c.Context(), a[0], o) },
	}
	flags := cmd.Flags()
	flags.StringVar(&o.version, "version", "", "version, three numbers (required)")
	flags.StringVar(&o.profile, "profile", "", "file that says what for")
	flags.StringVar(&o.arch, "arch", "", "amd64 or arm64, instead of the profile's; default amd64")
	flags.StringVar(&o.flavour, "flavour", "", "cloud or generic, instead of the profile's; default cloud")
	flags.StringArrayVar(&o.classes, "class", nil, "class whose rule chooses the disk at the first boot, instead of the profile's; more than once, the later ones win")
	flags.StringVar(&o.keys, "keys", "", "folder of the Secure Boot keys; default: os in the fleet's keys, beside the fleet repo")
	flags.StringVar(&o.programs, "programs", "", "folder with machined, init and system; default: that of this program, its folder arm64 for arm64")
	flags.StringVar(&o.built, "built", "", "time of the build, RFC 3339; default: $SOURCE_DATE_EPOCH, else that of the fleet repo's last commit")
	flags.StringArrayVar(&o.mirrors, "mirror", nil, "URL above debian/ and debian-security/, instead of Debian's; more than once")
	flags.StringArrayVar(&o.files, "esp-file", nil, "NAME=FILE: another file of the ESP, such as holdfast/network.yaml=net.yaml; more than once")
	flags.StringArrayVar(&o.deltaFrom, "delta-from", nil, "folder of parts of an older version to make deltas against; more than once")
	flags.StringArrayVar(&o.follows, "follows", nil, "version that a machine may come from; without any: each; more than once")
	cmd.RegisterFlagCompletionFunc("arch", cobra.FixedCompletions(debian.Architectures(), cobra.ShellCompDirectiveNoFileComp))
	cmd.RegisterFlagCompletionFunc("class", e.completeClasses)
	cmd.MarkFlagDirname("keys")
	cmd.MarkFlagDirname("programs")
	cmd.MarkFlagDirname("delta-from")
	cmd.MarkFlagFilename("profile", "yaml", "yml")
	cmd.RegisterFlagCompletionFunc("flavour", cobra.FixedCompletions([]string{build.Cloud, build.Generic}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// osBuilt is os build's answer for programs.
type osBuilt struct {
	Version      string            `json:"version"`
	Architecture string            `json:"architecture"`
	Flavour      string            `json:"flavour"`
	Kernel       string            `json:"kernel"`
	Versions     map[string]string `json:"versions"`
	Disk         string            `json:"disk"`
	Stick        string            `json:"stick"`
	Parts        string            `json:"parts"`
	RootSize     int64             `json:"rootSize"`
	UKISize      int64             `json:"ukiSize"`
	Programs     int               `json:"programs"`
	Disks        fleet.DiskRule    `json:"disks"` // which one a machine takes at its first boot
	Artefact     *osArtefact       `json:"artefact,omitempty"`
}

// check finds what is wrong with the flags themselves.
func (o osBuildOptions) check() error {
	var faults []error
	if !build.IsVersion(o.version) {
		faults = append(faults, fmt.Errorf("--version %s: want three numbers, such as 0.1.0, and optionally a dash and a word", o.version))
	}
	if all := debian.Architectures(); o.arch != "" && !slices.Contains(all, o.arch) {
		faults = append(faults, fmt.Errorf("--arch %s: want %s", o.arch, strings.Join(all, " or ")))
	}
	if all := []string{build.Cloud, build.Generic}; o.flavour != "" && !slices.Contains(all, o.flavour) {
		faults = append(faults, fmt.Errorf("--flavour %s: want %s", o.flavour, strings.Join(all, " or ")))
	}
	return errors.Join(faults...)
}

func (e *env) runOSBuild(ctx context.Context, dir string, o osBuildOptions) error {
	if o.version == "" {
		return &Error{Err: errors.New("the OS image needs a version"), Hint: "holdfast os build " + dir + " --version 0.1.0; machines prefer the greatest that is released", Code: CodeUsage}
	}
	if err := o.check(); err != nil {
		return &Error{Err: err, Hint: "holdfast os build --help", Code: CodeUsage}
	}
	b, err := e.osOptions(ctx, o)
	if err != nil {
		return err
	}
	if err := olderParts(o.deltaFrom, o.version, b.Profile.Architecture); err != nil {
		return err
	}
	b.Output = dir
	began := time.Now()
	b.Progress = func(line string) { fmt.Fprintf(e.err, "%5.1f s  %s\n", time.Since(began).Seconds(), line) }
	r, err := build.Build(ctx, b)
	if err != nil {
		return osBuildHint(err, b.Programs)
	}
	m := r.Manifest
	answer := &osBuilt{
		Version: m.Version, Architecture: m.Architecture, Flavour: m.Flavour, Kernel: m.Kernel, Versions: m.Versions,
		Disk: r.Disk, Stick: r.Stick, Parts: r.Parts, RootSize: m.File(build.PartRoot).Size, UKISize: m.File(build.PartUKI).Size,
		Disks: b.Profile.Disk,
	}
	for _, f := range m.Root {
		if f.Why != "" {
			answer.Programs++
		}
	}
	if answer.Artefact, err = writeArtefact(ctx, r, o.deltaFrom, o.follows, b.Progress); err != nil {
		return err
	}
	if e.output == "json" {
		return e.printJSON(answer)
	}
	e.tellOSBuilt(answer)
	return nil
}

func (e *env) tellOSBuilt(a *osBuilt) {
	e.printf("OS image %s for %s (%s): kernel %s, Kubernetes %s\n", a.Version, a.Architecture, a.Flavour, a.Kernel, strings.TrimPrefix(a.Versions["kube"], "v"))
	e.printf("  root %s with %d programs, boot image %s\n", size(a.RootSize), a.Programs, size(a.UKISize))
	e.printf("  %s: write it to a machine's disk\n  %s: write it to a stick, which installs\n  %s: parts, manifest.json, sbom.spdx.json\n", a.Disk, a.Stick, a.Parts)
	e.printf("  the disk that a first boot from the stick takes: %s\n", a.Disks)
	if a.Artefact != nil {
		e.printf("  %s: the update, %s whole\n", a.Artefact.Folder, size(a.Artefact.Whole))
		for _, d := range a.Artefact.Deltas {
			e.printf("    from %s: %s, %.1f %% of the whole\n", d.From, size(d.Size), 100*float64(d.Size)/float64(a.Artefact.Whole))
		}
	}
}

// osOptions collects what an OS image is made of.
func (e *env) osOptions(ctx context.Context, o osBuildOptions) (build.Options, error) {
	b := build.Options{Version: o.version}
	r, err := e.repo(ctx)
	if err != nil {
		return b, err
	}
	seed, err := e.makeSeed()
	if err != nil {
		return b, err
	}
	if _, _, err := seed.Anchor(); err != nil {
		return b, coded(CodeFaults, err)
	}
	if b.Seed, err = json.MarshalIndent(seed, "", "  "); err != nil {
		return b, err
	}
	if o.profile != "" {
		if b.Profile, err = build.ReadProfile(o.profile); err != nil {
			return b, coded(CodeFaults, err)
		}
	}
	if o.arch != "" {
		b.Profile.Architecture = o.arch
	}
	if o.flavour != "" {
		b.Profile.Flavour = o.flavour
	}
	if len(o.classes) > 0 {
		b.Profile.Classes = o.classes
	}
	b.Profile.Default()
	if b.Profile.Disk, err = diskRule(r, b.Profile.Classes); err != nil {
		return b, err
	}
	if b.Built, err = builtTime(ctx, r, o.built); err != nil {
		return b, err
	}
	if b.Keys, err = e.readOSKeys(o.keys); err != nil {
		return b, err
	}
	if b.Programs, err = osPrograms(o.programs, b.Profile.Architecture); err != nil {
		return b, err
	}
	if b.ESPFiles, err = espFiles(o.files); err != nil {
		return b, err
	}
	b.Cache = &debian.Cache{Mirrors: o.mirrors}
	return b, nil
}

// diskRule is what the fleet's defaults and the classes say of disks.
func diskRule(r *repo, classes []string) (fleet.DiskRule, error) {
	f, err := load(workTree(r.dir))
	if err != nil {
		return fleet.DiskRule{}, err
	}
	box, err := f.Box(classes...)
	return box.Disk, coded(CodeFaults, err)
}

// builtTime is an input like others: the same commit makes the same OS image.
func builtTime(ctx context.Context, r *repo, text string) (time.Time, error) {
	if text != "" {
		t, err := time.Parse(time.RFC3339, text)
		if err != nil {
			return t, &Error{Err: fmt.Errorf("--built: %w", err), Hint: "such as 2026-11-22T00:00:00Z", Code: CodeUsage}
		}
		return t.UTC(), nil
	}
	if text := os.Getenv("SOURCE_DATE_EPOCH"); text != "" {
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return time.Time{}, fmt.Errorf("SOURCE_DATE_EPOCH: %w", err)
		}
		return time.Unix(n, 0).UTC(), nil
	}
	head, err := r.Head(ctx)
	if err != nil {
		return time.Time{}, err
	}
	return r.CommitTime(ctx, head)
}

func (e *env) readOSKeys(dir string) (build.Keys, error) {
	if dir == "" {
		var err error
		if dir, err = e.defaultOSKeys(); err != nil {
			return build.Keys{}, err
		}
	}
	keys, err := secureboot.Load(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return build.Keys{}, hint(fmt.Errorf("no Secure Boot keys in %s", dir), "make them once with: holdfast os keys %s", dir)
	}
	if err != nil {
		return build.Keys{}, err
	}
	if keys.DB.Key == nil {
		return build.Keys{}, hint(fmt.Errorf("no db.key in %s", dir), "it signs what machines boot: bring it from where you keep it")
	}
	k := build.Keys{Signer: keys.DB.Key, Certificate: keys.DB.Cert, Enrol: map[string][]byte{}}
	for _, name := range []string{"PK.auth", "KEK.auth", "db.auth"} {
		if k.Enrol[name], err = os.ReadFile(filepath.Join(dir, name)); err != nil {
			return k, hint(err, "holdfast os keys writes it beside the keys; without it no machine enrols them by itself")
		}
	}
	return k, nil
}

// osPrograms finds the programs that go into the root.
func osPrograms(dir, architecture string) (build.Programs, error) {
	if dir == "" {
		self, err := os.Executable()
		if err == nil {
			self, err = filepath.EvalSymlinks(self)
		}
		if err != nil {
			return build.Programs{}, err
		}
		if dir = filepath.Dir(self); architecture != runtime.GOARCH {
			dir = filepath.Join(dir, architecture)
		}
	}
	return build.Programs{Machined: filepath.Join(dir, "machined"), Init: filepath.Join(dir, "init"), System: filepath.Join(dir, "system")}, nil
}

// osBuildHint gives the next step for what is not there.
func osBuildHint(err error, p build.Programs) error {
	var missing *fs.PathError
	switch {
	case errors.As(err, &missing) && errors.Is(missing, fs.ErrNotExist) && strings.HasPrefix(missing.Path, filepath.Dir(p.Machined)):
		return hint(err, "make build system os, where Holdfast's source is, or name the folder with --programs")
	case errors.Is(err, debian.ErrDigest):
		return hint(coded(CodeRefused, err), "the mirror sends something else; try another: --mirror URL")
	}
	return err
}

func espFiles(list []string) (map[string][]byte, error) {
	files := map[string][]byte{}
	for _, text := range list {
		name, file, ok := strings.Cut(text, "=")
		if !ok || !fs.ValidPath(name) {
			return nil, &Error{Err: fmt.Errorf("--esp-file %q", text), Hint: "NAME=FILE, with the name on the ESP first", Code: CodeUsage}
		}
		data, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		files[name] = data
	}
	return files, nil
}
