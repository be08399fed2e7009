package git

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// Tags lists the tags that match a pattern such as "release/*", without "refs/tags/", in order of their numbers.
func (r *Repo) Tags(ctx context.Context, pattern string) ([]string, error) {
	out, err := r.run(ctx, nil, "for-each-ref", "--sort=version:refname", "--format=%(refname)", "refs/tags/"+pattern)
	if err != nil {
		return nil, fmt.Errorf("list tags %s of %s: %w", pattern, r.top, err)
	}
	var tags []string
	for _, line := range strings.Split(string(out), "\n") {
		if line != "" {
			tags = append(tags, strings.TrimPrefix(line, "refs/tags/"))
		}
	}
	return tags, nil
}

// maxTagObject bounds a tag object; a release is far smaller.
const maxTagObject = 1 << 20

// ReadTag returns the tag object that the tag named by name ("release/7") points to, byte by byte.
func (r *Repo) ReadTag(ctx context.Context, name string) ([]byte, error) {
	ref := "refs/tags/" + strings.TrimPrefix(name, "refs/tags/")
	out, err := r.run(ctx, nil, "rev-parse", "--verify", "--quiet", ref)
	if failed(err, 1) {
		return nil, fmt.Errorf("read tag %s of %s: %w: fetch it with `git fetch --tags`", name, r.top, ErrNoRevision)
	}
	if err != nil {
		return nil, fmt.Errorf("read tag %s of %s: %w", name, r.top, err)
	}
	id := strings.TrimSpace(string(out))
	b, err := r.newBatch(ctx)
	if err != nil {
		return nil, fmt.Errorf("read tag %s of %s: %w", name, r.top, err)
	}
	defer b.close()
	kind, data, err := b.read(id, maxTagObject)
	if err != nil {
		return nil, fmt.Errorf("read tag %s of %s: %w", name, r.top, err)
	}
	if kind != "tag" {
		return nil, fmt.Errorf("read tag %s of %s: %w but a name for a %s: it was made without -s or -a, and proves nothing", name, r.top, ErrNotTag, kind)
	}
	return data, nil
}

// WriteTag stores raw as a tag object and gives it the name ("release/7"). It never replaces: of two that race, one gets ErrExists.
func (r *Repo) WriteTag(ctx context.Context, name string, raw []byte) error {
	ref := "refs/tags/" + strings.TrimPrefix(name, "refs/tags/")
	what := fmt.Sprintf("write tag %s in %s", name, r.top)
	out, err := r.run(ctx, raw, "hash-object", "-t", "tag", "-w", "--stdin")
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	_, err = r.run(ctx, []byte("create "+ref+" "+strings.TrimSpace(string(out))+"\n"), "update-ref", "--stdin")
	var f *failure
	if errors.As(err, &f) && (strings.Contains(f.stderr, "already exists") || strings.Contains(f.stderr, "cannot lock ref")) {
		return fmt.Errorf("%s: %w: fetch, look at it, and release again with the next number (git said: %s)", what, ErrExists, strings.TrimSpace(f.stderr))
	}
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// Push sends refs (refspecs, such as "refs/tags/release/7") to a remote, all or none. It never forces.
func (r *Repo) Push(ctx context.Context, remote string, refs ...string) error {
	what := fmt.Sprintf("push %s to %s", strings.Join(refs, ", "), remote)
	for _, s := range refs {
		if strings.HasPrefix(s, "+") || strings.HasPrefix(s, ":") {
			return fmt.Errorf("%s: %s would force or delete, which is never done here", what, s)
		}
	}
	args := []string{"push", "--quiet", "--porcelain"}
	if len(refs) > 1 {
		args = append(args, "--atomic")
	}
	out, err := r.run(ctx, nil, append(append(args, "--", remote), refs...)...)
	var f *failure
	if errors.As(err, &f) {
		if said := string(out) + f.stderr; strings.Contains(said, "[rejected]") || strings.Contains(said, "reference already exists") || strings.Contains(said, "failed to update ref") || strings.Contains(said, "cannot lock ref") {
			return fmt.Errorf("%s: %w: run `git fetch --tags %s`, look at what is new, and try again", what, ErrRace, remote)
		}
		if strings.Contains(f.stderr, "No such remote") || strings.Contains(f.stderr, "does not appear to be a git repository") {
			return fmt.Errorf("%s: %w: name a remote (see `git remote -v`) or add one with `git remote add %s URL`", what, err, remote)
		}
	}
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// Fetch gets refs (refspecs) from a remote or URL. A tag that is here already with other content stays as it is and is ErrRace.
func (r *Repo) Fetch(ctx context.Context, remote string, refspecs ...string) error {
	_, err := r.run(ctx, nil, append([]string{"fetch", "--no-tags", "--no-write-fetch-head", "--", remote}, refspecs...)...)
	var f *failure
	if errors.As(err, &f) && strings.Contains(f.stderr, "would clobber existing tag") {
		return fmt.Errorf("fetch from %s: %w: a tag there differs from the one here; a release never changes, so find out who changed it", remote, ErrRace)
	}
	if err != nil {
		return fmt.Errorf("fetch from %s: %w", remote, err)
	}
	return nil
}
