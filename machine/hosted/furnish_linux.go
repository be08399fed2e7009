package hosted

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/holdfast-edge/holdfast/internal/netns"
)

// furnish fills the new root: files, settings, names.
func furnish(o *orders) error {
	for dir, mode := range map[string]os.FileMode{"/tmp": 0o1777, "/var/tmp": 0o1777, "/root": 0o700, "/run": 0o755, "/etc/cni/net.d": 0o755, "/var/lib/cni": 0o755, "/mnt": 0o755, "/opt/holdfast": 0o755} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if dir == "/opt/holdfast" && o.Bin != "" {
			continue
		}
		if mode == 0o1777 {
			mode = 0o777 | os.ModeSticky
		}
		if err := os.Chmod(dir, mode); err != nil {
			return err
		}
	}
	if err := mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755,size=128m"); err != nil {
		return err
	}
	if err := os.Symlink("/run", "/var/run"); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(o.Hostname)); err != nil {
		return fmt.Errorf("set the host name: %w", err)
	}
	if err := writeEtc(o); err != nil {
		return err
	}
	if err := makeBallast(); err != nil {
		return err
	}
	if err := netns.Up("lo"); err != nil {
		return fmt.Errorf("bring up lo: %w", err)
	}
	for name, value := range networkSettings {
		err := os.WriteFile("/proc/sys/net/"+name, []byte(value), 0)
		if err != nil && !errors.Is(err, os.ErrNotExist) { // no IPv6, for example
			return fmt.Errorf("set net/%s: %w", name, err)
		}
	}
	// kubelet and containers hand mounts to each other.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("share mounts: %w", err)
	}
	return nil
}

// networkSettings of the machine's own network namespace: it forwards for its pods, and packets may come back another way than they went.
var networkSettings = map[string]string{
	"ipv4/ip_forward":             "1",
	"ipv4/conf/all/rp_filter":     "0",
	"ipv4/conf/default/rp_filter": "0",
	"ipv6/conf/all/forwarding":    "1",
	"ipv6/conf/all/accept_ra":     "0",
	"ipv6/conf/default/accept_ra": "0",
}

func writeEtc(o *orders) error {
	id, err := machineID()
	if err != nil {
		return err
	}
	hosts := "127.0.0.1 localhost\n::1 localhost\n"
	if o.Address != "" {
		hosts += o.Address + " " + o.Hostname + "\n"
	}
	var resolv strings.Builder
	for _, a := range o.DNS {
		fmt.Fprintf(&resolv, "nameserver %s\n", a)
	}
	for name, text := range map[string]string{
		"hosts":         hosts,
		"hostname":      o.Hostname + "\n",
		"resolv.conf":   resolv.String(),
		"machine-id":    id + "\n",
		"passwd":        "root:x:0:0:root:/root:/bin/false\nnobody:x:65534:65534:nobody:/:/bin/false\n",
		"group":         "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n",
		"nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
		"os-release":    "NAME=Holdfast\nID=holdfast\nPRETTY_NAME=\"Holdfast, hosted\"\n",
	} {
		if err := touch("/etc/"+name, text); err != nil {
			return err
		}
	}
	return nil
}

// machineID is random and lasts as long as STATE. A half-written one, after a power cut, is made anew.
func machineID() (string, error) {
	const path = "/state/machine-id"
	data, err := os.ReadFile(path)
	if id := strings.TrimSpace(string(data)); err == nil && len(id) == 32 {
		return id, nil
	}
	raw := make([]byte, 16)
	rand.Read(raw)
	id := hex.EncodeToString(raw)
	if err := touch(path+".tmp", id+"\n"); err != nil {
		return "", err
	}
	return id, os.Rename(path+".tmp", path)
}

const ballastFile = "/state/ballast"

// makeBallast sets space on STATE aside, so that etcd on a full disk has something to be freed. Where there is no room for it, that is no fault.
func makeBallast() error {
	if _, err := os.Stat(ballastFile); err == nil {
		return nil
	}
	var fs unix.Statfs_t
	if err := unix.Statfs("/state", &fs); err != nil {
		return err
	}
	size := min(32<<20, int64(fs.Blocks)*fs.Bsize/20)
	if int64(fs.Bavail)*fs.Bsize < 4*size {
		return nil
	}
	f, err := os.OpenFile(ballastFile, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Fallocate(int(f.Fd()), 0, 0, size)
}
