//go:build system

package apps

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/vishvananda/netlink"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/yaml"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/kube"
	"github.com/holdfast-edge/holdfast/machine/pki"
)

// These tests run against the real control plane of bin/system, with no node, in namespaces of their own: TestMain runs the
// test binary again as process 1 of a network, mount and process namespace, so that whatever it starts ends with it.

const inside = "HOLDFAST_TEST_INSIDE" // the folder of this run

func TestMain(m *testing.M) {
	if os.Getenv(inside) != "" {
		os.Exit(m.Run())
	}
	dir, err := os.MkdirTemp("", "apps-system-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"="+dir)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL}
	err = cmd.Run()
	_ = os.RemoveAll(dir)
	if err != nil {
		fmt.Fprintln(os.Stderr, "namespaced test run:", err)
		os.Exit(1)
	}
}

// cluster is the one control plane that the tests share; each uses names of its own.
var cluster = sync.OnceValues(startCluster)

func startCluster() (*rest.Config, error) {
	bin, err := filepath.Abs("../../bin/system")
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(filepath.Join(bin, "kube")); err != nil {
		build := exec.Command("make", "-C", "../..", "bin/system/kube")
		build.Stdout, build.Stderr = os.Stderr, os.Stderr
		if err := build.Run(); err != nil {
			return nil, fmt.Errorf("build bin/system/kube: %w", err)
		}
	}
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return nil, fmt.Errorf("make mounts private: %w", err)
	}
	if err := syscall.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return nil, fmt.Errorf("mount /proc: %w", err)
	}
	dir := os.Getenv(inside)
	paths := kube.Paths{Bin: bin, Config: dir + "/config", Run: dir + "/run", PKI: dir + "/pki", Etcd: dir + "/etcd", Data: dir + "/data"}
	self := fleet.Machine{Name: "till", ID: fleet.MachineIDOf([]byte("till")), Role: kube.RoleControlPlane, SiteAddress: netip.MustParseAddr("10.213.0.11")}
	site := &fleet.Resolved{
		Fleet: "coffee", FleetID: "00112233445566778899aabbccddeeff", Site: "berlin", UID: "7d1c", Dir: "sites/berlin", Machines: []fleet.Machine{self},
		Network: fleet.Network{
			SiteRange: netip.MustParsePrefix("10.213.0.0/24"), PodRange: netip.MustParsePrefix("10.214.0.0/16"), ServiceRange: netip.MustParsePrefix("10.215.0.0/16"),
			APIAddress: netip.MustParseAddr("10.213.0.1"), Domain: "cluster.local",
		},
		Kubernetes: fleet.Kubernetes{Version: "1.36", MaxPods: 110},
	}
	plan, err := kube.New(site, self, paths, kube.Options{Hosted: true, Registry: netip.MustParseAddrPort("127.0.0.1:5000")})
	if err != nil {
		return nil, err
	}
	if err := plantFiles(plan, paths); err != nil {
		return nil, err
	}
	for _, c := range plan.Commands {
		if c.Name == "control-plane" {
			if err := startUntilReady(c, dir); err != nil {
				return nil, err
			}
		}
	}
	return clientcmd.BuildConfigFromFlags("", filepath.Join(paths.Config, "machined.kubeconfig"))
}

