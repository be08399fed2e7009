package serve

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/crypto/ssh"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/fleet/fleetgen"
	"github.com/holdfast-edge/holdfast/fleet/render"
	"github.com/holdfast-edge/holdfast/internal/spawn"
	"github.com/holdfast-edge/holdfast/machine/applier"
	"github.com/holdfast-edge/holdfast/machine/apps"
	"github.com/holdfast-edge/holdfast/release"
)

// Called by the program's name this is the program.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == "applier" {
		if err := Main(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr); err != nil {
			io.WriteString(os.Stderr, err.Error())
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// slice is what site i of a fleet needs of a release of these files.
func slice(t testing.TB, files map[string][]byte, i int) []byte {
	t.Helper()
	objects := release.Objects{}
	root, err := release.Import(fleetgen.FS(files), objects.Add)
	if err != nil {
		t.Fatal(err)
	}
	trust, err := fleet.ParseTrust("trust.yaml", files["trust.yaml"])
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)))
	if err != nil {
		t.Fatal(err)
	}
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	raw, err := release.SignTag(release.Payload{
		Object: strings.Repeat("0123456789", 4), TaggerName: "Ada Lovelace", TaggerEmail: "ada@example.com", TaggerTime: now,
		Message: "Tills print again", FleetID: "00112233445566778899aabbccddeeff", N: 1, Time: now,
		TrustVersion: trust.Version, TrustDigest: sha256.Sum256(files["trust.yaml"]), MinMachined: "0.1.0", Urgency: release.Normal, Root: ".", TreeSHA256: root,
	}, signer)
	if err != nil {
		t.Fatal(err)
	}
	s, err := release.Cut(objects, raw, fleetgen.SiteDir(i))
	if err != nil {
		t.Fatal(err)
	}
	return s.Encode()
}

// What comes by the slice, through the words of package applier and back is what
// rendering the tree gives: to the byte.
func TestRenderIsTheSame(t *testing.T) {
	files := fleetgen.Files(12)
	f, err := fleet.Load(fleetgen.FS(files))
	if err != nil {
		t.Fatal(err)
	}
	site, _ := f.Site(filepath.Base(fleetgen.SiteDir(3)))
	resolved, err := f.Resolve(site)
	if err != nil {
		t.Fatal(err)
	}
	want, err := render.Site(fleetgen.FS(files), resolved)
	if err != nil {
		t.Fatal(err)
	}
	got, err := (&Local{}).Render(t.Context(), slice(t, files, 3))
	if err != nil {
		t.Fatal(err)
	}
	if got.Effect != want.Effect.Digest || len(got.Apps) != len(want.Apps) || len(got.Apps) == 0 || len(got.Images) != len(want.Images) || len(got.Images) == 0 {
		t.Fatalf("got effect %s, %d apps, %d images; want %s, %d, %d", got.Effect, len(got.Apps), len(got.Images), want.Effect.Digest, len(want.Apps), len(want.Images))
	}
	plan, err := wanted(applier.Order{Release: 1, Plan: got.Plan})
	if err != nil {
		t.Fatal(err)
	}
	whole := apps.Plan{Release: 1, Delete: refs(want.Delete)}
	for i, a := range want.Apps {
		if got.Apps[i] != (applier.App{Name: a.Name, Version: a.Version, Critical: a.Critical}) {
			t.Errorf("app %+v", got.Apps[i])
		}
		app := apps.App{Name: a.Name, Namespace: a.Namespace, Needs: a.Needs, Delete: refs(a.Delete)}
		for _, o := range a.Objects {
			app.Objects = append(app.Objects, apps.Object{APIVersion: o.APIVersion, Kind: o.Kind, Namespace: o.Namespace, Name: o.Name, JSON: o.JSON})
		}
		whole.Apps = append(whole.Apps, app)
	}
	if d := cmp.Diff(whole, plan); d != "" {
		t.Errorf("the plan changed on its way (- rendered, + arrived):\n%s", d)
	}
	t.Run("by the program", func(t *testing.T) {
		again, err := (&applier.Child{Program: program(t)}).Render(t.Context(), slice(t, files, 3))
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(got, again); d != "" {
			t.Errorf("the program renders otherwise:\n%s", d)
		}
	})
}

// Words with a meaning in HTML stay what they are, and so do numbers of any size.
func TestObjectsGoThroughUnchanged(t *testing.T) {
	object := `{"apiVersion":"v1","data":{"n":12345678901234567890.10,"s":"<b>&amp;\u2028"},"kind":"ConfigMap","metadata":{"name":"x"}}`
	r := &render.Rendering{Apps: []render.App{{Name: "a", Objects: []render.Object{{APIVersion: "v1", Kind: "ConfigMap", Name: "x", JSON: []byte(object)}}}}}
	out, err := told(r)
	if err != nil {
		t.Fatal(err)
	}
	plan, err := wanted(applier.Order{Plan: out.Plan})
	if err != nil || string(plan.Apps[0].Objects[0].JSON) != object {
		t.Errorf("got %+v, %v", plan, err)
	}
}

