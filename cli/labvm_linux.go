package cli

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-edge/holdfast/internal/flock"
	"github.com/holdfast-edge/holdfast/internal/version"
	"github.com/holdfast-edge/holdfast/lab"
	"github.com/holdfast-edge/holdfast/lab/vm"
	"github.com/holdfast-edge/holdfast/osimage/build"
)

// virtualDisks are the sizes of a virtual machine's disks: one to live on, and one to spare.
var virtualDisks = []int64{12 << 30, 4 << 30}

// virtualOverhead is what a virtual machine takes besides its memory.
const virtualOverhead = 200 << 20

// slowness is how much longer a virtual machine gets for everything: without KVM it is some ten times slower.
const slowness = 10

// patience is d, or a multiple of it for a lab with virtual machines.
func patience(w *lab.Wanted, d time.Duration) time.Duration {
	for _, m := range w.Machines {
		if m.Run && m.Virtual() {
			return slowness * d
		}
	}
	return d
}

// anyVirtual tells whether w has a virtual machine, and whether it has a hosted one.
func anyVirtual(w *lab.Wanted) (virtual, hosted bool) {
	for _, m := range w.Machines {
		virtual, hosted = virtual || m.Virtual(), hosted || !m.Virtual()
	}
	return virtual, hosted
}

// labOS sees to the OS image of the virtual machines, and to how they run.
func (e *env) labOS(ctx context.Context, l lab.Lab, w *lab.Wanted, o upOptions, watch *stopwatch) error {
	var fresh []*lab.Machine // a machine keeps what its disk was made from
	parts := ""
	for i := range w.Machines {
		if m := &w.Machines[i]; m.Virtual() && m.OS == "" {
			fresh = append(fresh, m)
		} else if m.Virtual() {
			parts = m.OS
		}
	}
	if len(fresh) > 0 {
		made, err := e.osParts(ctx, l, o)
		if err != nil {
			return err
		}
		watch.lap("OS image in %s", made)
		for _, m := range fresh {
			m.OS = made
		}
		parts = made
	}
	if parts == "" {
		return nil
	}
	accel, why, err := lab.Accel(ctx, parts)
	if err != nil {
		return err
	}
	if accel == vm.KVM {
		watch.lap("guests run in KVM")
	} else {
		watch.lap("no KVM, so all is some ten times slower")
		first, _, _ := strings.Cut(why, "\n")
		fmt.Fprintf(e.err, "          %s\n", first)
	}
	for i := range w.Machines {
		w.Machines[i].Accel = string(accel)
	}
	return nil
}

// osParts is the folder of parts that --os names, or one that is built here.
func (e *env) osParts(ctx context.Context, l lab.Lab, o upOptions) (string, error) {
	if o.os != "" {
		return findParts(o.os)
	}
	options, err := e.labOSOptions(ctx, l)
	if err != nil {
		return "", err
	}
	name, err := inputsOf(options)
	if err != nil {
		return "", err
	}
	options.Output = filepath.Join(l.Dir, "os", name)
	if parts, err := findParts(options.Output); err == nil {
		return parts, nil
	}
	options.Progress = func(text string) {
		if e.output != "json" {
			fmt.Fprintf(e.err, "          %s\n", text)
		}
	}
	r, err := build.Build(ctx, options)
	if err != nil {
		return "", osBuildHint(fmt.Errorf("build the OS image of the lab: %w", err), options.Programs)
	}
	for _, file := range []string{r.Disk, r.Stick} { // the lab makes its own, with where the hub is
		if err := os.Remove(file); err != nil {
			return "", err
		}
	}
	return r.Parts, nil
}

// findParts takes a folder of parts, or the output folder of holdfast os build with one in it.
func findParts(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	found, err := filepath.Glob(filepath.Join(dir, "*", build.PartManifest))
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(filepath.Join(dir, build.PartManifest)); err == nil {
		found = []string{filepath.Join(dir, build.PartManifest)}
	}
	if len(found) != 1 {
		return "", hint(fmt.Errorf("%s holds %d OS images, want one", dir, len(found)), "holdfast os build")
	}
	parts := filepath.Dir(found[0])
	_, err = build.ReadManifest(parts)
	return parts, err
}

// labOSVersion is what a lab's own OS image is called: the first of any fleet.
const labOSVersion = "0.1.0"

// labOSOptions are those of an OS image for the lab, signed with the fleet's
// Secure Boot keys, or with the lab's own where the fleet has none here.
func (e *env) labOSOptions(ctx context.Context, l lab.Lab) (build.Options, error) {
	keys, err := e.defaultOSKeys()
	if err != nil {
		return build.Options{}, err
	}
	if _, err := os.Stat(filepath.Join(keys, "db.key")); err != nil {
		keys = filepath.Join(l.Dir, "os", "keys")
		if _, err := os.Stat(filepath.Join(keys, "db.key")); errors.Is(err, fs.ErrNotExist) {
			quiet := *e
			quiet.out = io.Discard
			if err := errors.Join(os.MkdirAll(filepath.Dir(keys), 0o700), quiet.runOSKeys(keys)); err != nil {
				return build.Options{}, err
			}
		}
	}
	return e.osOptions(ctx, osBuildOptions{version: labOSVersion, keys: keys})
}