func plantFiles(plan *kube.Plan, paths kube.Paths) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	for _, a := range plan.Addresses {
		addr, err := netlink.ParseAddr(a.String())
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(lo, addr); err != nil {
			return err
		}
	}
	for _, f := range plan.Folders {
		if err := os.MkdirAll(f.Path, os.FileMode(f.Mode)); err != nil {
			return err
		}
	}
	for _, f := range plan.Files {
		if err := os.MkdirAll(filepath.Dir(f.Path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(f.Path, f.Content, os.FileMode(f.Mode)); err != nil {
			return err
		}
	}
	store, err := pki.Open(paths.PKI, pki.Options{})
	if err != nil {
		return err
	}
	if err := store.MakeAuthorities("test"); err != nil {
		return err
	}
	_, err = store.Ensure(context.Background(), plan.Certificates, store)
	return err
}

func startUntilReady(c kube.Command, dir string) error {
	log, err := os.Create(filepath.Join(dir, c.Name+".log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(c.Path, c.Args...)
	cmd.Env = append(os.Environ(), c.Env...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); {
		if _, err := os.Stat(c.Ready.File); err == nil {
			return nil
		}
		select {
		case err := <-ended:
			text, _ := os.ReadFile(log.Name())
			return fmt.Errorf("%s ended: %v\n%s", c.Name, err, tail(text))
		case <-time.After(20 * time.Millisecond):
		}
	}
	text, _ := os.ReadFile(log.Name())
	return fmt.Errorf("%s is not ready after two minutes\n%s", c.Name, tail(text))
}

func tail(b []byte) []byte { return b[max(0, len(b)-3000):] }

// site is one test's view of the cluster.
type site struct {
	*testing.T
	config *rest.Config
	dyn    dynamic.Interface
	engine *Engine
}

func newSite(t *testing.T) *site {
	t.Helper()
	config, err := cluster()
	if err != nil {
		t.Fatal(err)
	}
	config = rest.CopyConfig(config)
	config.QPS = -1
	dyn, err := dynamic.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	s := &site{T: t, config: config, dyn: dyn}
	s.restart()
	// The tests share a cluster, and an app that is in no plan is removed: so each test clears up behind itself.
	t.Cleanup(s.clear)
	return s
}

// restart makes a new engine, as after a restart of the machine.
func (s *site) restart() {
	s.Helper()
	e, err := New(Config{REST: s.config, NeedsWait: 2 * time.Second, ObjectWait: 5 * time.Second, KindWait: 10 * time.Second, GoneWait: 5 * time.Second,
		Log: slog.New(slog.NewTextHandler(s.Output(), &slog.HandlerOptions{Level: slog.LevelInfo}))})
	if err != nil {
		s.Fatal(err)
	}
	s.engine = e
}

var (
	configMapsAt  = schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}
	namespacesAt  = schema.GroupVersionResource{Version: "v1", Resource: "namespaces"}
	podsAt        = schema.GroupVersionResource{Version: "v1", Resource: "pods"}
	jobsAt        = schema.GroupVersionResource{Group: "batch", Version: "v1", Resource: "jobs"}
	deploymentsAt = schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "deployments"}
	setsAt        = schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "statefulsets"}
	pvcsAt        = schema.GroupVersionResource{Version: "v1", Resource: "persistentvolumeclaims"}
	crdsAt        = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}
	tillsAt       = schema.GroupVersionResource{Group: "shop.example", Version: "v1", Resource: "tills"}
)

// clear removes everything that bears our labels.
func (s *site) clear() {
	ctx := context.Background()
	all, err := s.engine.client.listable(ctx, false)
	if err != nil {
		s.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		left := 0
		for _, r := range all {
			for _, label := range []string{LabelApp, inventoryLabel, onceLabel} {
				_ = s.engine.client.list(ctx, r.resource, "", label, func(m *metav1.PartialObjectMetadata) {
					if r.kind != "Namespace" { // takes its time, and bears a name that no other test has
						left++
					}
					zero, background := int64(0), metav1.DeletePropagationBackground
					_ = s.dyn.Resource(r.GroupVersionResource).Namespace(m.Namespace).Delete(ctx, m.Name, metav1.DeleteOptions{GracePeriodSeconds: &zero, PropagationPolicy: &background})
				})
			}
		}
		if left == 0 {
			return
		}
		if time.Now().After(deadline) {
			s.Fatalf("%d objects of this test do not go away", left)
		}
	}
}

// app makes an app of YAML documents.
func app(t *testing.T, name, namespace, docs string, needs ...string) App {
	t.Helper()
	a := App{Name: name, Namespace: namespace, Needs: needs}
	for _, doc := range strings.Split(docs, "\n---\n") {
		data, err := yaml.YAMLToJSON([]byte(doc))
		if err != nil {
			t.Fatal(err)
		}
		u := &unstructured.Unstructured{}
		if err := u.UnmarshalJSON(data); err != nil {
			t.Fatalf("%v in %s", err, doc)
		}
		a.Objects = append(a.Objects, Object{u.GetAPIVersion(), u.GetKind(), u.GetNamespace(), u.GetName(), data})
	}
	return a
}

func (s *site) apply(p Plan) Result {
	s.Helper()
	r, err := s.engine.Apply(s.Context(), p)
	if err != nil {
		s.Fatalf("apply: %v", err)
	}
	return r
}

// want compares a result's counts; messages and times are left out.
func (s *site) want(r Result, want ...AppResult) {
	s.Helper()
	if diff := cmp.Diff(want, r.Apps, cmpopts.IgnoreFields(AppResult{}, "Took", "Messages")); diff != "" {
		text, _ := json.MarshalIndent(r, "", " ")
		s.Fatalf("result (-want +got):\n%s%s", diff, text)
	}
}

func (s *site) says(r Result, app string, reason Reason, words string) {
	s.Helper()
	for _, a := range r.Apps {
		for _, m := range a.Messages {
			if a.App == app && m.Reason == reason && strings.Contains(m.Object.String()+": "+m.Text, words) {
				return
			}
		}
	}
	text, _ := json.MarshalIndent(r, "", " ")
	s.Errorf("nobody says %s %q about %s:\n%s", reason, words, app, text)
}

func (s *site) get(at schema.GroupVersionResource, namespace, name string) *unstructured.Unstructured {
	s.Helper()
	u, err := s.dyn.Resource(at).Namespace(namespace).Get(s.Context(), name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		s.Fatal(err)
	}
	return u
}

