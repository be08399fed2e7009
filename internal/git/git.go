// Package git reads and writes a Git repository through the git program (2.30 or newer), for people's machines and the hub's mirror.
// A machine never runs it: machines speak slices.
//
// It promises to read objects and never the work tree (so that CRLF and filter settings change nothing), to follow neither
// replacement objects nor GIT_* variables that point elsewhere, to work with SHA-1 and SHA-256 repositories, worktrees, bare
// repositories and a fleet in a sub-folder, and to end its processes with the context. Its errors say what was tried and what to do next.
//
// It leaves out whatever decides: object ids found here are names for bytes, and what is trusted is judged in package release.
package git

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

var (
	// ErrNoGit: there is no git program. Returned by Open, Init, InitBare.
	ErrNoGit = errors.New("git was not found")
	// ErrNotRepository is returned by Open.
	ErrNotRepository = errors.New("not a Git repository")
	// ErrNoCommits is returned by Head in a repository that has none yet.
	ErrNoCommits = errors.New("no commits yet")
	// ErrNoRevision is returned by Resolve, Tree and ReadTag for a name that means nothing here.
	ErrNoRevision = errors.New("no such revision")
	// ErrNotTag is returned by ReadTag for a lightweight tag, which cannot be signed.
	ErrNotTag = errors.New("not a tag object")
	// ErrExists is returned by WriteTag when the name is taken: somebody else was first.
	ErrExists = errors.New("exists already")
	// ErrRace is returned by Push when the remote has something else under that name: somebody else was first.
	ErrRace = errors.New("the remote has it already, or has moved on")
	// ErrNothing is returned by Commit when there is nothing to commit.
	ErrNothing = errors.New("nothing to commit")
	// ErrNoIdent is returned by Ident and Commit when git does not know who is at work.
	ErrNoIdent = errors.New("git does not know your name and e-mail address")
)

// Repo is one repository. Its methods may be used at the same time.
type Repo struct {
	top    string // work tree, or the repository itself when bare
	gitDir string
	prefix string // of the folder given to Open below top, slash-separated, "." if the same
	bare   bool
}

// Open finds the repository that holds the folder dir.
func Open(ctx context.Context, dir string) (*Repo, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("open repository %s: %w", dir, err)
	}
	if st, err := os.Stat(abs); err != nil {
		return nil, fmt.Errorf("open repository %s: %w", dir, err)
	} else if !st.IsDir() {
		return nil, fmt.Errorf("open repository %s: that is a file; name a folder", dir)
	}
	r := &Repo{top: abs}
	out, err := r.run(ctx, nil, "rev-parse", "--is-bare-repository", "--absolute-git-dir")
	if err != nil {
		return nil, openError(dir, err)
	}
	lines := strings.Split(strings.TrimRight(string(out), "\n"), "\n")
	if len(lines) != 2 {
		return nil, fmt.Errorf("open repository %s: git rev-parse answered %q", dir, out)
	}
	r.gitDir, r.bare = filepath.FromSlash(lines[1]), lines[0] == "true"
	if r.bare {
		r.top, r.prefix = r.gitDir, "."
		return r, nil
	}
	if out, err = r.run(ctx, nil, "rev-parse", "--show-toplevel", "--show-prefix"); err != nil {
		return nil, openError(dir, err)
	}
	top, prefix, _ := strings.Cut(strings.TrimSuffix(string(out), "\n"), "\n")
	r.top, r.prefix = filepath.FromSlash(top), strings.TrimSuffix(prefix, "/")
	if r.prefix == "" {
		r.prefix = "."
	}
	return r, nil
}

func openError(dir string, err error) error {
	var f *failure
	switch {
	case !errors.As(err, &f):
		return fmt.Errorf("open repository %s: %w", dir, err)
	case strings.Contains(f.stderr, "dubious ownership"):
		return fmt.Errorf("open repository %s: it belongs to another user; if you trust what is in it, run: git config --global --add safe.directory %s", dir, dir)
	case strings.Contains(f.stderr, "must be run in a work tree"):
		return fmt.Errorf("open repository %s: %w: this is inside a .git folder; name the folder that holds it", dir, ErrNotRepository)
	case strings.Contains(f.stderr, "not a git repository"):
		return fmt.Errorf("open repository %s: %w: run `git init` there, or name the folder of your fleet", dir, ErrNotRepository)
	}
	return fmt.Errorf("open repository %s: %w", dir, err)
}

