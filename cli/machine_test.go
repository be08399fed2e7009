package cli

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/fleet/fleetgen"
	"github.com/holdfast-edge/holdfast/internal/durable"
	"github.com/holdfast-edge/holdfast/link"
	"github.com/holdfast-edge/holdfast/link/wire"
	"github.com/holdfast-edge/holdfast/machine"
	"github.com/holdfast-edge/holdfast/machine/box"
	"github.com/holdfast-edge/holdfast/machine/faults"
	"github.com/holdfast-edge/holdfast/release"
)

// limitedMain is a machine whose disk is locked, as a program for the stories:
// limited -dir DIR -seed FILE -hub ADDRESS. It ends well when it was unlocked.
func limitedMain() {
	err := runLimited()
	fmt.Fprintln(os.Stderr, "limited:", err)
	if err != nil && !errors.Is(err, context.Canceled) {
		os.Exit(1)
	}
}

func runLimited() error {
	dir := flag.String("dir", "", "the machine's folder")
	seedFile := flag.String("seed", "", "seed.json")
	hub := flag.String("hub", "", "address of the hub")
	escrow := flag.String("escrow", "", "file of another machine's escrow to show")
	wrong := flag.Bool("wrong", false, "the disk is not the escrow's")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	var seed release.Seed
	if err := errors.Join(durable.ReadJSON(*seedFile, &seed), os.MkdirAll(*dir, 0o700)); err != nil {
		return err
	}
	b, err := box.OpenFolder(filepath.Join(*dir, "tpm"))
	if err != nil {
		return err
	}
	key := bytes.Repeat([]byte{9}, 32)
	sealed, err := sealEscrow(seed, b, key)
	if err != nil {
		return err
	}
	if *escrow != "" {
		if sealed, err = os.ReadFile(*escrow); err != nil {
			return err
		}
	}
	// A copy, as the boot partition has one, and a port that is free.
	free, err := net.Listen("tcp", ":0")
	if err != nil {
		return err
	}
	port := free.Addr().(*net.TCPAddr).Port
	free.Close()
	if err := errors.Join(os.WriteFile(filepath.Join(*dir, "recovery.age"), sealed, 0o600),
		os.WriteFile(filepath.Join(*dir, "lan"), fmt.Appendf(nil, "127.0.0.1:%d", port), 0o600)); err != nil {
		return err
	}
	return machine.Limited(ctx, machine.Config{
		Folder: *dir, Seed: *seedFile, Hosted: true, Hostname: "box", APIPort: port,
		Network: func() machine.Network { return machine.Network{Hubs: []string{*hub}} },
		Log:     slog.New(slog.DiscardHandler),
	}, machine.Limits{
		Reason: faults.New(faults.LockedBoot, "PCR 7"),
		Escrow: func() ([]byte, error) { return sealed, nil },
		Unlock: func(_ context.Context, got []byte) error {
			if *wrong || !bytes.Equal(got, key) {
				return machine.ErrWrongKey
			}
			return nil
		},
	})
}

// sealEscrow does what a machine does at its installation.
func sealEscrow(seed release.Seed, b box.Box, key []byte) ([]byte, error) {
	trust, err := fleet.ParseTrust("trust.yaml", seed.Trust)
	if err != nil {
		return nil, err
	}
	text, err := wire.SignEscrow(wire.Escrow{Fleet: seed.FleetID, Key: key}, b.Signer())
	if err != nil {
		return nil, err
	}
	to, err := age.ParseX25519Recipient(trust.Recovery[0])
	if err != nil {
		return nil, err
	}
	return encrypt(text, to)
}

// setcode FILE: CODE is the code on this console, once it waits to be adopted.
func cmdSetCode(ts *testscript.TestScript, neg bool, a []string) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	late := time.After(30 * time.Second)
	for {
		text, _ := os.ReadFile(ts.MkAbs(a[0]))
		for line := range strings.Lines(string(text)) {
			if code, ok := strings.CutPrefix(strings.TrimSpace(line), "code"); ok && strings.Contains(string(text), "connected to") && !strings.Contains(string(text), "not connected") {
				ts.Setenv("CODE", strings.TrimSpace(code))
				return
			}
		}
		select {
		case <-tick.C:
		case <-late:
			ts.Fatalf("no code in 30 s:\n%s", text)
		}
	}
}