// inputsOf names what an OS image is built from, as far as it changes from day to day.
func inputsOf(o build.Options) (string, error) {
	h := sha256.New()
	fmt.Fprintln(h, version.Version, o.Version, o.Built.Unix(), string(o.Seed), o.Profile)
	h.Write(o.Keys.Certificate.Raw)
	for _, file := range []string{o.Programs.Machined, o.Programs.Init} {
		f, err := os.Open(file)
		if err != nil {
			return "", err
		}
		_, err = io.Copy(h, f)
		f.Close()
		if err != nil {
			return "", err
		}
	}
	system, err := filepath.EvalSymlinks(o.Programs.System)
	if err != nil {
		return "", err
	}
	err = filepath.WalkDir(system, func(path string, d fs.DirEntry, err error) error { // hundreds of megabytes: sizes and times must do
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			fmt.Fprintln(h, path, info.Size(), info.ModTime().UnixNano())
		}
		return err
	})
	return hex.EncodeToString(h.Sum(nil)[:8]), err
}

// labBox is the process that a virtual machine lives in.
func (e *env) labBox(dir *string) *cobra.Command {
	network := -1
	var keepLock, keep string
	cmd := &cobra.Command{
		Use: "box MACHINE", Short: "a virtual machine's own process (started by the keeper)", Hidden: true, Args: args(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, a []string) error {
			log := slog.New(slog.NewTextHandler(e.err, nil))
			if keepLock != "" && keep != "" {
				sibling := flock.Sibling{Lock: keepLock, Command: flock.ParseCommand(keep), Inherit: os.NewFile(uintptr(network), "network"), Flag: "--network-fd"}
				go func() {
					if err := sibling.Keep(c.Context()); err != nil && c.Context().Err() == nil {
						log.Error("keep the sibling alive", "lock", keepLock, "err", err)
					}
				}()
			}
			return lab.Lab{Dir: *dir}.Box(c.Context(), a[0], network, log)
		},
	}
	cmd.Flags().IntVar(&network, "network-fd", -1, "inherited descriptor of the lab's network")
	cmd.Flags().StringVar(&keepLock, "keep-lock", "", "lock file of a process that this one keeps alive")
	cmd.Flags().StringVar(&keep, "keep", "", "command of that process, words parted by new lines")
	return cmd
}

// labVirtual are the verbs for virtual machines.
func (e *env) labVirtual(dir *string) []*cobra.Command {
	return []*cobra.Command{e.labPowerCut(dir), e.labPullDisk(dir), e.labSwapTPM(dir), e.labUnplug(dir), e.labConsole(dir), e.labScreenshot(dir), e.labBox(dir)}
}

func (e *env) labPowerCut(dir *string) *cobra.Command {
	var seed uint64
	var off bool
	cmd := &cobra.Command{
		Use: "power-cut MACHINE", Short: "cut a virtual machine's power, and lose what its disks had not flushed",
		Long: `Power-cut takes the power away at once. Whatever the machine had written and not yet
flushed is lost: all of it, or with --seed a part that the seed decides, torn between
sectors, as real disks do it. The machine comes back by itself; --off leaves it off,
until lab start.`,
		Args: args(cobra.ExactArgs(1)), ValidArgsFunction: e.completeSites,
		RunE: e.inLab(dir, func(ctx context.Context, l lab.Lab, a []string) error {
			cut, err := l.PowerCut(ctx, a[0], seed, off)
			if err != nil {
				return err
			}
			return e.tell(map[string]any{"machine": a[0], "lost": cut.Lost, "kept": cut.Kept, "torn": cut.Torn, "bytesLost": cut.Bytes},
				"%s: of the writes that were not flushed %d were lost, %d torn, %d kept: %d bytes lost\n", a[0], cut.Lost, cut.Torn, cut.Kept, cut.Bytes)
		}),
	}
	cmd.Flags().Uint64Var(&seed, "seed", 0, "decides which unflushed writes are lost; 0: all")
	cmd.Flags().BoolVar(&off, "off", false, "leave the machine off")
	return cmd
}

