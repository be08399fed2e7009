package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/holdfast-edge/holdfast/link/wire"
)

// shop is the lab that is measured: a fresh example fleet in a temporary folder,
// with keys and notes of its own, so that nothing of the person who measures is touched.
type shop struct {
	o        options
	holdfast string // absolute
	work     string // temporary
	fleet    string
	lab      string
}

func newShop(o options) (*shop, error) {
	holdfast, err := filepath.Abs(filepath.Join(o.bin, "holdfast"))
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(holdfast); err != nil {
		return nil, fmt.Errorf("%w (make build makes it)", err)
	}
	work, err := os.MkdirTemp("", "holdfast-bench-")
	if err != nil {
		return nil, err
	}
	return &shop{o: o, holdfast: holdfast, work: work, fleet: filepath.Join(work, "shops"), lab: filepath.Join(work, "lab")}, nil
}

// close ends the lab and removes everything, also when the run was interrupted.
func (s *shop) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if _, err := os.Stat(s.lab); err == nil {
		if _, err := s.run(ctx, "lab", "down", "--dir", s.lab); err != nil {
			return fmt.Errorf("%w\nthe folder %s stays for a look", err, s.work)
		}
	}
	return os.RemoveAll(s.work)
}

// environment is this one's, with a home that is empty.
func (s *shop) environment() []string {
	var list []string
	for _, v := range os.Environ() {
		name, _, _ := strings.Cut(v, "=")
		if name == "HOME" || name == "SSH_AUTH_SOCK" || strings.HasPrefix(name, "GIT_") || strings.HasPrefix(name, "XDG_") || strings.HasPrefix(name, "HOLDFAST_") {
			continue
		}
		list = append(list, v)
	}
	return append(list, "HOME="+s.work, "HOLDFAST_CONFIG="+filepath.Join(s.work, "notes"))
}

// run runs holdfast in the fleet repo and returns what it printed.
func (s *shop) run(ctx context.Context, args ...string) ([]byte, error) {
	if _, err := os.Stat(s.fleet); err == nil {
		args = append([]string{"--fleet", s.fleet}, args...)
	}
	return s.command(ctx, s.holdfast, args...)
}

func (s *shop) command(ctx context.Context, program string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir, cmd.Env = s.work, s.environment()
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, fmt.Errorf("%s %s: %w: %s%s", filepath.Base(program), strings.Join(args, " "), err, bytes.TrimSpace(stderr.Bytes()), tail(out.Bytes()))
	}
	return out.Bytes(), nil
}

// tail is the end of an output, where the reason usually stands.
func tail(out []byte) string {
	out = bytes.TrimSpace(out)
	return "\n" + string(out[max(0, len(out)-2000):])
}

// ask runs holdfast with --output json and reads the answer into v.
func (s *shop) ask(ctx context.Context, v any, args ...string) error {
	out, err := s.run(ctx, append([]string{"--output", "json"}, args...)...)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(out, v); err != nil {
		return fmt.Errorf("holdfast %s: %w", strings.Join(args, " "), err)
	}
	return nil
}

func (s *shop) version(ctx context.Context) string {
	out, err := s.command(ctx, s.holdfast, "--version")
	if err != nil {
		return "unknown"
	}
	return strings.TrimPrefix(strings.TrimSpace(string(out)), "holdfast ")
}

// measure tells the story of one site, in the order in which it costs least.
func (s *shop) measure(ctx context.Context, t *table) error {
	for _, part := range []func(context.Context, *table) error{s.start, s.rest, s.release, s.crash} {
		if err := part(ctx, t); err != nil {
			return err
		}
	}
	return nil
}

// start is from nothing to the app's answer.
func (s *shop) start(ctx context.Context, t *table) error {
	if _, err := s.run(ctx, "init", s.fleet); err != nil {
		return err
	}
	t.group("From nothing to an answering app, programs built")
	began := time.Now()
	var up struct {
		Phases []struct {
			Phase   string  `json:"phase"`
			Seconds float64 `json:"seconds"`
		} `json:"phases"`
	}
	if err := s.ask(ctx, &up, "lab", "up", "--dir", s.lab, "--listen", s.o.listen, s.o.site); err != nil {
		return err
	}
	if _, err := s.fetch(ctx, ""); err != nil {
		return err
	}
	total := time.Since(began)
	for _, p := range up.Phases {
		t.row(p.Phase, "%.2f s", p.Seconds)
	}
	t.row("`holdfast lab up` until the app answers on the LAN", "**%.1f s**", total.Seconds())
	return nil
}

// answerWithin is how long an app may take until the run counts as failed.
const answerWithin = 3 * time.Minute