// Init makes a repository with a work tree at dir, with branch main; one that is there already stays as it is.
func Init(ctx context.Context, dir string) (*Repo, error) { return initialise(ctx, dir) }

// InitBare makes a repository without a work tree at dir, as a mirror.
func InitBare(ctx context.Context, dir string) (*Repo, error) { return initialise(ctx, dir, "--bare") }

func initialise(ctx context.Context, dir string, options ...string) (*Repo, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make repository %s: %w", dir, err)
	}
	r := &Repo{top: dir}
	args := append([]string{"init", "--quiet", "--initial-branch=main"}, options...)
	if _, err := r.run(ctx, nil, args...); err != nil {
		return nil, fmt.Errorf("make repository %s: %w", dir, err)
	}
	return Open(ctx, dir)
}

// Top is the top folder of the work tree; in a bare repository, the repository.
func (r *Repo) Top() string { return r.top }

// GitDir is where Git keeps its own files (of this worktree, if there are several).
func (r *Repo) GitDir() string { return r.gitDir }

// Prefix is the folder that was given to Open, below Top, slash-separated; "." for Top itself. It is the Root of a fleet in a monorepo.
func (r *Repo) Prefix() string { return r.prefix }

// Bare tells whether there is no work tree.
func (r *Repo) Bare() bool { return r.bare }

// Head is the commit that is checked out.
func (r *Repo) Head(ctx context.Context) (string, error) {
	commit, err := r.Resolve(ctx, "HEAD")
	if errors.Is(err, ErrNoRevision) {
		return "", fmt.Errorf("read HEAD of %s: %w: commit your fleet first (git add . && git commit)", r.top, ErrNoCommits)
	}
	return commit, err
}

// Subject is the first line of a commit's message.
func (r *Repo) Subject(ctx context.Context, commit string) (string, error) {
	commit, err := r.Resolve(ctx, commit)
	if err != nil {
		return "", err
	}
	out, err := r.run(ctx, nil, "log", "-1", "--format=%s", commit)
	if err != nil {
		return "", fmt.Errorf("read the message of %s: %w", commit, err)
	}
	return strings.TrimSpace(string(out)), nil
}

// CommitTime is when a commit was made.
func (r *Repo) CommitTime(ctx context.Context, commit string) (time.Time, error) {
	commit, err := r.Resolve(ctx, commit)
	if err != nil {
		return time.Time{}, err
	}
	out, err := r.run(ctx, nil, "log", "-1", "--format=%ct", commit)
	if err != nil {
		return time.Time{}, fmt.Errorf("read the time of %s: %w", commit, err)
	}
	seconds, err := strconv.ParseInt(strings.TrimSpace(string(out)), 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("read the time of %s: %w", commit, err)
	}
	return time.Unix(seconds, 0).UTC(), nil
}

// Resolve finds the commit that a branch, tag or other revision means. An annotated tag means its commit.
func (r *Repo) Resolve(ctx context.Context, rev string) (string, error) {
	if rev == "" || strings.HasPrefix(rev, "-") {
		return "", fmt.Errorf("find revision %q: %w", rev, ErrNoRevision)
	}
	out, err := r.run(ctx, nil, "rev-parse", "--verify", "--quiet", rev+"^{commit}")
	if failed(err, 1) {
		return "", fmt.Errorf("find revision %q in %s: %w: see `git tag` and `git branch -a`; fetch it if it is elsewhere", rev, r.top, ErrNoRevision)
	}
	if err != nil {
		return "", fmt.Errorf("find revision %q in %s: %w", rev, r.top, err)
	}
	return strings.TrimSpace(string(out)), nil
}

