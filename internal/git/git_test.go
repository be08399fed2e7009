package git

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// isolate keeps the settings of whoever runs the tests out of them.
func isolate(t *testing.T) {
	t.Helper()
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("XDG_CONFIG_HOME", home)
	t.Setenv("GIT_CONFIG_GLOBAL", filepath.Join(home, "gitconfig"))
	t.Setenv("GIT_CONFIG_SYSTEM", filepath.Join(home, "none"))
	write(t, filepath.Join(home, "gitconfig"), "[user]\n\tname = Ada\n\temail = ada@example.com\n")
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func gitDo(t *testing.T, dir string, args ...string) string {
	t.Helper()
	cmd := exec.Command("git", args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("git %v: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// both runs a test in a repository of each object format; it holds a small fleet in the folder infra/fleet.
func both(t *testing.T, test func(t *testing.T, r *Repo, format string)) {
	for _, format := range []string{"sha1", "sha256"} {
		t.Run(format, func(t *testing.T) {
			isolate(t)
			dir := t.TempDir()
			gitDo(t, dir, "init", "-q", "-b", "main", "--object-format="+format)
			write(t, filepath.Join(dir, "README"), "top\n")
			write(t, filepath.Join(dir, "infra/fleet/fleet.yaml"), "kind: Fleet\n")
			write(t, filepath.Join(dir, "infra/fleet/sites/a b/ünï.yaml"), "x: 1\n")
			write(t, filepath.Join(dir, "infra/fleet/empty"), "")
			write(t, filepath.Join(dir, "infra/fleet/run"), "#!/bin/sh\n")
			if err := os.Chmod(filepath.Join(dir, "infra/fleet/run"), 0o755); err != nil {
				t.Fatal(err)
			}
			gitDo(t, dir, "add", ".")
			gitDo(t, dir, "commit", "-q", "-m", "one")
			r, err := Open(t.Context(), dir)
			if err != nil {
				t.Fatal(err)
			}
			test(t, r, format)
		})
	}
}

func TestTree(t *testing.T) {
	both(t, func(t *testing.T, r *Repo, _ string) {
		for _, preload := range []bool{false, true} {
			tree, err := r.Tree(t.Context(), "HEAD", "infra/fleet")
			if err != nil {
				t.Fatal(err)
			}
			if preload {
				if err := tree.Preload(); err != nil {
					t.Fatal(err)
				}
			}
			if err := fstest.TestFS(tree, "fleet.yaml", "sites/a b/ünï.yaml", "empty", "run"); err != nil {
				t.Error(err)
			}
			for name, want := range map[string]string{"fleet.yaml": "kind: Fleet\n", "sites/a b/ünï.yaml": "x: 1\n", "empty": ""} {
				got, err := fs.ReadFile(tree, name)
				if err != nil || string(got) != want {
					t.Errorf("%s: got %q, %v; want %q", name, got, err, want)
				}
			}
			st, err := fs.Stat(tree, "run")
			if err != nil || st.Mode() != 0o755 {
				t.Errorf("run: got %v, %v; want 0755", st, err)
			}
			if _, err := fs.Stat(tree, "README"); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("a file outside the root: got %v, want fs.ErrNotExist", err)
			}
			if err := tree.Close(); err != nil {
				t.Error(err)
			}
			if _, err := fs.ReadFile(tree, "fleet.yaml"); !preload && !errors.Is(err, fs.ErrClosed) {
				t.Errorf("after Close: got %v, want fs.ErrClosed", err)
			}
		}
	})
}

// Objects are read, so neither CRLF settings, nor uncommitted edits, nor replacement objects change what a release says.
func TestTreeReadsObjects(t *testing.T) {
	both(t, func(t *testing.T, r *Repo, _ string) {
		gitDo(t, r.Top(), "config", "core.autocrlf", "true")
		write(t, filepath.Join(r.Top(), "infra/fleet/fleet.yaml"), "kind: Edited\r\n")
		old := gitDo(t, r.Top(), "rev-parse", "HEAD:README")
		other := gitDo(t, r.Top(), "rev-parse", "HEAD:infra/fleet/run")
		gitDo(t, r.Top(), "replace", old, other)
		tree, err := r.Tree(t.Context(), "HEAD", ".")
		if err != nil {
			t.Fatal(err)
		}
		defer tree.Close()
		for name, want := range map[string]string{"infra/fleet/fleet.yaml": "kind: Fleet\n", "README": "top\n"} {
			if got, err := fs.ReadFile(tree, name); err != nil || string(got) != want {
				t.Errorf("%s: got %q, %v; want %q", name, got, err, want)
			}
		}
	})
}

func TestTreeShowsSymlinkAndSubmodule(t *testing.T) {
	both(t, func(t *testing.T, r *Repo, _ string) {
		if err := os.Symlink("/etc/passwd", filepath.Join(r.Top(), "link")); err != nil {
			t.Fatal(err)
		}
		gitDo(t, r.Top(), "add", "link")
		gitDo(t, r.Top(), "update-index", "--add", "--cacheinfo", "160000,"+gitDo(t, r.Top(), "rev-parse", "HEAD")+",sub")
		gitDo(t, r.Top(), "commit", "-q", "-m", "bad")
		tree, err := r.Tree(t.Context(), "HEAD", ".")
		if err != nil {
			t.Fatal(err)
		}
		defer tree.Close()
		for name, want := range map[string]fs.FileMode{"link": fs.ModeSymlink, "sub": fs.ModeIrregular} {
			st, err := tree.Stat(name)
			if err != nil || st.Mode().Type() != want {
				t.Errorf("%s: got %v, %v; want %v", name, st, err, want)
			}
		}
	})
}

func TestTreeErrors(t *testing.T) {
	both(t, func(t *testing.T, r *Repo, _ string) {
		for name, c := range map[string]struct{ rev, root string }{
			"ErrRevision": {"nope", "."}, "ErrOption": {"--all", "."}, "ErrFolder": {"HEAD", "none"}, "ErrFile": {"HEAD", "README"},
		} {
			if _, err := r.Tree(t.Context(), c.rev, c.root); !errors.Is(err, ErrNoRevision) {
				t.Errorf("%s: got %v, want ErrNoRevision", name, err)
			}
		}
		if _, err := r.Tree(t.Context(), "HEAD", "../x"); err == nil {
			t.Error("a root outside: got nil")
		}
	})
}

func TestTreeMissingObject(t *testing.T) {
	both(t, func(t *testing.T, r *Repo, _ string) {
		id := gitDo(t, r.Top(), "rev-parse", "HEAD:README")
		path := filepath.Join(r.GitDir(), "objects", id[:2], id[2:])
		_ = os.Chmod(path, 0o600)
		tree, err := r.Tree(t.Context(), "HEAD", "infra") // still listable
		if err != nil {
			t.Fatal(err)
		}
		defer tree.Close()
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if whole, err := r.Tree(t.Context(), "HEAD", "."); err == nil { // ls-tree -l may notice by itself
			defer whole.Close()
			if err := whole.Preload(); err == nil || !strings.Contains(err.Error(), "missing") {
				t.Errorf("preload: got %v, want an error that says missing", err)
			}
			if _, err := whole.ReadFile("infra/fleet/fleet.yaml"); err != nil {
				t.Errorf("the other files: %v", err)
			}
		}
		if _, err := tree.ReadFile("fleet/fleet.yaml"); err != nil {
			t.Error(err)
		}
	})
}

func TestCancelled(t *testing.T) {
	both(t, func(t *testing.T, r *Repo, _ string) {
		ctx, cancel := context.WithCancel(t.Context())
		tree, err := r.Tree(ctx, "HEAD", ".")
		if err != nil {
			t.Fatal(err)
		}
		defer tree.Close()
		if _, err := tree.ReadFile("README"); err != nil {
			t.Fatal(err)
		}
		cancel()
		deadline := time.Now().Add(10 * time.Second)
		for err == nil && time.Now().Before(deadline) { // the process dies a moment later
			_, err = tree.ReadFile("README")
		}
		if !errors.Is(err, context.Canceled) {
			t.Errorf("read after cancel: got %v, want context.Canceled", err)
		}
		if _, err := r.Head(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("head after cancel: got %v, want context.Canceled", err)
		}
	})
}

func TestOpen(t *testing.T) {
	isolate(t)
	dir := t.TempDir()
	if _, err := Open(t.Context(), dir); !errors.Is(err, ErrNotRepository) || !strings.Contains(err.Error(), "git init") {
		t.Errorf("no repository: got %v, want ErrNotRepository with the next step", err)
	}
	if _, err := Open(t.Context(), filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no folder: got %v, want fs.ErrNotExist", err)
	}
	r, err := Init(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Head(t.Context()); !errors.Is(err, ErrNoCommits) {
		t.Errorf("no commits: got %v, want ErrNoCommits", err)
	}
	if _, err := Open(t.Context(), filepath.Join(dir, ".git")); !errors.Is(err, ErrNotRepository) {
		t.Errorf("inside .git: got %v, want ErrNotRepository", err)
	}
	write(t, filepath.Join(dir, "infra/fleet/fleet.yaml"), "x")
	if _, err := r.Commit(t.Context(), "one", "infra"); err != nil {
		t.Fatal(err)
	}
	sub, err := Open(t.Context(), filepath.Join(dir, "infra", "fleet"))
	if err != nil {
		t.Fatal(err)
	}
	if sub.Prefix() != "infra/fleet" || sub.Top() != r.Top() {
		t.Errorf("sub-folder: got prefix %q top %q", sub.Prefix(), sub.Top())
	}
	bare, err := InitBare(t.Context(), filepath.Join(t.TempDir(), "mirror.git"))
	if err != nil || !bare.Bare() || bare.Top() != bare.GitDir() {
		t.Errorf("bare: %+v, %v", bare, err)
	}
	t.Setenv("PATH", t.TempDir())
	if _, err := Open(t.Context(), dir); !errors.Is(err, ErrNoGit) {
		t.Errorf("no git: got %v, want ErrNoGit", err)
	}
}

// Variables as in a hook must not lead to another repository.
func TestOddEnvironment(t *testing.T) {
	both(t, func(t *testing.T, r *Repo, _ string) {
		want, err := r.Head(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		other := t.TempDir()
		for k, v := range map[string]string{
			"GIT_DIR": other, "GIT_WORK_TREE": other, "GIT_INDEX_FILE": filepath.Join(other, "i"), "GIT_OBJECT_DIRECTORY": other, "GIT_NAMESPACE": "x",
			"GIT_CEILING_DIRECTORIES": "/", "GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "core.bare", "GIT_CONFIG_VALUE_0": "true", "GIT_LITERAL_PATHSPECS": "1", "LC_ALL": "de_DE.UTF-8",
		} {
			t.Setenv(k, v)
		}
		again, err := Open(t.Context(), r.Top())
		if err != nil {
			t.Fatal(err)
		}
		if got, err := again.Head(t.Context()); err != nil || got != want {
			t.Errorf("got %s, %v; want %s", got, err, want)
		}
		if dirty, err := again.Dirty(t.Context(), "README"); err != nil || len(dirty) != 0 {
			t.Errorf("dirty: %v, %v", dirty, err)
		}
	})
}

func TestWorktree(t *testing.T) {
	both(t, func(t *testing.T, r *Repo, _ string) {
		dir := filepath.Join(t.TempDir(), "second")
		gitDo(t, r.Top(), "worktree", "add", "-q", "-b", "second", dir)
		w, err := Open(t.Context(), dir)
		if err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, "README"), "second\n")
		if _, err := w.Commit(t.Context(), "two", "README"); err != nil {
			t.Fatal(err)
		}
		tree, err := w.Tree(t.Context(), "HEAD", ".")
		if err != nil {
			t.Fatal(err)
		}
		defer tree.Close()
		if got, err := tree.ReadFile("README"); err != nil || string(got) != "second\n" {
			t.Errorf("got %q, %v", got, err)
		}
		if err := w.WriteTag(t.Context(), "release/1", tagFor(t, w, 1)); err != nil {
			t.Fatal(err)
		}
		if tags, err := r.Tags(t.Context(), "release/*"); err != nil || len(tags) != 1 {
			t.Errorf("tags seen from the first worktree: %v, %v", tags, err)
		}
	})
}

func TestDirtyAndCommit(t *testing.T) {
	both(t, func(t *testing.T, r *Repo, _ string) {
		ctx := t.Context()
		if dirty, err := r.Dirty(ctx); err != nil || len(dirty) != 0 {
			t.Errorf("clean: got %v, %v", dirty, err)
		}
		write(t, filepath.Join(r.Top(), "README"), "changed\n")
		write(t, filepath.Join(r.Top(), "infra/fleet/neu *.yaml"), "new\n")
		if err := os.Remove(filepath.Join(r.Top(), "infra/fleet/run")); err != nil {
			t.Fatal(err)
		}
		dirty, err := r.Dirty(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{"README", "infra/fleet/run", "infra/fleet/neu *.yaml"}, dirty); diff != "" {
			t.Errorf("dirty (-want +got):\n%s", diff)
		}
		if dirty, err = r.Dirty(ctx, "infra"); err != nil || len(dirty) != 2 {
			t.Errorf("dirty below infra: got %v, %v", dirty, err)
		}
		if dirty, err = r.Dirty(ctx, "."); err != nil || len(dirty) != 3 {
			t.Errorf("dirty below the top: got %v, %v", dirty, err)
		}
		if _, err := r.Commit(ctx, "fleet: change", "infra/fleet"); err != nil {
			t.Fatal(err)
		}
		if dirty, err = r.Dirty(ctx); err != nil || cmp.Diff([]string{"README"}, dirty) != "" {
			t.Errorf("after the commit: got %v, %v; README was not named", dirty, err)
		}
		if _, err := r.Commit(ctx, "again", "infra/fleet"); !errors.Is(err, ErrNothing) {
			t.Errorf("nothing changed: got %v, want ErrNothing", err)
		}
		if got, err := r.Config(ctx, "user.name"); err != nil || got != "Ada" {
			t.Errorf("config: %q, %v", got, err)
		}
		if got, err := r.Config(ctx, "holdfast.none"); err != nil || got != "" {
			t.Errorf("config that is not there: %q, %v", got, err)
		}
		if name, email, err := r.Ident(ctx); err != nil || name != "Ada" || email != "ada@example.com" {
			t.Errorf("ident: %q %q %v", name, email, err)
		}
		write(t, os.Getenv("GIT_CONFIG_GLOBAL"), "")
		if _, _, err := r.Ident(ctx); !errors.Is(err, ErrNoIdent) || !strings.Contains(err.Error(), "user.email") {
			t.Errorf("nobody: got %v, want ErrNoIdent with the next step", err)
		}
		if _, err := r.Commit(ctx, "x", "README"); !errors.Is(err, ErrNoIdent) {
			t.Errorf("nobody commits: got %v, want ErrNoIdent", err)
		}
	})
}

func tagFor(t *testing.T, r *Repo, n int) []byte {
	t.Helper()
	head, err := r.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Appendf(nil, "object %s\ntype commit\ntag release/%d\ntagger Ada <ada@example.com> 1700000000 +0100\n\nmessage %d\n", head, n, n)
}

func TestTags(t *testing.T) {
	both(t, func(t *testing.T, r *Repo, _ string) {
		ctx := t.Context()
		for _, n := range []int{1, 2, 10} {
			if err := r.WriteTag(ctx, fmt.Sprintf("release/%d", n), tagFor(t, r, n)); err != nil {
				t.Fatal(err)
			}
		}
		if err := r.WriteTag(ctx, "release/2", tagFor(t, r, 3)); !errors.Is(err, ErrExists) {
			t.Errorf("second writer: got %v, want ErrExists", err)
		}
		got, err := r.ReadTag(ctx, "release/2")
		if err != nil || string(got) != string(tagFor(t, r, 2)) {
			t.Errorf("got %q, %v; want the first writer's bytes", got, err)
		}
		tags, err := r.Tags(ctx, "release/*")
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{"release/1", "release/2", "release/10"}, tags); diff != "" {
			t.Errorf("tags (-want +got):\n%s", diff)
		}
		if _, err := r.ReadTag(ctx, "release/7"); !errors.Is(err, ErrNoRevision) {
			t.Errorf("no tag: got %v, want ErrNoRevision", err)
		}
		gitDo(t, r.Top(), "tag", "light")
		if _, err := r.ReadTag(ctx, "light"); !errors.Is(err, ErrNotTag) {
			t.Errorf("lightweight: got %v, want ErrNotTag", err)
		}
		if err := r.WriteTag(ctx, "release/11", []byte("no tag at all")); err == nil {
			t.Error("garbage: got nil")
		}
	})
}

func TestPushFetch(t *testing.T) {
	both(t, func(t *testing.T, r *Repo, format string) {
		ctx := t.Context()
		remote := filepath.Join(t.TempDir(), "remote.git")
		gitDo(t, r.Top(), "init", "-q", "--bare", "--object-format="+format, remote)
		gitDo(t, r.Top(), "remote", "add", "origin", remote)
		other := filepath.Join(t.TempDir(), "other")
		if err := r.Push(ctx, "origin", "refs/heads/main"); err != nil {
			t.Fatal(err)
		}
		gitDo(t, r.Top(), "clone", "-q", "-b", "main", remote, other)
		o, err := Open(ctx, other)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.WriteTag(ctx, "release/1", tagFor(t, r, 1)); err != nil {
			t.Fatal(err)
		}
		if err := r.Push(ctx, "origin", "refs/heads/main", "refs/tags/release/1"); err != nil {
			t.Fatal(err)
		}
		if err := o.WriteTag(ctx, "release/1", append(tagFor(t, o, 1), "other\n"...)); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(other, "README"), "other\n")
		if _, err := o.Commit(ctx, "other", "README"); err != nil {
			t.Fatal(err)
		}
		if err := o.Push(ctx, "origin", "refs/heads/main", "refs/tags/release/1"); !errors.Is(err, ErrRace) {
			t.Errorf("second runner: got %v, want ErrRace", err)
		}
		if got := gitDo(t, remote, "rev-parse", "main"); got != gitDo(t, r.Top(), "rev-parse", "main") {
			t.Error("the branch moved although its tag was refused")
		}
		if err := o.Fetch(ctx, "origin", "refs/tags/release/*:refs/tags/release/*"); !errors.Is(err, ErrRace) {
			t.Errorf("fetch over another tag: got %v, want ErrRace", err)
		}
		if err := r.Push(ctx, "nowhere", "refs/heads/main"); err == nil || !strings.Contains(err.Error(), "git remote") {
			t.Errorf("no remote: got %v, want an error with the next step", err)
		}
		if err := r.Push(ctx, "origin", "+refs/heads/main"); err == nil {
			t.Error("force: got nil")
		}
	})
}

func TestMirror(t *testing.T) {
	isolate(t)
	ctx := t.Context()
	r, err := Init(ctx, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(r.Top(), "a"), "a")
	if _, err := r.Commit(ctx, "one", "a"); err != nil {
		t.Fatal(err)
	}
	if err := r.WriteTag(ctx, "release/1", tagFor(t, r, 1)); err != nil {
		t.Fatal(err)
	}
	m, err := InitBare(ctx, filepath.Join(t.TempDir(), "m.git"))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := m.Fetch(ctx, r.Top(), "refs/tags/release/*:refs/tags/release/*"); err != nil {
			t.Fatal(err)
		}
	}
	tree, err := m.Tree(ctx, "refs/tags/release/1", ".")
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	if got, err := tree.ReadFile("a"); err != nil || string(got) != "a" {
		t.Errorf("got %q, %v", got, err)
	}
}