// fetch gets the app's page until it contains text, as a screen in the shop would.
func (s *shop) fetch(ctx context.Context, text string) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	var last []byte
	for {
		out, err := s.run(ctx, "lab", "fetch", "--dir", s.lab, "--within", answerWithin.String(), s.o.site, "30080")
		if err == nil && strings.Contains(string(out), text) {
			return time.Now(), nil
		}
		last = out
		if err := errors.Join(err, sleep(ctx, 50*time.Millisecond)); err != nil {
			return time.Time{}, fmt.Errorf("wait for %q from the app, last answer %q: %w", text, last, err)
		}
	}
}

// outer is the process of the machine that lives in the host's namespaces.
func (s *shop) outer(ctx context.Context) (int, error) {
	var status struct {
		Processes []struct {
			Name  string `json:"name"`
			PID   int    `json:"pid"`
			Alive bool   `json:"alive"`
		} `json:"processes"`
	}
	if err := s.ask(ctx, &status, "lab", "status", "--dir", s.lab); err != nil {
		return 0, err
	}
	for _, p := range status.Processes {
		if strings.HasPrefix(p.Name, s.o.site+".") && p.Alive {
			return p.PID, nil
		}
	}
	return 0, fmt.Errorf("the machine of %s is not alive", s.o.site)
}

// linkBytes is what the hub counts on the machine's link, both ways.
func (s *shop) linkBytes(ctx context.Context) (m wire.MachineStatus, head uint64, err error) {
	var status wire.Status
	if err := s.ask(ctx, &status, "status", "--hub", s.o.listen); err != nil {
		return m, 0, err
	}
	for _, site := range status.Sites {
		if site.Name == s.o.site && len(site.Machines) > 0 {
			return site.Machines[0], status.Head.N, nil
		}
	}
	return m, 0, fmt.Errorf("the hub knows no machine of %s", s.o.site)
}

// sample is what is counted at one moment of an idle site.
type sample struct {
	at          time.Time
	processes   []process
	state, data uint64
	machine     wire.MachineStatus
}

func (s *shop) sample(ctx context.Context) (sample, error) {
	outer, err := s.outer(ctx)
	if err != nil {
		return sample{}, err
	}
	machine, _, err := s.linkBytes(ctx)
	if err != nil {
		return sample{}, err
	}
	state, data, err := written(s.lab)
	if err != nil {
		return sample{}, err
	}
	all := processes()
	return sample{time.Now(), append([]process{all[outer]}, renamed(below(all, outer), all)...), state, data, machine}, nil
}

// rest measures memory, idle processors, disk and link of a site that nobody touches.
func (s *shop) rest(ctx context.Context, t *table) error {
	if _, err := s.run(ctx, "kubectl", "--hub", s.o.listen, s.o.site, "get", "--raw", "/openapi/v2"); err != nil {
		return err
	}
	say("the site rests for %v", s.o.rest)
	if err := sleep(ctx, s.o.rest); err != nil {
		return err
	}
	before, err := s.sample(ctx)
	if err != nil {
		return err
	}
	t.group(fmt.Sprintf("At rest for %s, after one GET of /openapi/v2", short(s.o.rest)))
	say("the idle site is watched for %v", s.o.window)
	if err := sleep(ctx, s.o.window); err != nil {
		return err
	}
	after, err := s.sample(ctx)
	if err != nil {
		return err
	}
	if err := tellProcesses(t, before, after); err != nil {
		return err
	}
	window := after.at.Sub(before.at)
	t.row("written to disk", "%.1f MB an hour (STATE %.1f, DATA %.1f)", hourly(after.state-before.state+after.data-before.data, window)/1e6,
		hourly(after.state-before.state, window)/1e6, hourly(after.data-before.data, window)/1e6)
	sent, received := after.machine.BytesSent-before.machine.BytesSent, after.machine.BytesReceived-before.machine.BytesReceived
	t.row("on the link, idle", "%.1f kB an hour from the hub, %.1f kB to it (below TLS; %d B in %s)", hourly(sent, window)/1e3, hourly(received, window)/1e3, sent+received, short(s.o.window))
	return nil
}

