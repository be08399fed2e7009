package hub

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-edge/holdfast/internal/git"
	"github.com/holdfast-edge/holdfast/link/linktest"
	"github.com/holdfast-edge/holdfast/release"
)

// remote is the Git repository that a hub polls.
type gitRemote struct {
	t   *testing.T
	w   *world
	dir string
	*git.Repo
}

func newGitRemote(t *testing.T, w *world) *gitRemote {
	t.Helper()
	dir := t.TempDir()
	repo, err := git.Init(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	return &gitRemote{t, w, dir, repo}
}

func (g *gitRemote) git(args ...string) string {
	g.t.Helper()
	cmd := exec.Command("git", append([]string{"-C", g.dir, "-c", "user.name=Ada", "-c", "user.email=ada@example.com", "-c", "commit.gpgsign=false"}, args...)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		g.t.Fatalf("git %v: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// commit writes the world's files and returns the commit.
func (g *gitRemote) commit() string {
	g.t.Helper()
	for name, data := range g.w.files {
		path := filepath.Join(g.dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			g.t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			g.t.Fatal(err)
		}
	}
	g.git("add", "-A")
	g.git("commit", "-q", "--allow-empty", "-m", "change")
	return g.git("rev-parse", "HEAD")
}

// release commits, tags and signs; edit may lie, by whoever.
func (g *gitRemote) release(by string, edit func(*release.Payload)) *release.Tag {
	g.t.Helper()
	commit := g.commit()
	p := g.w.payload()
	p.Object = commit
	if edit != nil {
		edit(&p)
	}
	tag := g.w.sign(p, by)
	if err := g.WriteTag(g.t.Context(), release.TagName(p.N), tag.Raw); err != nil {
		g.t.Fatal(err)
	}
	return tag
}

func TestGitRemote(t *testing.T) {
	w := newWorld(t, 3)
	id := linktest.NewIdentity(t)
	w.adopt(0, id.ID())
	g := newGitRemote(t, w)
	w.last = g.release("ci", nil)
	cfg := w.config(t)
	cfg.GitRemote, cfg.PollEvery = g.dir, 30*time.Millisecond
	r := w.start(t, cfg)
	m := r.machine(id)
	m.waitRelease(1)

	// Forged and mistaken tags above the head do not keep a good one out.
	c := w.clone()
	forged := *g
	forged.w = c
	forged.release("mallory", func(p *release.Payload) { p.N, p.Previous = 99, release.Digest{} })
	forged.release("ci", func(p *release.Payload) { p.N, p.Previous, p.TreeSHA256 = 98, release.Digest{}, release.ObjectID{1} })
	g.git("tag", "release/97")
	g.git("tag", "-a", "release/96", "-m", "unsigned")
	w.clock = c.clock
	w.last = g.release("ci", nil)
	m.waitRelease(2)

	// A tag that was moved is an alarm and changes nothing.
	moved := w.clone()
	moved.files["moved"] = []byte("x")
	p := moved.payload()
	p.Object, p.N, p.Previous = g.git("rev-parse", "HEAD"), 2, w.last.Payload.Previous
	g.git("tag", "-d", "release/2")
	if err := g.WriteTag(t.Context(), "release/2", w.sign(p, "ci").Raw); err != nil {
		t.Fatal(err)
	}
	w.clock = moved.clock
	w.last = g.release("ci", nil)
	m.waitRelease(3)
	two, err := r.store.Release(context.Background(), 2)
	if err != nil || two.Origin != "git" {
		t.Errorf("release 2: %+v, %v", two, err)
	}
	if two.Payload == release.Digest(w.sign(p, "ci").Digest()) {
		t.Error("the moved tag replaced the first")
	}

	// A restart over a stale lock of a killed git goes on.
	r.stop()
	lock := filepath.Join(cfg.DataDir, "mirror.git", "packed-refs.lock")
	if err := os.WriteFile(lock, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	again := w.start(t, cfg)
	w.last = g.release("ci", nil)
	again.waitFor("release 4", func() bool { return again.head().N == 4 })
}

func TestNewHubWalksTrustFromGit(t *testing.T) {
	w := newWorld(t, 3)
	g := newGitRemote(t, w)
	w.last = g.release("ci", nil)
	for v := 2; v <= 4; v++ {
		w.files["trust.yaml"] = []byte(strings.Replace(string(w.files["trust.yaml"]), fmt.Sprintf("version: %d\n", v-1), fmt.Sprintf("version: %d\n", v), 1))
		w.last = g.release("ci", nil)
		w.last = g.release("ci", nil)
	}
	cfg := w.config(t)
	cfg.GitRemote, cfg.PollEvery = g.dir, 30*time.Millisecond
	r := w.start(t, cfg)
	r.waitFor("the newest release", func() bool { return r.head().N == 7 && r.head().trust.Version == 4 })
	if n := len(r.head().steps); n != 3 {
		t.Errorf("%d steps of trust, want 3", n)
	}
}

func TestErrGitRemoteGone(t *testing.T) {
	w := newWorld(t, 3)
	cfg := w.config(t)
	cfg.GitRemote, cfg.PollEvery = filepath.Join(t.TempDir(), "nothing"), 10*time.Millisecond
	r := w.start(t, cfg)
	r.mustPush(w.release()) // pushes go on
}
