package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/holdfast-edge/holdfast/internal/durable"
	"github.com/holdfast-edge/holdfast/internal/flock"
	"github.com/holdfast-edge/holdfast/internal/netns"
	"github.com/holdfast-edge/holdfast/lab/world"
)

// Prepare writes what the hub and each machine find at their first start: the
// seed, and where the hub is. What is there already stays.
func (l Lab) Prepare(w *Wanted, seed any, hubKey []byte) error {
	if err := durable.MkdirAll(l.path("machines"), 0o700); err != nil {
		return err
	}
	if err := writeNew(l.path("hub.key"), func(path string) error { return durable.WriteFile(path, hubKey, 0o600) }); err != nil {
		return err
	}
	if err := writeNew(l.path("seed.json"), func(path string) error { return durable.WriteJSON(path, seed, 0o600) }); err != nil {
		return err
	}
	hints := map[string][]string{"hubs": {HubAddress}}
	for _, m := range w.Machines {
		folder := m.Folder
		if err := durable.MkdirAll(folder, 0o700); err != nil {
			return err
		}
		if m.Virtual() { // its seed is in the OS image, and the rest on its disk
			if err := l.prepareDisks(m); err != nil {
				return fmt.Errorf("prepare machine %s: %w", m.Key(), err)
			}
			continue
		}
		if err := writeNew(filepath.Join(folder, "seed.json"), func(path string) error { return durable.WriteJSON(path, seed, 0o600) }); err != nil {
			return err
		}
		if err := writeNew(filepath.Join(folder, "network.json"), func(path string) error { return durable.WriteJSON(path, hints, 0o600) }); err != nil {
			return err
		}
	}
	return nil
}

func writeNew(path string, write func(string) error) error {
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return write(path)
}

// Console is what a machine's console shows; "" before its first start.
func (l Lab) Console(m Machine) string {
	if m.Virtual() {
		lines := l.lastLines(m, 20)
		if why := l.Trouble(m); why != "" {
			lines += "it is off and cannot be started: " + why + "\n"
		}
		return lines
	}
	b, err := os.ReadFile(filepath.Join(m.Folder, "console"))
	if err != nil {
		return ""
	}
	return string(b)
}

// Code is the code on a machine's console; "" before its first start.
func (l Lab) Code(m Machine) string {
	if m.Virtual() {
		return codeIn(l.serial(m))
	}
	for line := range strings.Lines(l.Console(m)) {
		if rest, ok := strings.CutPrefix(strings.TrimSpace(line), "code "); ok {
			return strings.TrimSpace(rest)
		}
	}
	return ""
}

// network opens the lab's network by a process that holds it.
func (l Lab) network() (*os.File, error) {
	w, err := l.Wanted()
	if err != nil {
		return nil, err
	}
	for _, m := range w.Machines {
		pid, held, err := flock.Owner(l.machine(m).lock)
		if err != nil || !held || pid == 0 {
			continue
		}
		if f, err := os.Open(fmt.Sprintf("/proc/%d/fd/3", pid)); err == nil {
			return f, nil
		}
	}
	return nil, errors.New("no machine of the lab is alive, so its network is not there")
}

// Exec runs a command inside the lab's network, as a computer that stands in
// the shop would. It shares everything else with the host.
func (l Lab) Exec(ctx context.Context, stdin io.Reader, stdout, stderr io.Writer, args []string) error {
	ns, err := l.network()
	if err != nil {
		return err
	}
	defer ns.Close()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, stdout, stderr
	if err := netns.Do(ns, cmd.Start); err != nil {
		return fmt.Errorf("run %s in the lab's network: %w", args[0], err)
	}
	return cmd.Wait()
}

// Fetch gets a URL from inside the lab's network; the host must be numeric.
func (l Lab) Fetch(ctx context.Context, url string) ([]byte, error) {
	ns, err := l.network()
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			return world.DialIn(ctx, ns, network, address)
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode/100 != 2 {
		return nil, fmt.Errorf("%s answers %s: %s", url, resp.Status, bytes.TrimSpace(body))
	}
	return body, nil
}