// waitlocked SITE: the hub says that the site's machine is linked and locked.
func cmdWaitLocked(ts *testscript.TestScript, neg bool, a []string) {
	for late := time.Now().Add(30 * time.Second); time.Now().Before(late); {
		if err := ts.Exec("holdfast", "status", a[0], "--output", "json"); err == nil && strings.Contains(ts.ReadFile("stdout"), `"state": "locked"`) {
			return
		}
	}
	ts.Fatalf("%s was never locked:\n%s", a[0], ts.ReadFile("stdout"))
}

// A plain age file is read as an armored one is.
func TestOpenAge(t *testing.T) {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	var plain bytes.Buffer
	w, err := age.Encrypt(&plain, id.Recipient())
	if err != nil {
		t.Fatal(err)
	}
	w.Write([]byte("text"))
	w.Close()
	armored, err := encrypt([]byte("text"), id.Recipient())
	if err != nil {
		t.Fatal(err)
	}
	for name, sealed := range map[string][]byte{"plain": plain.Bytes(), "armored": armored} {
		if got, err := openAge(sealed, []age.Identity{id}); err != nil || string(got) != "text" {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	other, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string][]byte{"empty": nil, "garbage": []byte("garbage"), "cut": armored[:len(armored)/2]} {
		if _, err := openAge(bad, []age.Identity{id}); err == nil {
			t.Errorf("%s: opened", name)
		}
	}
	if _, err := openAge(armored, []age.Identity{other}); err == nil {
		t.Error("another key opened it")
	}
}

// Errors of a machine name it, say what to do, and carry the right code.
func TestMachineErrors(t *testing.T) {
	target := &target{site: &fleet.Site{Name: "fr-00001"}, machine: fleet.Machine{Name: "m1", ID: fleetgen.MachineID(1, 0)}}
	for name, c := range map[string]struct {
		err  error
		code int
		text string
	}{
		"another machine answers": {fmt.Errorf("dial: %w", link.ErrPin), CodeRefused, "is not fr-00001/m1"},
		"refused":                 {fmt.Errorf("open: %w", &wire.Refusal{Status: 403, Reason: "no role"}), CodeRefused, "no role"},
		"unreachable":             {errors.New("timeout"), CodeUnreachable, "not reached by way of hub:443"},
		"interrupted":             {context.Canceled, CodeInterrupted, "canceled"},
	} {
		err := notReached(target, "hub:443", c.err)
		if Code(err) != c.code || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: code %d, %v", name, Code(err), err)
		}
	}
}

// The escrow of a fleet's other machine is refused, whoever shows it.
func TestEscrowOfAnother(t *testing.T) {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	identity, err := link.NewIdentity(key)
	if err != nil {
		t.Fatal(err)
	}
	const mine = fleet.ID("00112233445566778899aabbccddeeff")
	signed, err := wire.SignEscrow(wire.Escrow{Fleet: mine, Key: make([]byte, 32)}, key)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		machine fleet.MachineID
		fleet   fleet.ID
		text    []byte
		good    bool
	}{
		"its own":         {identity.ID(), mine, signed, true},
		"another machine": {fleetgen.MachineID(1, 0), mine, signed, false},
		"another fleet":   {identity.ID(), fleet.ID(strings.Repeat("ab", 16)), signed, false},
		"a bare key":      {identity.ID(), mine, make([]byte, 32), false},
	} {
		sealed, err := encrypt(c.text, id.Recipient())
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(t.TempDir(), "recovery.age")
		if err := os.WriteFile(file, sealed, 0o600); err != nil {
			t.Fatal(err)
		}
		target := &target{fleet: &fleet.Fleet{ID: c.fleet}, site: &fleet.Site{Name: "s"}, machine: fleet.Machine{Name: "m1", ID: c.machine}}
		got, err := new(env).diskKey(t.Context(), nil, target, []age.Identity{id}, file)
		if (err == nil) != c.good || c.good && len(got) != 32 || !c.good && Code(err) != CodeRefused {
			t.Errorf("%s: %v", name, err)
		}
	}
}