func (s *site) there(at schema.GroupVersionResource, namespace, name string, want bool) {
	s.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if got := s.get(at, namespace, name) != nil; got == want {
			return
		} else if time.Now().After(deadline) {
			s.Fatalf("%s %s/%s: there %v, want %v", at.Resource, namespace, name, got, want)
		}
	}
}

// create makes an object as somebody else.
func (s *site) create(at schema.GroupVersionResource, doc string) {
	s.Helper()
	data, err := yaml.YAMLToJSON([]byte(doc))
	if err != nil {
		s.Fatal(err)
	}
	u := &unstructured.Unstructured{}
	if err := u.UnmarshalJSON(data); err != nil {
		s.Fatal(err)
	}
	if _, err := s.dyn.Resource(at).Namespace(u.GetNamespace()).Create(s.Context(), u, metav1.CreateOptions{FieldManager: "somebody"}); err != nil {
		s.Fatal(err)
	}
}

func (s *site) delete(at schema.GroupVersionResource, namespace, name string) {
	s.Helper()
	zero, background := int64(0), metav1.DeletePropagationBackground
	if err := s.dyn.Resource(at).Namespace(namespace).Delete(s.Context(), name, metav1.DeleteOptions{GracePeriodSeconds: &zero, PropagationPolicy: &background}); err != nil {
		s.Fatal(err)
	}
	s.there(at, namespace, name, false)
}

const (
	nsDoc  = "{apiVersion: v1, kind: Namespace, metadata: {name: %s}}"
	mapDoc = "{apiVersion: v1, kind: ConfigMap, metadata: {name: %s, namespace: %s}, data: {price: %q}}"
	podDoc = "{apiVersion: v1, kind: Pod, metadata: {name: %s, namespace: %s}, spec: {automountServiceAccountToken: false, containers: [{name: c, image: r.example/c:1}]}}"
	jobDoc = `{apiVersion: batch/v1, kind: Job, metadata: {name: %s, namespace: %s, annotations: {%s}}, spec: {template: {spec: {restartPolicy: Never, automountServiceAccountToken: false, containers: [{name: c, image: "r.example/c:%s"}]}}}}`
	crdDoc = `apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: tills.shop.example}
spec:
  group: shop.example
  scope: Namespaced
  names: {kind: Till, plural: tills}
  versions: [{name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}]`
	pvcDoc = "{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: %s, namespace: %s}, spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}}"
)

func docs(list ...string) string { return strings.Join(list, "\n---\n") }