func (e *env) labPullDisk(dir *string) *cobra.Command {
	var number int
	var stick bool
	cmd := &cobra.Command{
		Use: "pull-disk MACHINE", Short: "take a disk out of a virtual machine, and put a blank one in",
		Long: `Pull-disk switches the machine off, takes a disk out, puts a blank one of the same size in
its place and switches the machine on again. With --stick the fleet's OS image on a USB
stick is plugged in as well, from which a machine with a blank disk installs itself.
The file of the pulled disk is printed: it is what a thief has.`,
		Args: args(cobra.ExactArgs(1)), ValidArgsFunction: e.completeSites,
		RunE: e.inLab(dir, func(ctx context.Context, l lab.Lab, a []string) error {
			file, err := l.PullDisk(ctx, a[0], number, stick)
			if err != nil {
				return err
			}
			return e.tell(map[string]any{"machine": a[0], "disk": number, "file": file}, "%s: disk %d is now %s, and a blank one is in its place\n", a[0], number, file)
		}),
	}
	cmd.Flags().IntVar(&number, "disk", 0, "number of the disk")
	cmd.Flags().BoolVar(&stick, "stick", false, "plug in a stick with the OS image")
	return cmd
}

func (e *env) labSwapTPM(dir *string) *cobra.Command {
	var back bool
	cmd := &cobra.Command{
		Use: "swap-tpm MACHINE", Short: "put another TPM into a virtual machine, as if its disks stood in another box",
		Args: args(cobra.ExactArgs(1)), ValidArgsFunction: e.completeSites,
		RunE: e.inLab(dir, func(ctx context.Context, l lab.Lab, a []string) error {
			out, err := l.SwapTPM(ctx, a[0], back)
			if err != nil {
				return err
			}
			return e.tell(map[string]any{"machine": a[0], "out": out, "back": back}, "%s: the TPM that was taken out is %s\n", a[0], out)
		}),
	}
	cmd.Flags().BoolVar(&back, "back", false, "put the one back that was taken out last")
	return cmd
}

func (e *env) labUnplug(dir *string) *cobra.Command {
	var plug bool
	cmd := &cobra.Command{
		Use: "unplug MACHINE", Short: "pull a virtual machine's network cable, until --plug",
		Args: args(cobra.ExactArgs(1)), ValidArgsFunction: e.completeSites,
		RunE: e.inLab(dir, func(ctx context.Context, l lab.Lab, a []string) error {
			if err := l.SetLink(ctx, a[0], plug); err != nil {
				return err
			}
			return e.tell(map[string]any{"machine": a[0], "plugged": plug}, "%s: %s\n", a[0], map[bool]string{true: "plugged in", false: "unplugged"}[plug])
		}),
	}
	cmd.Flags().BoolVar(&plug, "plug", false, "plug it in again")
	return cmd
}

func (e *env) labConsole(dir *string) *cobra.Command {
	var follow bool
	cmd := &cobra.Command{
		Use: "console MACHINE", Short: "print what a machine shows on its console",
		Long: `Console prints what the machine shows to whoever stands before it: of a virtual machine
all that it said on its serial line since it was made, of a hosted one what is there now.
It takes no input, like the machine.`,
		Args: args(cobra.ExactArgs(1)), ValidArgsFunction: e.completeSites,
		RunE: e.inLab(dir, func(ctx context.Context, l lab.Lab, a []string) error {
			w, err := l.Wanted()
			if err != nil {
				return err
			}
			m, err := w.Find(a[0])
			if err != nil {
				return err
			}
			if !m.Virtual() {
				if follow {
					return &lab.NotVirtual{Machine: m.Key(), What: "a serial line to follow"}
				}
				return e.tell(map[string]any{"machine": m.Key(), "console": l.Console(*m)}, "%s", l.Console(*m))
			}
			if e.output == "json" {
				return e.printJSON(map[string]any{"machine": m.Key(), "code": l.Code(*m), "console": l.Console(*m), "file": l.SerialLog(*m)})
			}
			return e.copyConsole(ctx, l.SerialLog(*m), follow)
		}),
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what it says, until interrupted")
	return cmd
}

// copyConsole prints a growing file.
func (e *env) copyConsole(ctx context.Context, path string, follow bool) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	for {
		if _, err := io.Copy(e.out, f); err != nil {
			return err
		}
		if !follow || !wait(ctx, 100*time.Millisecond) {
			return nil
		}
	}
}

func (e *env) labScreenshot(dir *string) *cobra.Command {
	return &cobra.Command{
		Use: "screenshot MACHINE FILE.png", Short: "write what a virtual machine's screen shows to a picture",
		Args: args(cobra.ExactArgs(2)), ValidArgsFunction: e.completeSites,
		RunE: e.inLab(dir, func(ctx context.Context, l lab.Lab, a []string) error {
			if err := l.Screenshot(ctx, a[0], a[1]); err != nil {
				return err
			}
			return e.tell(map[string]any{"machine": a[0], "file": a[1]}, "%s: %s\n", a[0], a[1])
		}),
	}
}