// Dirty lists what differs between the work tree and HEAD, untracked files included, as slash-separated paths below Top.
// With paths given, only what is below those (relative to Top).
func (r *Repo) Dirty(ctx context.Context, paths ...string) ([]string, error) {
	args := []string{"status", "--porcelain=v1", "-z", "--untracked-files=all", "--no-renames"}
	if len(paths) > 0 {
		args = append(append(args, "--"), literal(paths)...)
	}
	out, err := r.run(ctx, nil, args...)
	if err != nil {
		return nil, fmt.Errorf("look for uncommitted changes in %s: %w", r.top, err)
	}
	var dirty []string
	for _, line := range strings.Split(string(out), "\x00") {
		if len(line) > 3 { // "XY path"
			dirty = append(dirty, line[3:])
		}
	}
	return dirty, nil
}

// Config reads one setting; a setting that is not there is "".
func (r *Repo) Config(ctx context.Context, key string) (string, error) {
	out, err := r.run(ctx, nil, "config", "--get", key)
	if failed(err, 1) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read Git setting %s: %w", key, err)
	}
	return strings.TrimSuffix(string(out), "\n"), nil
}

// Ident is who git thinks is at work, for the tagger line of a release.
func (r *Repo) Ident(ctx context.Context) (name, email string, err error) {
	out, err := r.run(ctx, nil, "-c", "user.useConfigOnly=true", "var", "GIT_COMMITTER_IDENT")
	if err != nil {
		return "", "", identError("ask git who you are", err)
	}
	line := string(out)
	open, end := strings.LastIndex(line, " <"), strings.LastIndex(line, "> ")
	if open < 0 || end < open {
		return "", "", fmt.Errorf("ask git who you are: it answered %q", line)
	}
	return line[:open], line[open+2 : end], nil
}

func identError(what string, err error) error {
	var f *failure
	if errors.As(err, &f) && (strings.Contains(f.stderr, "tell me who you are") || strings.Contains(f.stderr, "auto-detect") ||
		strings.Contains(f.stderr, "auto-detection") || strings.Contains(f.stderr, "empty ident")) {
		return fmt.Errorf("%s: %w: run: git config --global user.name \"Your Name\" && git config --global user.email you@example.com", what, ErrNoIdent)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// Commit commits the named paths (relative to Top, slash-separated), new ones and removed ones too, and nothing else that may be staged.
func (r *Repo) Commit(ctx context.Context, msg string, paths ...string) (commit string, err error) {
	if len(paths) == 0 {
		return "", fmt.Errorf("commit in %s: no paths named", r.top)
	}
	what := fmt.Sprintf("commit %s in %s", strings.Join(paths, ", "), r.top)
	if _, err := r.run(ctx, nil, append([]string{"add", "--all", "--"}, literal(paths)...)...); err != nil {
		return "", fmt.Errorf("%s: %w", what, err)
	}
	if dirty, err := r.Dirty(ctx, paths...); err != nil {
		return "", err
	} else if len(dirty) == 0 {
		return "", fmt.Errorf("%s: %w", what, ErrNothing)
	}
	args := append([]string{"-c", "user.useConfigOnly=true", "commit", "--quiet", "--file=-", "--only", "--"}, literal(paths)...)
	if _, err := r.run(ctx, []byte(msg), args...); err != nil {
		return "", identError(what, err)
	}
	return r.Head(ctx)
}

// literal keeps `*` and `:` in paths from meaning anything to git. The top itself is
// spelled "", for with "." git would look for a file of that name.
func literal(paths []string) []string {
	out := make([]string, len(paths))
	for i, p := range paths {
		if p = filepath.ToSlash(p); p == "." {
			p = ""
		}
		out[i] = ":(top,literal)" + p
	}
	return out
}

// failure is a git that ended with an exit code.
type failure struct {
	args   []string
	code   int
	stderr string
}

func (f *failure) Error() string {
	said := strings.TrimSpace(f.stderr)
	if said == "" {
		said = fmt.Sprintf("exit code %d", f.code)
	}
	return fmt.Sprintf("git %s: %s", verb(f.args), said)
}

// verb is the git command among args, without the options before it.
func verb(args []string) string {
	for i := 0; i < len(args); i++ {
		if args[i] == "-c" {
			i++
		} else if !strings.HasPrefix(args[i], "-") {
			return args[i]
		}
	}
	return strings.Join(args, " ")
}

func failed(err error, code int) bool {
	var f *failure
	return errors.As(err, &f) && f.code == code
}

// maxOutput bounds what one git may answer; only listings come this way (10 000 sites list some 10 MB).
const maxOutput = 256 << 20

func (r *Repo) run(ctx context.Context, stdin []byte, args ...string) ([]byte, error) {
	cmd := r.command(ctx, args...)
	if stdin != nil {
		cmd.Stdin = bytes.NewReader(stdin)
	}
	var stderr tail
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &limited{w: &out, left: maxOutput}, &stderr
	err := cmd.Run()
	if ctx.Err() != nil {
		return nil, fmt.Errorf("git %s: %w", verb(args), context.Cause(ctx))
	}
	return out.Bytes(), commandError(args, err, &stderr)
}

func commandError(args []string, err error, stderr *tail) error {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return nil
	case errors.Is(err, exec.ErrNotFound):
		return fmt.Errorf("%w: install git 2.30 or newer and see that it is in PATH", ErrNoGit)
	case errors.As(err, &exit):
		return &failure{args: args, code: exit.ExitCode(), stderr: stderr.String()}
	}
	return fmt.Errorf("git %s: %w", verb(args), err)
}

func (r *Repo) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "git", args...)
	cmd.Dir = r.top
	cmd.Env = environment(os.Environ())
	cmd.WaitDelay = 5 * time.Second // a helper (ssh, a credential prompt) may hold the pipes
	return cmd
}