func TestSystemApplyTwiceIsOnce(t *testing.T) {
	s := newSite(t)
	webhook := `apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {name: pos-prices}
webhooks:
- {name: prices.shop.example, failurePolicy: Fail, sideEffects: None, admissionReviewVersions: [v1], clientConfig: {url: "https://127.0.0.1:1/"},
   rules: [{apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [configmaps]}], namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: twice}}}`
	till := "{apiVersion: shop.example/v1, kind: Till, metadata: {name: one}, spec: {drawer: 9007199254740993}}" // its namespace is the app's
	deployment := `{apiVersion: apps/v1, kind: Deployment, metadata: {name: pos, namespace: twice}, spec: {replicas: 1, selector: {matchLabels: {a: pos}}, template: {metadata: {labels: {a: pos}}, spec: {containers: [{name: c, image: "r.example/c:1"}]}}}}`
	service := "{apiVersion: v1, kind: Service, metadata: {name: pos, namespace: twice}, spec: {selector: {a: pos}, ports: [{port: 80}]}}"
	// The worst order: the webhook, which nobody answers, would forbid the ConfigMap.
	all := app(t, "pos", "twice", docs(webhook, till, deployment, service, fmt.Sprintf(mapDoc, "prices", "twice", "1"), fmt.Sprintf(nsDoc, "twice"), crdDoc))
	start := time.Now()
	r := s.apply(Plan{Release: 1, Apps: []App{all}})
	t.Logf("first apply of 7 objects: %s, %d writes", time.Since(start).Round(time.Millisecond), r.Writes)
	s.want(r, AppResult{App: "pos", State: Applied, Applied: 7})
	if n, _, _ := unstructured.NestedInt64(s.get(tillsAt, "twice", "one").Object, "spec", "drawer"); n != 9007199254740993 {
		t.Errorf("a big number became %d", n)
	}
	for round, restart := range []bool{false, true, false} {
		if restart {
			s.restart()
		}
		start := time.Now()
		r = s.apply(Plan{Release: uint64(2 + round), Apps: []App{all}})
		t.Logf("apply again: %s", time.Since(start).Round(time.Millisecond))
		s.want(r, AppResult{App: "pos", State: Applied, Unchanged: 7})
		if r.Writes != 0 {
			t.Errorf("round %d: %d writes for nothing", round, r.Writes)
		}
	}
	// One line.
	all.Objects[4] = app(t, "x", "", fmt.Sprintf(mapDoc, "prices", "twice", "2")).Objects[0]
	r = s.apply(Plan{Release: 9, Apps: []App{all}})
	s.want(r, AppResult{App: "pos", State: Applied, Applied: 1, Unchanged: 6})
	if got := s.get(configMapsAt, "twice", "prices"); got.GetLabels()[LabelRelease] != "9" || s.get(deploymentsAt, "twice", "pos").GetLabels()[LabelRelease] != "1" {
		t.Error("release labels do not say what changed when")
	}
	// What others change in our fields stays, unless the plan repairs; a repair that finds nothing writes nothing into etcd.
	if _, err := s.dyn.Resource(configMapsAt).Namespace("twice").Patch(t.Context(), "prices", types.MergePatchType, []byte(`{"data":{"price":"stolen"}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	s.want(s.apply(Plan{Release: 9, Apps: []App{all}}), AppResult{App: "pos", State: Applied, Unchanged: 7})
	s.want(s.apply(Plan{Release: 9, Apps: []App{all}, Repair: true}), AppResult{App: "pos", State: Applied, Applied: 1, Unchanged: 6})
	if v, _, _ := unstructured.NestedString(s.get(configMapsAt, "twice", "prices").Object, "data", "price"); v != "2" {
		t.Errorf("after the repair the price is %q", v)
	}
	// A controller that writes statuses meanwhile is not counted as us.
	busy, stop := context.WithCancel(t.Context())
	var writer sync.WaitGroup
	writer.Go(func() {
		for i := 0; busy.Err() == nil; i++ {
			body := fmt.Appendf(nil, `{"metadata":{"annotations":{"shop.example/tick":"%d"}}}`, i)
			_, _ = s.dyn.Resource(deploymentsAt).Namespace("twice").Patch(busy, "pos", types.MergePatchType, body, metav1.PatchOptions{FieldManager: "ticker"})
			time.Sleep(5 * time.Millisecond)
		}
	})
	for range 5 {
		s.want(s.apply(Plan{Release: 9, Apps: []App{all}, Repair: true}), AppResult{App: "pos", State: Applied, Unchanged: 7})
	}
	stop()
	writer.Wait()
	// What was deleted by hand comes back.
	s.delete(deploymentsAt, "twice", "pos")
	s.want(s.apply(Plan{Release: 9, Apps: []App{all}}), AppResult{App: "pos", State: Applied, Applied: 1, Unchanged: 6})
}

func TestSystemPruneKeepsData(t *testing.T) {
	s := newSite(t)
	ns, keep := fmt.Sprintf(nsDoc, "prune"), fmt.Sprintf(mapDoc, "stays", "prune", "1")
	marked := "{apiVersion: v1, kind: ConfigMap, metadata: {name: marked, namespace: prune, annotations: {holdfast.dev/prune: keep}}}"
	helm := "{apiVersion: v1, kind: ConfigMap, metadata: {name: helm, namespace: prune, annotations: {helm.sh/resource-policy: keep}}}"
	till := "{apiVersion: shop.example/v1, kind: Till, metadata: {name: one, namespace: prune}}"
	set := `{apiVersion: apps/v1, kind: StatefulSet, metadata: {name: db, namespace: prune}, spec: {replicas: 0, persistentVolumeClaimRetentionPolicy: {whenDeleted: Delete}, serviceName: db, selector: {matchLabels: {a: db}}, template: {metadata: {labels: {a: db}}, spec: {containers: [{name: c, image: "r.example/c:1"}]}}}}`
	full := app(t, "pos", "prune", docs(ns, keep, fmt.Sprintf(mapDoc, "goes", "prune", "1"), marked, helm, crdDoc, till, fmt.Sprintf(pvcDoc, "db", "prune"), set))
	s.want(s.apply(Plan{Release: 1, Apps: []App{full}}), AppResult{App: "pos", State: Applied, Applied: 9})
	s.create(tillsAt, "{apiVersion: shop.example/v1, kind: Till, metadata: {name: theirs, namespace: prune}}")

	less := app(t, "pos", "prune", docs(ns, keep))
	s.want(s.apply(Plan{Release: 2, Apps: []App{less}, KeepOld: true}), AppResult{App: "pos", State: Applied, Unchanged: 2})
	s.there(configMapsAt, "prune", "goes", true)
	bad := app(t, "pos", "prune", docs(ns, keep, "{apiVersion: v1, kind: ConfigMap, metadata: {name: bad, namespace: prune}, data: 7}"))
	s.want(s.apply(Plan{Release: 2, Apps: []App{bad}}), AppResult{App: "pos", State: Failed, Unchanged: 2, Failed: 1})
	s.there(configMapsAt, "prune", "goes", true)

	r := s.apply(Plan{Release: 3, Apps: []App{less}})
	s.want(r, AppResult{App: "pos", State: Applied, Unchanged: 2, Pruned: 2, Orphaned: 5})
	for at, name := range map[schema.GroupVersionResource]string{pvcsAt: "db", setsAt: "db", tillsAt: "theirs"} {
		s.there(at, "prune", name, true)
	}
	s.there(crdsAt, "", "tills.shop.example", true)
	s.there(configMapsAt, "prune", "marked", true)
	s.there(configMapsAt, "prune", "helm", true)
	s.there(configMapsAt, "prune", "goes", false)
	s.there(tillsAt, "prune", "one", false)
	s.says(r, "pos", Orphan, "PersistentVolumeClaim prune/db: stays in place: it holds data")
	s.says(r, "pos", Orphan, "CustomResourceDefinition tills.shop.example")
	s.says(r, "pos", Orphan, "it would take its claims with it")
	// It is said each time, and costs no write.
	r = s.apply(Plan{Release: 4, Apps: []App{less}})
	s.want(r, AppResult{App: "pos", State: Applied, Unchanged: 2, Orphaned: 5})
	if r.Writes != 0 {
		t.Errorf("%d writes to say the same again", r.Writes)
	}
	// Only an entry removes data, and only once: what is made anew under that name is not deleted again.
	less.Delete = []Ref{{"v1", "PersistentVolumeClaim", "", "db"}, {"apiextensions.k8s.io/v1", "CustomResourceDefinition", "", "tills.shop.example"}}
	r = s.apply(Plan{Release: 5, Apps: []App{less}})
	r.Apps[0].Going = 0 // whether they are gone in this instant is the API server's affair
	s.want(r, AppResult{App: "pos", State: Applied, Unchanged: 2, Deleted: 2, Orphaned: 3})
	s.there(pvcsAt, "prune", "db", false)
	s.there(crdsAt, "", "tills.shop.example", false)
	s.create(pvcsAt, fmt.Sprintf(pvcDoc, "db", "prune"))
	s.restart()
	s.want(s.apply(Plan{Release: 6, Apps: []App{less}}), AppResult{App: "pos", State: Applied, Unchanged: 2, Orphaned: 3})
	s.there(pvcsAt, "prune", "db", true)
}

func TestSystemForeignObjects(t *testing.T) {
	s := newSite(t)
	s.create(namespacesAt, fmt.Sprintf(nsDoc, "foreign"))
	s.create(configMapsAt, fmt.Sprintf(mapDoc, "theirs", "foreign", "their price"))
	s.create(configMapsAt, fmt.Sprintf(mapDoc, "same", "foreign", "1"))
	plan := Plan{Release: 1, Apps: []App{app(t, "pos", "foreign", docs(fmt.Sprintf(mapDoc, "theirs", "foreign", "our price"), fmt.Sprintf(mapDoc, "new", "foreign", "1")))}}
	for range 2 { // the second time it is in the books, and still not ours
		r := s.apply(plan)
		if a := r.Apps[0]; a.State != Failed || a.Failed != 1 || a.Applied+a.Unchanged != 1 {
			t.Fatalf("%+v", a)
		}
		s.says(r, "pos", Conflict, ".data.price")
		s.says(r, "pos", Conflict, "somebody")
		s.restart()
	}
	if v, _, _ := unstructured.NestedString(s.get(configMapsAt, "foreign", "theirs").Object, "data", "price"); v != "their price" {
		t.Errorf("taken by force: %q", v)
	}
	// What says the same is adopted, and stays when the app lets go of it.
	both := Plan{Release: 2, Apps: []App{app(t, "pos", "foreign", docs(fmt.Sprintf(mapDoc, "same", "foreign", "1"), fmt.Sprintf(mapDoc, "new", "foreign", "1")))}}
	s.want(s.apply(both), AppResult{App: "pos", State: Applied, Applied: 1, Unchanged: 1})
	// A value of ours that somebody took by force is ours again when it changes: the object is in the books.
	if _, err := s.dyn.Resource(configMapsAt).Namespace("foreign").Patch(t.Context(), "new", types.ApplyPatchType, []byte(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"new"},"data":{"price":"5"}}`),
		metav1.PatchOptions{FieldManager: "somebody", Force: new(true)}); err != nil {
		t.Fatal(err)
	}
	s.want(s.apply(Plan{Release: 3, Apps: []App{app(t, "pos", "foreign", fmt.Sprintf(mapDoc, "new", "foreign", "2"))}}), AppResult{App: "pos", State: Applied, Applied: 1, Orphaned: 1})
	s.there(configMapsAt, "foreign", "same", true)
}

