package render

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-edge/holdfast/fleet"
)

const stateful = `-- set.yaml --
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  template: {spec: {containers: [{name: db, image: "r.example/a:1"}]}}
  volumeClaimTemplates: [{metadata: {name: data}}]
`

const claimFile = "-- claimFile.yaml --\napiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: data}\n"

const secretFile = "-- secret.yaml --\napiVersion: v1\nkind: Secret\nmetadata: {name: s, annotations: {last: hunter2}}\nstringData: {password: hunter2}\ndata: {a.b: aHVudGVyMg==}\n"

func TestDiff(t *testing.T) {
	web := "-- web.yaml --" + deployment
	service := "-- service.yaml --\napiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {ports: [{port: 80}]}\n"
	del := func(kind, name string) func(*fleet.App) {
		return func(a *fleet.App) { a.Delete = append(a.Delete, fleet.ObjectRef{Kind: kind, Name: name}) }
	}
	app := func(change func(*fleet.App)) func(*fleet.Resolved) {
		return func(r *fleet.Resolved) { change(&r.Apps[0]) }
	}
	noApp := func(r *fleet.Resolved) { r.Apps = nil }
	for _, c := range []struct {
		name, before, after string
		change              func(*fleet.Resolved)
		want                string // class, then one line per change
	}{
		{"None", web, web, nil, "none"},
		{"NoneForComments", web, web + "# a comment\n", nil, "none"},
		{"Image", web, strings.Replace(web, "a:1", "b:1", 1), nil, `apply
changed app a
  changed Deployment a/web
    spec.template.spec.containers[name=web].image: "r.example/a:1@` + digestA + `" -> "r.example/b:1@` + digestB + `"`},
		{"Added", web, web + service, nil, "apply\nchanged app a\n  added Service a/web"},
		{"Removed", web + service, web, nil, "apply\nchanged app a\n  removed Service a/web"},
		{"ByPlace", web + service, strings.Replace(web+service, "port: 80", "port: 81", 1), nil, "apply\nchanged app a\n  changed Service a/web\n    spec.ports[0].port: 80 -> 81"},
		{"ClaimGoesByAbsence", web + claimFile, web, nil, "apply\nchanged app a\n  orphaned PersistentVolumeClaim a/data"},
		{"ClaimGoesByDelete", web + claimFile, web + claimFile, app(del("PersistentVolumeClaim", "data")), "destroys a\nchanged app a\n  deleted PersistentVolumeClaim a/data"},
		{"NamespaceGoesByDelete", web, web, app(del("Namespace", "a")), "destroys a\nchanged app a\n  deleted Namespace a"},
		{"DeleteWithoutData", web + service, web, app(del("Service", "web")), "apply\nchanged app a\n  deleted Service a/web"},
		{"AppGoes", web + service, web, noApp, "apply\nremoved app a\n  orphaned Namespace a\n  removed ConfigMap a/holdfast-site\n  removed Service a/web\n  removed Deployment a/web"},
		{"AppWithClaimsGoes", stateful + service, web, noApp, "apply\norphaned app a\n  orphaned Namespace a\n  orphaned ConfigMap a/holdfast-site\n  orphaned Service a/web\n  orphaned StatefulSet a/db"},
		{"AppGoesWithItsData", web + claimFile, web, func(r *fleet.Resolved) {
			r.Apps, r.Deletes = nil, []fleet.ObjectRef{{Kind: "PersistentVolumeClaim", Namespace: "a", Name: "data"}}
		}, "destroys a\nremoved app a\n  orphaned Namespace a\n  removed ConfigMap a/holdfast-site\n  deleted PersistentVolumeClaim a/data\n  removed Deployment a/web"},
		{"AppField", web, web, app(func(a *fleet.App) { a.Critical = true }), "apply\nchanged app a\n  critical: false -> true"},
		{"Network", web, web, func(r *fleet.Resolved) { r.Network.MTU = 1400 }, "restart\n  network.mtu: 0 -> 1400"},
		{"Kubernetes", web, web, func(r *fleet.Resolved) { r.Kubernetes.MaxPods = 50 }, "restart\n  kubernetes.maxPods: 0 -> 50"},
		{"OS", web, web, func(r *fleet.Resolved) { r.OS, r.Kubernetes.Version = "1.4.3", "1.37" }, "reboot\n  kubernetes.version: \"\" -> \"1.37\"\n  os: \"\" -> \"1.4.3\""},
		{"Secret", web + secretFile, web + strings.NewReplacer("hunter2", "other", "aHVudGVyMg", "b3RoZXI").Replace(secretFile), nil, `apply
changed app a
  changed Secret a/s
    data[a.b]: (hidden) -> (hidden)
    metadata.annotations.last: (hidden) -> (hidden)
    stringData.password: (hidden) -> (hidden)`},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := site()
			if c.change != nil {
				c.change(r)
			}
			change := Diff(render(t, tree(c.before), site()), render(t, tree(c.after), r))
			if d := cmp.Diff(c.want, describe(change)); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
			b, err := json.Marshal(change)
			if err != nil {
				t.Fatal(err)
			}
			if c.name == "Secret" && strings.Contains(string(b), "hunter2") {
				t.Errorf("the secret is shown: %s", b)
			}
		})
	}
}