// 10 000 sites of three files: one listing and one pass over the blobs.
func BenchmarkTree10000Sites(b *testing.B) {
	dir := b.TempDir()
	cmd := exec.Command("git", "init", "-q", "-b", "main", dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatal(err, string(out))
	}
	var in strings.Builder
	in.WriteString("commit refs/heads/main\ncommitter A <a@b> 1700000000 +0000\ndata 1\nx\n")
	for i := range 10000 {
		for _, f := range []string{"site", "machines", "keys"} {
			body := fmt.Sprintf("apiVersion: holdfast.dev/v1alpha1\nkind: %s\nmetadata:\n  name: site-%d\n", f, i)
			fmt.Fprintf(&in, "M 100644 inline sites/c%03d/s%05d/%s.yaml\ndata %d\n%s\n", i/100, i, f, len(body), body)
		}
	}
	cmd = exec.Command("git", "fast-import", "--quiet")
	cmd.Dir, cmd.Stdin = dir, strings.NewReader(in.String())
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatal(err, string(out))
	}
	r, err := Open(b.Context(), dir)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		tree, err := r.Tree(b.Context(), "HEAD", ".")
		if err != nil {
			b.Fatal(err)
		}
		if err := tree.Preload(); err != nil {
			b.Fatal(err)
		}
		if _, err := tree.ReadFile("sites/c099/s09999/site.yaml"); err != nil {
			b.Fatal(err)
		}
		tree.Close()
	}
}
