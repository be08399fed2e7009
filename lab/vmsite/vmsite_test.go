//go:build vm

package vmsite

import (
	"encoding/json"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/erofs/go-erofs"

	"github.com/holdfast-edge/holdfast/lab"
	"github.com/holdfast-edge/holdfast/lab/drill"
	"github.com/holdfast-edge/holdfast/lab/labtest"
	"github.com/holdfast-edge/holdfast/link/wire"
	"github.com/holdfast-edge/holdfast/osimage/audit"
	"github.com/holdfast-edge/holdfast/osimage/build"
)

var (
	binFlag    = flag.String("bin", "../../bin", "folder with holdfast, machined, init, system and images")
	seedFlag   = flag.Uint64("seed", 1, "of the random instants of the drills")
	cutsFlag   = flag.Int("cuts", 1, "power cuts")
	memoryFlag = flag.Int64("memory", 1<<30, "bytes of memory of the machine")
	drillsFlag = flag.String("drills", "power,update", "drills to run, in this order")
	keepFlag   = flag.String("keep", "", "folder to work in, and to leave with its lab: for looking at what went wrong")
)

const (
	siteName = "bristol-harbour"
	nodePort = "30080"
	most     = 40 * time.Minute // for anything, on a slow and busy computer
)

// shop is a fleet with a lab of one virtual machine.
type shop struct{ *labtest.Shop }

// TestVirtualMachine tells a machine's story. The chapters stand on each other, so
// the first that fails ends it.
func TestVirtualMachine(t *testing.T) {
	s := shop{labtest.New(t, labtest.Options{
		Bin: *binFlag, Needs: []string{"machined", "init", "system/kube", "images/hello-1.0.0.tar"}, Make: "make build system images os",
		Site: siteName, Most: most, Keep: *keepFlag,
	})}
	type chapter struct {
		name string
		tell func(*testing.T)
	}
	chapters := []chapter{
		{"Up", func(t *testing.T) {
			s.Up(t, "--runtime", string(lab.Virtual), "--memory", strconv.FormatInt(*memoryFlag, 10))
		}},
		{"Root", s.testRoot}, {"Protected", s.testProtected}, {"Strangers", s.testStrangers},
	}
	for name := range strings.SplitSeq(*drillsFlag, ",") {
		if name = strings.TrimSpace(name); name != "" {
			chapters = append(chapters, chapter{"Drill-" + name, func(t *testing.T) { s.drill(t, name) }})
		}
	}
	chapters = append(chapters, chapter{"StockTools", s.testStockTools})
	for _, c := range chapters {
		began := time.Now()
		if !t.Run(c.name, c.tell) {
			return
		}
		t.Logf("%s took %.0f s", c.name, time.Since(began).Seconds())
	}
}

// drill runs one, as people do, and shows its verdict.
func (s shop) drill(t *testing.T, name string) {
	out, err := s.Try("drill", name, siteName, "--seed", strconv.FormatUint(*seedFlag, 10), "--cuts", strconv.Itoa(*cutsFlag), "--patience", "20m", "--output", "json")
	var v drill.Verdict
	if fault := json.Unmarshal([]byte(out), &v); fault != nil {
		t.Fatalf("%v: %v\n%s", err, fault, out)
	}
	for _, step := range v.Steps {
		t.Logf("%s\n  expected %s\n  seen     %s\n  lost     %s\n  %.0f s, kept %t", step.Did, step.Expected, step.Seen, step.Lost, step.Seconds, step.Kept)
	}
	if err != nil || !v.Kept {
		t.Errorf("%s: %v", &v, err)
	}
}

// testRoot walks the root that the machine runs: nothing is there that a stranger
// could run commands with, and nothing that gives anybody more rights.
func (s shop) testRoot(t *testing.T) {
	f, err := os.Open(filepath.Join(s.Machine(t).OS, build.PartRoot))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	root, err := erofs.Open(f)
	if err != nil {
		t.Fatal(err)
	}
	r, err := audit.Root(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, fault := range r.Faults {
		t.Error(fault)
	}
	t.Logf("%d files, %d bytes; executable: %s", r.Files, r.Bytes, strings.Join(r.Programs, " "))
}

// testProtected is what the machine says of its box.
func (s shop) testProtected(t *testing.T) {
	m, err := s.Status()
	if err != nil {
		t.Fatal(err)
	}
	if m.Protection != "tpm" || m.Slot != "a" || m.OS == "" {
		t.Errorf("protection %q, OS %q in slot %q; want tpm, and an OS in slot a", m.Protection, m.OS, m.Slot)
	}
	for _, c := range m.Conditions {
		t.Logf("it says of itself: %s: %s", c.Name, c.Detail)
	}
	if console := s.Run(t, "lab", "console", siteName); strings.Contains(console, "the boot is not protected") {
		t.Error("Secure Boot is not on")
	}
}

// testStrangers tries the ports of all that runs in the machine from its LAN, by
// IPv4 and by the address that IPv6 brings along, and asks the machine itself where
// it listens: that an open port of UDP stays silent proves nothing.
func (s shop) testStrangers(t *testing.T) {
	lan, host := s.LAN(t), s.Machine(t).Address()
	ports := append([]string{nodePort}, labtest.Ports...)
	open := labtest.Reachable(lan, host.String(), ports, 20*time.Second)
	if want := []string{nodePort, "7443"}; !slices.Equal(open, want) {
		t.Errorf("of %d ports strangers may enter %v, want %v", len(ports), open, want)
	}
	local, err := labtest.LinkLocal(lan, host)
	if err != nil {
		t.Fatal(err)
	}
	open = labtest.Reachable(lan, local, ports, 20*time.Second)
	if want := []string{"7443"}; !slices.Equal(open, want) { // pods and Services have IPv4 alone
		t.Errorf("by %s of %d ports strangers may enter %v, want %v", local, len(ports), open, want)
	}
	var status struct {
		Listens []wire.Listener `json:"listens"`
	}
	if err := json.Unmarshal([]byte(s.Run(t, "machine", "status", siteName, "--output", "json")), &status); err != nil {
		t.Fatal(err)
	}
	var strangers []string
	for _, l := range status.Listens {
		at := netip.MustParseAddr(l.Address)
		if !insideSite.Contains(at) { // those are behind the filter of what comes from outside
			strangers = append(strangers, fmt.Sprintf("%s %d", l.Protocol, l.Port))
		}
	}
	if want := []string{"tcp 7443"}; !slices.Equal(strangers, want) {
		t.Errorf("it listens to others than itself on %v, want %v: the machine API; all: %+v", strangers, want, status.Listens)
	}
}

// insideSite are the addresses by which a machine is known in its site, whatever its LAN.
var insideSite = netip.MustParsePrefix("10.213.0.0/24")