func TestSystemJobsRunOnce(t *testing.T) {
	s := newSite(t)
	plan := func(n uint64, image, annotation string) Plan {
		return Plan{Release: n, Apps: []App{app(t, "pos", "once", docs(fmt.Sprintf(nsDoc, "once"), fmt.Sprintf(jobDoc, "migrate", "once", annotation, image)))}}
	}
	s.want(s.apply(plan(1, "1", "")), AppResult{App: "pos", State: Applied, Applied: 2})
	s.want(s.apply(plan(2, "1", "")), AppResult{App: "pos", State: Applied, Unchanged: 2})
	s.delete(jobsAt, "once", "migrate") // as its time to live does
	for range 2 {
		r := s.apply(plan(3, "1", ""))
		s.want(r, AppResult{App: "pos", State: Applied, Unchanged: 2})
		s.restart()
	}
	s.there(jobsAt, "once", "migrate", false)
	s.want(s.apply(Plan{Release: 3, Apps: plan(3, "1", "").Apps, Repair: true}), AppResult{App: "pos", State: Applied, Unchanged: 2})
	s.there(jobsAt, "once", "migrate", false)

	s.want(s.apply(plan(4, "2", "")), AppResult{App: "pos", State: Applied, Applied: 1, Unchanged: 1}) // other content: it runs
	r := s.apply(plan(5, "3", ""))                                                                     // while the old one is there, a Job cannot change
	s.want(r, AppResult{App: "pos", State: Failed, Failed: 1, Unchanged: 1})
	s.says(r, "pos", Recreate, "needs recreate: true")
	old := s.get(jobsAt, "once", "migrate").GetUID()
	s.want(s.apply(plan(6, "3", `holdfast.dev/recreate: "true"`)), AppResult{App: "pos", State: Applied, Applied: 1, Unchanged: 1})
	if s.get(jobsAt, "once", "migrate").GetUID() == old {
		t.Error("not made anew")
	}
	// A Job that has started is never removed by absence.
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if _, started, _ := unstructured.NestedString(s.get(jobsAt, "once", "migrate").Object, "status", "startTime"); started {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the Job controller does not start the Job")
		}
	}
	r = s.apply(Plan{Release: 7, Apps: []App{app(t, "pos", "once", fmt.Sprintf(nsDoc, "once"))}})
	s.want(r, AppResult{App: "pos", State: Applied, Unchanged: 1, Orphaned: 1})
	s.says(r, "pos", Orphan, "has run")
}

