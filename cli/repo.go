package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/internal/durable"
	"github.com/holdfast-edge/holdfast/internal/git"
	"github.com/holdfast-edge/holdfast/release"
)

// repo is the fleet repo that a verb works on.
type repo struct {
	*git.Repo
	dir  string // of fleet.yaml in the work tree
	root string // the same below the top of the repository, slash-separated; "." for the top
}

// fleetDir finds the folder with fleet.yaml: --fleet or one above it.
func (e *env) fleetDir() (string, error) {
	start, err := filepath.Abs(e.dir)
	if err != nil {
		return "", err
	}
	for dir := start; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "fleet.yaml")); err == nil {
			return dir, nil
		}
		if filepath.Dir(dir) == dir {
			return "", hint(fmt.Errorf("no fleet.yaml in %s or above it", start),
				"go to your fleet repo, name it with --fleet DIR, or begin one with: holdfast init DIR")
		}
	}
}

// repo opens the Git repository around the fleet repo.
func (e *env) repo(ctx context.Context) (*repo, error) {
	dir, err := e.fleetDir()
	if err != nil {
		return nil, err
	}
	g, err := git.Open(ctx, dir)
	if err != nil {
		return nil, err
	}
	return &repo{Repo: g, dir: dir, root: g.Prefix()}, nil
}

// workTree is the fleet repo as it lies in a folder, committed or not. Git's own
// folder is no part of it.
func workTree(dir string) fs.FS { return withoutGit{os.DirFS(dir)} }

type withoutGit struct{ fs.FS }

func (w withoutGit) Open(name string) (fs.File, error) {
	if name == ".git" || strings.HasPrefix(name, ".git/") {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return w.FS.Open(name)
}

func (w withoutGit) ReadFile(name string) ([]byte, error) { return fs.ReadFile(w.FS, name) }

func (w withoutGit) ReadDir(name string) ([]fs.DirEntry, error) {
	entries, err := fs.ReadDir(w.FS, name)
	if name != "." {
		return entries, err
	}
	return slices.DeleteFunc(entries, func(e fs.DirEntry) bool { return e.Name() == ".git" }), err
}

// load reads a fleet and turns its faults into an error for people.
func load(tree fs.FS) (*fleet.Fleet, error) {
	f, err := fleet.Load(tree)
	var faults fleet.Faults
	if errors.As(err, &faults) {
		return f, coded(CodeFaults, faults)
	}
	return f, err
}

// site finds a site by its name or folder.
func site(f *fleet.Fleet, name string) (*fleet.Site, error) {
	if s, ok := f.Site(path.Base(filepath.ToSlash(strings.TrimSuffix(name, "/")))); ok {
		return s, nil
	}
	names := make([]string, 0, len(f.Sites()))
	for _, s := range f.Sites() {
		names = append(names, s.Name)
	}
	next := "its sites: " + strings.Join(names, " ")
	if len(names) > 20 {
		next = fmt.Sprintf("it has %d sites; holdfast check --output json lists them", len(names))
	}
	return nil, hint(fmt.Errorf("fleet %s has no site %q", f.Name, name), "%s", next)
}

// lastRelease is the newest release tag of the repository; nil when there is none.
func (r *repo) lastRelease(ctx context.Context) (*release.Tag, error) {
	names, err := r.Tags(ctx, "release/*")
	if err != nil || len(names) == 0 {
		return nil, err
	}
	raw, err := r.ReadTag(ctx, names[len(names)-1])
	if err != nil {
		return nil, err
	}
	t, err := release.ParseTag(raw)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", names[len(names)-1], err)
	}
	return t, nil
}

// notes is a folder of this person's, for one fleet: anchor, keys of sessions.
func notes(id fleet.ID) (string, error) {
	base := os.Getenv("HOLDFAST_CONFIG")
	if base == "" {
		dir, err := os.UserConfigDir()
		if err != nil {
			return "", hint(err, "set HOLDFAST_CONFIG to a folder for holdfast's notes")
		}
		base = filepath.Join(dir, "holdfast")
	}
	dir := filepath.Join(base, "fleets", string(id))
	return dir, durable.MkdirAll(dir, 0o700)
}

// readAnchor is what this person has seen of the fleet; zero when nothing yet.
func readAnchor(id fleet.ID) (release.Anchor, error) {
	dir, err := notes(id)
	if err != nil {
		return release.Anchor{}, err
	}
	var a release.Anchor
	err = durable.ReadJSON(filepath.Join(dir, "anchor.json"), &a)
	if errors.Is(err, fs.ErrNotExist) {
		return release.Anchor{FleetID: id}, nil
	}
	return a, err
}

// raiseAnchor remembers a release that was verified or made here.
func raiseAnchor(t *release.Tag) error {
	p := t.Payload
	a, err := readAnchor(p.FleetID)
	if err != nil || p.N < a.N {
		return err
	}
	dir, err := notes(p.FleetID)
	if err != nil {
		return err
	}
	a.N, a.Payload, a.Time, a.TrustVersion, a.TrustDigest = p.N, t.Digest(), p.Time, p.TrustVersion, p.TrustDigest
	if p.Time.After(a.Floor) {
		a.Floor = p.Time
	}
	return durable.WriteJSON(filepath.Join(dir, "anchor.json"), a, 0o600)
}

// printJSON writes v for programs.
func (e *env) printJSON(v any) error {
	enc := json.NewEncoder(e.out)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// printf writes a line for people.
func (e *env) printf(format string, a ...any) { fmt.Fprintf(e.out, format, a...) }