func TestRefusals(t *testing.T) {
	good := slice(t, fleetgen.Files(3), 1)
	refused := func(t *testing.T, encoded []byte, words ...string) {
		t.Helper()
		for name, a := range map[string]interface {
			Render(context.Context, []byte) (*applier.Rendering, error)
		}{"in process": &Local{}, "program": &applier.Child{Program: program(t)}} {
			_, err := a.Render(t.Context(), encoded)
			if !errors.Is(err, applier.ErrRefused) {
				t.Errorf("%s: got %v, want a refusal", name, err)
				continue
			}
			for _, w := range words {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%s: %v does not say %q", name, err, w)
				}
			}
		}
	}
	t.Run("no slice", func(t *testing.T) { refused(t, nil) })
	t.Run("half a slice", func(t *testing.T) { refused(t, good[:len(good)/2], release.ErrTruncated.Error()) })
	t.Run("too large", func(t *testing.T) {
		refused(t, make([]byte, release.DefaultLimits().Slice+1), release.ErrOversized.Error())
	})
	t.Run("all faults", func(t *testing.T) {
		files := fleetgen.Files(3)
		n := 0
		for name := range files {
			if strings.HasPrefix(name, "apps/") && strings.HasSuffix(name, ".yaml") && !strings.HasSuffix(name, "app.yaml") && n < 2 {
				files[name] = append(bytes.TrimRight(files[name], "\n"), "\n  : [\n"...)
				n++
			}
		}
		refused(t, slice(t, files, 1), "render the release")
	})
}

// program is this test's binary by the name of the program.
func program(t *testing.T) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "applier")
	if err := os.Symlink(self, file); err != nil {
		t.Fatal(err)
	}
	return file
}

// running is `applier run`, and what ends it.
func running(t *testing.T) (c *applier.Child, kill func()) {
	t.Helper()
	c = &applier.Child{Program: program(t), Socket: filepath.Join(t.TempDir(), "s"), Silence: time.Minute}
	cmd := exec.Command(c.Program, c.RunArgs()...)
	var words bytes.Buffer
	cmd.Stderr = &words
	if err := spawn.Start(cmd, nil); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- spawn.Wait(cmd) }()
	kill = func() { cmd.Process.Kill() }
	t.Cleanup(kill)
	for limit := time.After(time.Minute); ; {
		if st, err := os.Stat(c.Socket); err == nil && st.Mode().Perm() == 0o600 {
			return c, kill
		}
		select {
		case err := <-done:
			t.Fatalf("the program ended: %v\n%s", err, &words)
		case <-limit:
			t.Fatal("no socket")
		case <-time.After(10 * time.Millisecond): // a file tells nobody that it is there
		}
	}
}

// server is an API server that is asked and does not answer.
func server(t *testing.T) (api applier.API, asked, left <-chan struct{}) {
	t.Helper()
	a, l := make(chan struct{}, 64), make(chan struct{}, 64)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a <- struct{}{}
		<-r.Context().Done()
		l <- struct{}{}
	}))
	t.Cleanup(func() { s.CloseClientConnections(); s.Close() })
	return applier.API{URL: s.URL}, a, l
}

func TestDiesInTheMidst(t *testing.T) {
	files := fleetgen.Files(3)
	rendering, err := Render(slice(t, files, 1))
	if err != nil {
		t.Fatal(err)
	}
	api, asked, left := server(t)
	c, kill := running(t)
	failed := make(chan error, 2)
	go func() {
		_, err := c.Apply(t.Context(), applier.Order{API: api, Release: 1, Plan: rendering.Plan})
		failed <- err
	}()
	go func() { failed <- c.Watch(t.Context(), api, func(applier.Status) {}) }()
	<-asked
	kill()
	for range 2 {
		if err := <-failed; err == nil || errors.Is(err, applier.ErrRefused) {
			t.Errorf("got %v, want a fault that is worth a second try", err)
		}
	}
	<-left
	t.Run("and is started again where its socket lies", func(t *testing.T) {
		next, _ := running(t)
		if err := os.Rename(next.Socket, c.Socket); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			_, err := c.Apply(ctx, applier.Order{API: api, Release: 1, Plan: rendering.Plan})
			failed <- err
		}()
		<-asked
		cancel()
		if err := <-failed; !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		<-left // whose caller goes, goes too
	})
}

// A plan that is none is said to be none, and changes nothing.
func TestBadOrders(t *testing.T) {
	s := httptest.NewServer((&Local{}).Handler())
	defer s.Close()
	for _, body := range []string{"", "{}", `{"release":1}x`, "[]", `{"release":1}` + strings.Repeat(" ", 10)} {
		r, err := http.Post(s.URL+applier.PathApply, "", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Body.Close()
		if r.StatusCode != http.StatusBadRequest {
			t.Errorf("%q: got %s", body, r.Status)
		}
	}
	if _, err := wanted(applier.Order{Release: 4, Plan: []byte(`{"apps":[],"new":1}`)}); err == nil || !strings.Contains(err.Error(), "release 4") {
		t.Errorf("a plan of another build: %v", err)
	}
}

func TestMainSaysWhatItTakes(t *testing.T) {
	for _, args := range [][]string{nil, {"help"}, {"run"}, {"run", "--port", "1"}} {
		var words bytes.Buffer
		if err := Main(t.Context(), args, strings.NewReader(""), io.Discard, &words); err == nil {
			t.Errorf("%q: no error", args)
		}
	}
}