func TestSystemWholeApps(t *testing.T) {
	s := newSite(t)
	data := app(t, "db", "whole", docs(fmt.Sprintf(nsDoc, "whole"), fmt.Sprintf(pvcDoc, "db", "whole"), fmt.Sprintf(mapDoc, "c", "whole", "1")))
	plain := app(t, "web", "plain", docs(fmt.Sprintf(nsDoc, "plain"), fmt.Sprintf(mapDoc, "c", "plain", "1")))
	held := app(t, "held", "held", docs(fmt.Sprintf(nsDoc, "held"), fmt.Sprintf(mapDoc, "c", "held", "1")))
	s.want(s.apply(Plan{Release: 1, Apps: []App{data, plain, held}}),
		AppResult{App: "db", State: Applied, Applied: 3}, AppResult{App: "web", State: Applied, Applied: 2}, AppResult{App: "held", State: Applied, Applied: 2})
	s.create(configMapsAt, fmt.Sprintf(mapDoc, "theirs", "held", "1"))
	s.restart()
	r := s.apply(Plan{Release: 2})
	s.want(r, AppResult{App: "db", State: Orphaned, Orphaned: 3}, AppResult{App: "held", State: Orphaned, Pruned: 1, Orphaned: 1}, AppResult{App: "web", State: Removing, Pruned: 2, Going: 1})
	s.says(r, "db", Orphan, "has claims: PersistentVolumeClaim whole/db")
	s.says(r, "held", Orphan, "ConfigMap held/theirs")
	s.there(configMapsAt, "whole", "c", true)
	s.there(configMapsAt, "held", "theirs", true)
	s.there(configMapsAt, "plain", "c", false)
	s.delete(configMapsAt, "held", "theirs")
	// The release says that the data may go: then all of the app goes.
	r = s.apply(Plan{Release: 3, Delete: []Ref{{"v1", "PersistentVolumeClaim", "", "db"}}})
	if len(r.Apps) < 1 || r.Apps[0].Deleted != 1 {
		t.Fatalf("%+v", r)
	}
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(200 * time.Millisecond) { // namespaces go slowly
		if r = s.apply(Plan{Release: 3, Delete: []Ref{{"v1", "PersistentVolumeClaim", "", "db"}}}); len(r.Apps) == 0 {
			break
		}
	}
	s.there(namespacesAt, "", "whole", false)
	s.there(namespacesAt, "", "held", false)
	s.there(namespacesAt, "", "plain", false)
	if len(r.Apps) > 0 || r.Writes != 0 {
		t.Errorf("something is left: %+v; books %s", r, dump(s.engine))
	}
}

func dump(e *Engine) string {
	data, _ := json.Marshal(e.books)
	return string(data)
}