// kept are the GIT_ variables that say who and how; all others say where (GIT_DIR, GIT_INDEX_FILE, as in a hook) or what
// (GIT_CONFIG_COUNT, GIT_REPLACE_REF_BASE), and are dropped.
var kept = []string{
	"GIT_SSH=", "GIT_SSH_COMMAND=", "GIT_SSH_VARIANT=", "GIT_ASKPASS=", "GIT_TERMINAL_PROMPT=", "GIT_SSL_", "GIT_HTTP_", "GIT_PROXY_",
	"GIT_AUTHOR_", "GIT_COMMITTER_", "GIT_CONFIG_GLOBAL=", "GIT_CONFIG_SYSTEM=", "GIT_CONFIG_NOSYSTEM=", "GIT_EXEC_PATH=",
}

func environment(all []string) []string {
	var env []string
next:
	for _, v := range all {
		if strings.HasPrefix(v, "LC_ALL=") || strings.HasPrefix(v, "LANGUAGE=") {
			continue
		}
		if !strings.HasPrefix(strings.ToUpper(v), "GIT_") {
			env = append(env, v)
			continue
		}
		for _, k := range kept {
			if strings.HasPrefix(v, k) {
				env = append(env, v)
				continue next
			}
		}
	}
	// Messages are compared, so they are English; nobody's replacement object stands in for the object that is signed.
	return append(env, "LC_ALL=C", "GIT_NO_REPLACE_OBJECTS=1", "GIT_OPTIONAL_LOCKS=0")
}

// tail keeps the last part of what a process says on its standard error.
type tail struct{ b []byte }

const maxTail = 8 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.b = append(t.b, p...)
	if len(t.b) > maxTail {
		t.b = append([]byte(nil), t.b[len(t.b)-maxTail:]...)
	}
	return len(p), nil
}
func (t *tail) String() string { return string(t.b) }

type limited struct {
	w    io.Writer
	left int
}

func (l *limited) Write(p []byte) (int, error) {
	if len(p) > l.left {
		return 0, fmt.Errorf("git answered more than %d bytes", maxOutput)
	}
	l.left -= len(p)
	return l.w.Write(p)
}