func describe(c Change) string {
	lines := []string{strings.TrimSpace(c.Class.String() + " " + strings.Join(c.Destroys, " "))}
	field := func(indent string, f FieldChange) {
		lines = append(lines, fmt.Sprintf("%s%s: %s -> %s", indent, f.Path, f.Old, f.New))
	}
	for _, f := range c.Settings {
		field("  ", f)
	}
	for _, a := range c.Apps {
		lines = append(lines, fmt.Sprintf("%s app %s", a.Action, a.Name))
		for _, f := range a.Fields {
			field("  ", f)
		}
		for _, o := range a.Objects {
			lines = append(lines, fmt.Sprintf("  %s %s", o.Action, o.Object))
			for _, f := range o.Fields {
				field("    ", f)
			}
		}
	}
	return strings.Join(lines, "\n")
}

func TestDiffOfNothing(t *testing.T) {
	r := render(t, tree("-- web.yaml --"+deployment+claimFile), site())
	if c := Diff(nil, r); c.Class != Restart || len(c.Apps) != 1 || c.Apps[0].Action != Added || len(c.Fetch) != 2 {
		t.Errorf("a new site: %+v", c)
	}
	if c := Diff(r, nil); c.Class != Apply || c.Apps[0].Action != Orphaned || len(c.Destroys) != 0 {
		t.Errorf("a closed site: %+v", c)
	}
}

// A delete that an earlier release asked for is done, and no longer news.
func TestDiffOfOldDelete(t *testing.T) {
	deleting := func() *fleet.Resolved {
		return site(func(a *fleet.App) {
			a.Delete = []fleet.ObjectRef{{Kind: "PersistentVolumeClaim", Name: "data"}}
		})
	}
	before := render(t, tree("-- web.yaml --"+deployment), deleting())
	after := render(t, tree("-- web.yaml --"+strings.Replace(deployment, "a:1", "b:1", 1)), deleting())
	if c := Diff(before, after); c.Class != Apply {
		t.Errorf("class is %s, want apply", c.Class)
	}
}

// Every field of a rendering is in its effect: what a machine acts on cannot
// change in silence.
func TestEffectCovers(t *testing.T) {
	m := tree("-- web.yaml --" + deployment)
	base := render(t, m, site()).Effect.Digest
	for name, change := range map[string]func(*fleet.Resolved){
		"OS": func(r *fleet.Resolved) { r.OS = "x" }, "MTU": func(r *fleet.Resolved) { r.Network.MTU = 1 },
		"Domain": func(r *fleet.Resolved) { r.Network.Domain = "x" }, "NTP": func(r *fleet.Resolved) { r.Network.NTP = []string{"x"} },
		"MaxPods": func(r *fleet.Resolved) { r.Kubernetes.MaxPods = 1 }, "DataSize": func(r *fleet.Resolved) { r.Class.DataSize = 1 },
		"Edition": func(r *fleet.Resolved) { r.Edition = 1 }, "Var": func(r *fleet.Resolved) { r.Vars["port"] = int64(1) },
		"Deletes": func(r *fleet.Resolved) { r.Deletes = []fleet.ObjectRef{{Kind: "Service", Name: "x"}} },
		"Needs":   func(r *fleet.Resolved) { r.Apps[0].Needs = []string{"x"} }, "Critical": func(r *fleet.Resolved) { r.Apps[0].Critical = true },
		"OnFailure": func(r *fleet.Resolved) { r.Apps[0].OnFailure = "report" }, "Deadline": func(r *fleet.Resolved) { r.Apps[0].Deadline = 1 },
		"Devices": func(r *fleet.Resolved) { r.Apps[0].Devices = []string{"/dev/x"} }, "Version": func(r *fleet.Resolved) { r.Apps[0].Version = "2" },
		"PodSecurity": func(r *fleet.Resolved) { r.Apps[0].PodSecurity = "restricted" }, "Namespace": func(r *fleet.Resolved) { r.Apps[0].Namespace = "x" },
		"NoApp": func(r *fleet.Resolved) { r.Apps = nil },
	} {
		r := site()
		change(r)
		if render(t, m, r).Effect.Digest == base {
			t.Errorf("%s is not in the effect", name)
		}
	}
	same := site()
	same.Ring, same.Apps[0].Patches = "other", nil
	same.Class.Disk = fleet.DiskRule{Serial: "S4EWNX0M", Wipe: true}
	if render(t, m, same).Effect.Digest != base {
		t.Error("the ring's name or the disk's rule is in the effect")
	}
}