func TestSystemBooksAreACache(t *testing.T) {
	s := newSite(t)
	ns, one, two := fmt.Sprintf(nsDoc, "books"), fmt.Sprintf(mapDoc, "one", "books", "1"), fmt.Sprintf(mapDoc, "two", "books", "1")
	role := "{apiVersion: rbac.authorization.k8s.io/v1, kind: Role, metadata: {name: r, namespace: books}}"
	all := app(t, "pos", "books", docs(ns, one, two, role))
	s.want(s.apply(Plan{Release: 1, Apps: []App{all}}), AppResult{App: "pos", State: Applied, Applied: 4})
	for name, lose := range map[string]func(){
		"lost": func() { s.delete(configMapsAt, Namespace, "inventory-pos") },
		"damaged": func() {
			if _, err := s.dyn.Resource(configMapsAt).Namespace(Namespace).Patch(t.Context(), "inventory-pos", types.MergePatchType, []byte(`{"data":{"books.json":"{torn"}}`), metav1.PatchOptions{}); err != nil {
				t.Fatal(err)
			}
		},
	} {
		lose()
		s.restart()
		r := s.apply(Plan{Release: 2, Apps: []App{all}})
		s.want(r, AppResult{App: "pos", State: Applied, Unchanged: 4})
		if r.Writes != 1 {
			t.Errorf("%s: %d writes, want the inventory alone", name, r.Writes)
		}
	}
	s.delete(configMapsAt, Namespace, "inventory-pos")
	s.restart()
	// A kind that the plan does not have any more is found by its label.
	s.want(s.apply(Plan{Release: 3, Apps: []App{app(t, "pos", "books", docs(ns, one))}}), AppResult{App: "pos", State: Applied, Unchanged: 2, Pruned: 2})
	s.there(configMapsAt, "books", "two", false)
}

func TestSystemSurvivesCuts(t *testing.T) {
	s := newSite(t)
	list := []string{fmt.Sprintf(nsDoc, "cuts"), crdDoc, "{apiVersion: shop.example/v1, kind: Till, metadata: {name: one, namespace: cuts}}"}
	for i := range 20 {
		list = append(list, fmt.Sprintf(mapDoc, fmt.Sprint("m", i), "cuts", "1"))
	}
	all := app(t, "pos", "cuts", docs(list...))
	for range 12 {
		s.restart()
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(rand.IntN(120))*time.Millisecond)
		_, _ = s.engine.Apply(ctx, Plan{Release: 1, Apps: []App{all}})
		cancel()
	}
	s.restart()
	r := s.apply(Plan{Release: 1, Apps: []App{all}})
	if a := r.Apps[0]; a.State != Applied || a.Applied+a.Unchanged != 23 {
		t.Fatalf("%+v", a)
	}
	if r = s.apply(Plan{Release: 1, Apps: []App{all}}); r.Writes != 0 {
		t.Errorf("%d writes after the work was done", r.Writes)
	}
	few := app(t, "pos", "cuts", docs(list[:3]...))
	for range 12 {
		s.restart()
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(rand.IntN(120))*time.Millisecond)
		_, _ = s.engine.Apply(ctx, Plan{Release: 2, Apps: []App{few}})
		cancel()
	}
	s.restart()
	s.apply(Plan{Release: 2, Apps: []App{few}})
	left, err := s.dyn.Resource(configMapsAt).Namespace("cuts").List(t.Context(), metav1.ListOptions{LabelSelector: LabelApp})
	if err != nil || len(left.Items) != 0 {
		t.Errorf("%d ConfigMaps are left over (%v)", len(left.Items), err)
	}
}

// podReady plays the kubelet for a pod.
func (s *site) podReady(namespace, name string, ready bool) {
	s.Helper()
	body := fmt.Sprintf(`{"status":{"phase":"Running","conditions":[{"type":"Ready","status":%q}]}}`, map[bool]string{true: "True", false: "False"}[ready])
	if _, err := s.dyn.Resource(podsAt).Namespace(namespace).Patch(s.Context(), name, types.MergePatchType, []byte(body), metav1.PatchOptions{}, "status"); err != nil {
		s.Fatal(err)
	}
}

