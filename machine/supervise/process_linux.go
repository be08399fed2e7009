package supervise

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-edge/holdfast/internal/cgroups"
	"github.com/holdfast-edge/holdfast/internal/spawn"
)

// realLauncher starts processes of this machine.
type realLauncher struct {
	config Config
	mu     sync.Mutex
	logs   map[string]*logFile // one for all processes of a child, since an old one's children may still write
}

func newRealLauncher(c Config) launcher { return &realLauncher{config: c, logs: map[string]*logFile{}} }

type realProcess struct {
	cmd    *exec.Cmd
	output *output
}

func (l *realLauncher) launch(spec Child) (process, error) {
	var group *cgroups.Group
	if spec.Cgroup != "" {
		host, err := cgroups.Detect()
		if err != nil {
			return nil, err
		}
		group = host.Group(filepath.Join(l.config.Cgroup, spec.Cgroup))
		if err := group.Create(cgroups.Limits{}); err != nil {
			return nil, err
		}
	}
	out, w, err := newOutput(l.log(spec.Name))
	if err != nil {
		return nil, err
	}
	defer w.Close()
	cmd := exec.Command(spec.Path, spec.Args...)
	cmd.Env, cmd.Dir = spec.Env, cmp.Or(spec.Dir, "/")
	// Files, not writers: with a writer Wait would also wait for whoever inherited the pipe, a container shim for example.
	cmd.Stdout, cmd.Stderr = w, w
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a terminal's Ctrl-C is for us, who stop in order
	if err := spawn.Start(cmd, group); err != nil {
		out.close()
		return nil, fmt.Errorf("start %s: %w", spec.Path, err)
	}
	if spec.OOMScoreAdj != 0 {
		path := fmt.Sprintf("/proc/%d/oom_score_adj", cmd.Process.Pid)
		if err := os.WriteFile(path, []byte(strconv.Itoa(spec.OOMScoreAdj)), 0); err != nil {
			l.config.Log.Info("oom score not set", "child", spec.Name, "err", err)
		}
	}
	return &realProcess{cmd, out}, nil
}

func (l *realLauncher) log(name string) *logFile {
	if l.config.LogDir == "" {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.logs[name] == nil {
		l.logs[name] = &logFile{path: filepath.Join(l.config.LogDir, name+".log"), size: l.config.LogSize, keep: l.config.LogFiles}
	}
	return l.logs[name]
}

func (p *realProcess) pid() int { return p.cmd.Process.Pid }

func (p *realProcess) signal(spec Child, kill bool) {
	sig := spec.signal()
	if kill {
		sig = syscall.SIGKILL
	}
	p.cmd.Process.Signal(sig) // through its pidfd: one that has ended is not another
}

func (p *realProcess) wait() Exit {
	err := spawn.Wait(p.cmd)
	exit := Exit{Code: p.cmd.ProcessState.ExitCode(), Output: p.output.last(100 * time.Millisecond)}
	if status, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		exit.Signal = unix.SignalName(status.Signal())
	}
	if ended := (*exec.ExitError)(nil); err != nil && !errors.As(err, &ended) {
		exit.Reason = err.Error()
	}
	return exit
}
