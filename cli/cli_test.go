package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/crypto/ssh"

	"github.com/holdfast-edge/holdfast/fleet/example"
	"github.com/holdfast-edge/holdfast/internal/git"
	"github.com/holdfast-edge/holdfast/internal/ociimage"
	"github.com/holdfast-edge/holdfast/release"
)

// Stories are in testdata/script, one file each. They run the verbs as a person
// does, with a home of their own; nothing in them leaves this computer.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"holdfast": func() {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		err := Run(ctx, os.Stdin, os.Stdout, os.Stderr, os.Args[1:])
		Print(os.Stderr, err)
		os.Exit(Code(err))
	}, "limited": limitedMain})
}

func TestStories(t *testing.T) {
	files := t.TempDir()
	writeImages(t, files, "")
	other := t.TempDir()
	writeImages(t, other, "rebuilt ")
	registry := serveRegistry(t)
	updates := writeOSUpdates(t)
	testscript.Run(t, testscript.Params{
		Dir:                 filepath.Join("testdata", "script"),
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(e *testscript.Env) error {
			home := filepath.Join(e.WorkDir, "home")
			e.Vars = append(e.Vars, "HOME="+home, "USERPROFILE="+home, "HOLDFAST_CONFIG="+filepath.Join(e.WorkDir, "notes"),
				"GIT_CONFIG_NOSYSTEM=1", "IMAGES="+files, "REBUILT="+other, "REGISTRY="+registry, "OSUPDATE="+updates)
			if err := os.MkdirAll(home, 0o755); err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(home, ".gitconfig"), []byte("[user]\n\tname = Ann Owner\n\temail = ann@example.com\n[init]\n\tdefaultBranch = main\n[protocol \"file\"]\n\tallow = always\n"), 0o644)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"code": cmdCode, "json": cmdJSON, "await": cmdAwait, "forge": cmdForge, "resign": cmdResign,
			"replace": cmdReplace, "lines": cmdLines, "setcode": cmdSetCode, "waitlocked": cmdWaitLocked, "keygen": cmdKeygen, "crlf": cmdCRLF,
		},
	})
}