// tellProcesses writes a row for each name, and the sums.
func tellProcesses(t *table, before, after sample) error {
	type sum struct {
		memory
		ticks float64
		count int
	}
	earlier := map[int]float64{}
	for _, p := range before.processes {
		earlier[p.pid] = p.ticks
	}
	sums, names := map[string]*sum{}, []string{}
	var all, control sum
	for _, p := range after.processes {
		m, err := memoryOf(p.pid)
		if errors.Is(err, os.ErrNotExist) || m.rss == 0 {
			continue // it ended, or never had memory of its own
		}
		if err != nil {
			return fmt.Errorf("memory of %s (process %d): %w", p.name, p.pid, err)
		}
		if sums[p.name] == nil {
			sums[p.name], names = &sum{}, append(names, p.name)
		}
		into := []*sum{sums[p.name], &all}
		if p.name == "kube control-plane" || p.name == "kube controllers" {
			into = append(into, &control)
		}
		for _, s := range into {
			s.memory, s.ticks, s.count = s.memory.plus(m), s.ticks+max(0, p.ticks-earlier[p.pid]), s.count+1
		}
	}
	seconds := after.at.Sub(before.at).Seconds()
	percent := func(s sum) string { return fmt.Sprintf("%v; %.2f %% of a core", s.memory, s.ticks/seconds) }
	for _, name := range names {
		label := "`" + name + "`"
		if n := sums[name].count; n > 1 {
			label += fmt.Sprintf(" × %d", n)
		}
		t.row(label, "%s", percent(*sums[name]))
	}
	t.row("control plane: etcd, API server, controllers, scheduler", "**%s**", percent(control))
	t.row("whole machine, with the app's pods", "%s", percent(all))
	return nil
}

const greeting = "Good day from the bench"

// release changes one line, releases it, and counts what it took.
func (s *shop) release(ctx context.Context, t *table) error {
	t.group("A release that changes one line")
	file, err := filepath.Glob(filepath.Join(s.fleet, "sites", "*", s.o.site, "site.yaml"))
	if err != nil || len(file) != 1 {
		return fmt.Errorf("find site.yaml of %s: %d files, %v", s.o.site, len(file), err)
	}
	if err := addLine(file[0], "  vars: {greeting: "+greeting+"}\n"); err != nil {
		return err
	}
	if _, err := s.command(ctx, "git", "-C", s.fleet, "commit", "-q", "-a", "-m", "greet anew"); err != nil {
		return err
	}
	before, _, err := s.linkBytes(ctx)
	if err != nil {
		return err
	}
	began := time.Now()
	if _, err := s.run(ctx, "release", "--hub", s.o.listen); err != nil {
		return err
	}
	signed := time.Since(began)
	answered, err := s.fetch(ctx, greeting)
	if err != nil {
		return err
	}
	after, err := s.settled(ctx)
	if err != nil {
		return err
	}
	t.row("`holdfast release`", "%.2f s", signed.Seconds())
	t.row("from the command to the new answer on the LAN", "**%.1f s**", answered.Sub(began).Seconds())
	sent, received := after.BytesSent-before.BytesSent, after.BytesReceived-before.BytesReceived
	t.row("on the link, all told (below TLS)", "**%d B** (%d to the machine, %d reports back)", sent+received, sent, received)
	return nil
}

// addLine adds one line to a file.
func addLine(file, line string) error {
	old, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(old, line...), 0o644)
}

// settled waits until the site runs the newest release and its link is quiet.
func (s *shop) settled(ctx context.Context) (wire.MachineStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	var last wire.MachineStatus
	quiet := 0
	for quiet < 3 {
		m, head, err := s.linkBytes(ctx)
		if err != nil {
			return m, err
		}
		if m.State == wire.OK && m.N == head && m.BytesSent+m.BytesReceived == last.BytesSent+last.BytesReceived {
			quiet++
		} else {
			quiet = 0
		}
		last = m
		if err := sleep(ctx, time.Second); err != nil {
			return m, fmt.Errorf("wait until %s is quiet, last state %s %s: %w", s.o.site, m.State, m.Detail, err)
		}
	}
	return last, nil
}

// crash kills the whole machine while there is no hub.
func (s *shop) crash(ctx context.Context, t *table) error {
	t.group("Without a hub")
	if _, err := s.run(ctx, "lab", "stop", "--dir", s.lab, "hub"); err != nil {
		return err
	}
	old, err := s.outer(ctx)
	if err != nil {
		return err
	}
	began := time.Now()
	if _, err := s.run(ctx, "lab", "kill", "--dir", s.lab, s.o.site); err != nil {
		return err
	}
	if err := s.replaced(ctx, old); err != nil {
		return err
	}
	answered, err := s.fetch(ctx, greeting)
	if err != nil {
		return err
	}
	t.row("kill -9 of the machine, hub stopped, until the app answers again", "**%.1f s**", answered.Sub(began).Seconds())
	return nil
}

// replaced waits until the machine has another process than old.
func (s *shop) replaced(ctx context.Context, old int) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		if pid, err := s.outer(ctx); err == nil && pid != old {
			return nil
		}
		if err := sleep(ctx, 20*time.Millisecond); err != nil {
			return fmt.Errorf("nobody started the machine again: %w", err)
		}
	}
}