func TestSystemNeedsAndWatch(t *testing.T) {
	s := newSite(t)
	base := app(t, "base", "needs", docs(fmt.Sprintf(nsDoc, "needs"), "{apiVersion: v1, kind: ServiceAccount, metadata: {name: default, namespace: needs}}", fmt.Sprintf(podDoc, "p", "needs")))
	base.Objects = append(base.Objects[:1], base.Objects[2:]...)
	upper := app(t, "upper", "needs", fmt.Sprintf(mapDoc, "u", "needs", "1"), "base")
	other := app(t, "other", "needs2", docs(fmt.Sprintf(nsDoc, "needs2"), fmt.Sprintf(mapDoc, "o", "needs2", "1")))
	lost := app(t, "lost", "needs2", fmt.Sprintf(mapDoc, "l", "needs2", "1"), "nobody")

	var mu sync.Mutex
	var finished []string
	s.engine.cfg.Done = func(r AppResult) { mu.Lock(); finished = append(finished, r.App); mu.Unlock() }
	seen := make(chan AppStatus, 100)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = s.engine.Watch(ctx, func(st AppStatus) { seen <- st })
	}()
	t.Cleanup(func() { cancel(); <-ended })

	start := time.Now()
	r := s.apply(Plan{Release: 1, Apps: []App{base, upper, other, lost}})
	s.want(r, AppResult{App: "base", State: Applied, Applied: 2}, AppResult{App: "upper", State: Waiting, Skipped: 1},
		AppResult{App: "other", State: Applied, Applied: 2}, AppResult{App: "lost", State: Waiting, Skipped: 1})
	s.says(r, "upper", NeedsWait, "Pod needs/p")
	s.says(r, "lost", NeedsWait, "not in the release")
	if r.Apps[2].Took > time.Second || time.Since(start) < 2*time.Second {
		t.Errorf("an unrelated app took %s, the whole %s", r.Apps[2].Took, time.Since(start))
	}
	mu.Lock()
	if finished[len(finished)-1] != "upper" {
		t.Errorf("finished in the order %v", finished)
	}
	mu.Unlock()
	next := func(app string, want Health) time.Duration {
		t.Helper()
		start := time.Now()
		for {
			select {
			case st := <-seen:
				if st.App == app && st.Health == want {
					return time.Since(start)
				}
			case <-time.After(10 * time.Second):
				t.Fatalf("app %s is never reported as %s", app, want)
			}
		}
	}
	next("base", Progressing)
	s.podReady("needs", "p", true)
	if took := next("base", Ready); took > 300*time.Millisecond {
		t.Errorf("ready was seen after %s", took)
	}
	r = s.apply(Plan{Release: 1, Apps: []App{base, upper, other}})
	s.want(r, AppResult{App: "base", State: Applied, Unchanged: 2}, AppResult{App: "upper", State: Applied, Applied: 1}, AppResult{App: "other", State: Applied, Unchanged: 2})
	s.podReady("needs", "p", false)
	if took := next("base", Progressing); took > 300*time.Millisecond {
		t.Errorf("not ready was seen after %s", took)
	}
	// An app that is as it should be is not held up by a need that fell ill.
	s.want(s.apply(Plan{Release: 2, Apps: []App{base, upper, other}}),
		AppResult{App: "base", State: Applied, Unchanged: 2}, AppResult{App: "upper", State: Applied, Unchanged: 1}, AppResult{App: "other", State: Applied, Unchanged: 2})
	s.delete(podsAt, "needs", "p")
	next("base", Missing)

	// A watcher that starts later, in a program that has applied nothing yet, sees all of it.
	s.restart()
	later := make(chan AppStatus, 100)
	ctx2, cancel2 := context.WithCancel(t.Context())
	ended2 := make(chan struct{})
	go func() {
		defer close(ended2)
		_ = s.engine.Watch(ctx2, func(st AppStatus) { later <- st })
	}()
	found := map[string]Health{}
	for deadline := time.After(5 * time.Second); found["base"] != Missing || found["other"] != Ready || found["upper"] != Ready; {
		select {
		case st := <-later:
			found[st.App] = st.Health
		case <-deadline:
			t.Fatalf("a new watcher sees %v", found)
		}
	}
	cancel2()
	<-ended2
}

func TestSystemKindsThatComeAndGo(t *testing.T) {
	s := newSite(t)
	defines := app(t, "operator", "kinds", docs(fmt.Sprintf(nsDoc, "kinds"), crdDoc))
	uses := app(t, "uses", "kinds", "{apiVersion: shop.example/v1, kind: Till, metadata: {name: one}}", "operator")
	s.want(s.apply(Plan{Release: 1, Apps: []App{uses, defines}}), AppResult{App: "uses", State: Applied, Applied: 1}, AppResult{App: "operator", State: Applied, Applied: 2})
	s.delete(crdsAt, "", "tills.shop.example") // by hand; the engine knew the kind
	s.want(s.apply(Plan{Release: 2, Apps: []App{uses, defines}}), AppResult{App: "uses", State: Applied, Applied: 1}, AppResult{App: "operator", State: Applied, Applied: 1, Unchanged: 1})
	nobody := app(t, "nobody", "kinds", "{apiVersion: nobody.example/v1, kind: Thing, metadata: {name: one}}")
	start := time.Now()
	r := s.apply(Plan{Release: 3, Apps: []App{uses, defines, nobody}})
	if r.Apps[2].State != Failed || time.Since(start) > 3*time.Second {
		t.Errorf("%+v after %s", r.Apps[2], time.Since(start))
	}
	s.says(r, "nobody", NoKind, "Thing")
}