// writeImages writes the example's app images as files, as make images does.
func writeImages(t testing.TB, dir, flavour string) {
	t.Helper()
	for i, ref := range example.Images() {
		data, err := ociimage.Pack(ref, []byte(flavour+"program "+ref), ociimage.Config{Name: "hello", Architecture: "amd64"})
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("hello-%d.tar", i)), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// serveRegistry is a registry with the image tools/clock:1.
func serveRegistry(t *testing.T) string {
	t.Helper()
	s := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(s.Close)
	host := strings.TrimPrefix(s.URL, "http://")
	img, err := ociimage.Build([]byte("a clock"), ociimage.Config{Architecture: "arm64"})
	if err != nil {
		t.Fatal(err)
	}
	ref, err := name.ParseReference(host + "/tools/clock:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img); err != nil {
		t.Fatal(err)
	}
	return host
}

// code N PROGRAM ARG...: the program ends with this exit code.
func cmdCode(ts *testscript.TestScript, neg bool, a []string) {
	if neg || len(a) < 2 {
		ts.Fatalf("usage: code N PROGRAM ARG...")
	}
	want, err := strconv.Atoi(a[0])
	ts.Check(err)
	got := 0
	err = ts.Exec(a[1], a[2:]...)
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// json: the last output is one JSON value.
func cmdJSON(ts *testscript.TestScript, neg bool, a []string) {
	d := json.NewDecoder(strings.NewReader(ts.ReadFile("stdout")))
	var v any
	if err := d.Decode(&v); err != nil || d.More() || neg || len(a) > 0 {
		ts.Fatalf("not one JSON value: %v", err)
	}
}

// await FILE: the file appears and is not empty.
func cmdAwait(ts *testscript.TestScript, neg bool, a []string) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	late := time.After(30 * time.Second)
	for {
		if data, err := os.ReadFile(ts.MkAbs(a[0])); err == nil && len(data) > 0 {
			ts.Setenv("ADDRESS", strings.TrimSpace(string(data)))
			return
		}
		select {
		case <-tick.C:
		case <-late:
			ts.Fatalf("%s did not appear in 30 s", a[0])
		}
	}
}

// setTag puts a tag object under a name, whatever was there.
func setTag(ts *testscript.TestScript, dir, tag string, raw []byte) {
	ctx := context.Background()
	ts.Check(ts.Exec("git", "-C", dir, "tag", "-d", tag))
	r, err := git.Open(ctx, ts.MkAbs(dir))
	ts.Check(err)
	ts.Check(r.WriteTag(ctx, tag, raw))
}

func rawTag(ts *testscript.TestScript, dir, tag string) []byte {
	r, err := git.Open(context.Background(), ts.MkAbs(dir))
	ts.Check(err)
	raw, err := r.ReadTag(context.Background(), tag)
	ts.Check(err)
	return raw
}

// forge DIR TAG OLD NEW: the signed tag says something else.
func cmdForge(ts *testscript.TestScript, neg bool, a []string) {
	raw := rawTag(ts, a[0], a[1])
	forged := bytes.Replace(raw, []byte(a[2]), []byte(a[3]), 1)
	if bytes.Equal(raw, forged) {
		ts.Fatalf("%s does not say %q", a[1], a[2])
	}
	setTag(ts, a[0], a[1], forged)
}

// resign DIR TAG KEY [MESSAGE]: the tag is signed with another key.
func cmdResign(ts *testscript.TestScript, neg bool, a []string) {
	tag, err := release.ParseTag(rawTag(ts, a[0], a[1]))
	ts.Check(err)
	if len(a) > 3 {
		tag.Payload.Message = a[3]
	}
	key, err := ssh.ParsePrivateKey([]byte(ts.ReadFile(a[2])))
	ts.Check(err)
	raw, err := release.SignTag(tag.Payload, key)
	ts.Check(err)
	setTag(ts, a[0], a[1], raw)
}

// replace FILE OLD NEW: \n in OLD and NEW is a line's end.
func cmdReplace(ts *testscript.TestScript, neg bool, a []string) {
	ends := strings.NewReplacer(`\n`, "\n")
	text := ts.ReadFile(a[0])
	changed := strings.Replace(text, ends.Replace(a[1]), ends.Replace(a[2]), 1)
	if text == changed {
		ts.Fatalf("%s does not have %q", a[0], a[1])
	}
	ts.Check(os.WriteFile(ts.MkAbs(a[0]), []byte(changed), 0o644))
}

// lines FILE MAX: the file has at most so many lines.
func cmdLines(ts *testscript.TestScript, neg bool, a []string) {
	most, err := strconv.Atoi(a[1])
	ts.Check(err)
	if n := strings.Count(ts.ReadFile(a[0]), "\n"); n > most {
		ts.Fatalf("%s has %d lines, want at most %d", a[0], n, most)
	}
}

// crlf FILE: the file begins with a byte-order mark and its lines end with CR LF.
func cmdCRLF(ts *testscript.TestScript, neg bool, a []string) {
	text := "\ufeff" + strings.ReplaceAll(ts.ReadFile(a[0]), "\n", "\r\n")
	ts.Check(os.WriteFile(ts.MkAbs(a[0]), []byte(text), 0o644))
}

// keygen FILE: an SSH key, ed25519, without a passphrase.
func cmdKeygen(ts *testscript.TestScript, neg bool, a []string) {
	b := &begun{tmpKeys: ts.MkAbs("."), keys: ts.MkAbs(".")}
	ts.Check(b.newSigner())
	file := ts.MkAbs(a[0])
	ts.Check(os.MkdirAll(filepath.Dir(file), 0o700))
	ts.Check(os.Rename(ts.MkAbs(signerName), file))
	ts.Check(os.Rename(ts.MkAbs(signerName+".pub"), file+".pub"))
}
