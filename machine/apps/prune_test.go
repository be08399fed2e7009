package apps

import (
	"strings"
	"testing"
)

func TestRuleOnData(t *testing.T) {
	ref := func(apiVersion, kind string) entry { return entry{Ref: Ref{apiVersion, kind, "shop", "x"}} }
	deployment := candidate{entry: ref("apps/v1", "Deployment"), Live: true, Owner: "pos"}
	with := func(c candidate, e entry, f func(*candidate)) candidate {
		c.entry = e
		if f != nil {
			f(&c)
		}
		return c
	}
	tests := []struct {
		name   string
		c      candidate
		claims []string
		want   fate
		says   string
	}{
		{"Plain", deployment, nil, remove, ""},
		{"Gone", with(deployment, deployment.entry, func(c *candidate) { c.Live = false }), nil, forget, ""},
		{"WantedAgain", with(deployment, deployment.entry, func(c *candidate) { c.Wanted = true }), nil, forget, ""},
		{"MovedToAnotherApp", with(deployment, deployment.entry, func(c *candidate) { c.Owner = "pos2" }), nil, forget, ""},
		{"NeverWasOurs", with(deployment, deployment.entry, func(c *candidate) { c.Owner = ""; c.Pending = true }), nil, forget, ""},
		{"GoingAlready", with(deployment, deployment.entry, func(c *candidate) { c.Going = true }), nil, remove, ""},
		{"LabelTakenAway", with(deployment, deployment.entry, func(c *candidate) { c.Owner = "" }), nil, orphan, "somebody else's"},
		{"Adopted", with(deployment, deployment.entry, func(c *candidate) { c.Annotations = map[string]string{AnnotationAdopted: "true"} }), nil, orphan, "before"},
		{"MarkedKeep", with(deployment, deployment.entry, func(c *candidate) { c.Annotations = map[string]string{AnnotationPrune: "keep"} }), nil, orphan, "kept"},
		{"HelmKeep", with(deployment, deployment.entry, func(c *candidate) { c.Annotations = map[string]string{"helm.sh/resource-policy": "keep"} }), nil, orphan, "kept"},
		{"WholeAppWithClaims", deployment, []string{"PersistentVolumeClaim shop/db"}, orphan, "shop/db"},
		{"Claim", with(deployment, ref("v1", "PersistentVolumeClaim"), nil), nil, orphan, "data"},
		{"Volume", with(deployment, ref("v1", "PersistentVolume"), nil), nil, orphan, "data"},
		{"Definition", with(deployment, ref("apiextensions.k8s.io/v1", "CustomResourceDefinition"), nil), nil, orphan, "definitions stay"},
		{"JobThatRan", with(deployment, ref("batch/v1", "Job"), func(c *candidate) { c.Ran = true }), nil, orphan, "has run"},
		{"JobThatDidNot", with(deployment, ref("batch/v1", "Job"), nil), nil, remove, ""},
		{"StatefulSet", with(deployment, ref("apps/v1", "StatefulSet"), nil), nil, remove, ""},
		{"StatefulSetThatTakesItsClaims", with(deployment, ref("apps/v1", "StatefulSet"), func(c *candidate) { c.DeletesClaim = true }), nil, orphan, "claims"},
		{"Namespace", with(deployment, ref("v1", "Namespace"), nil), nil, remove, ""},
		{"NamespaceWithClaims", with(deployment, ref("v1", "Namespace"), func(c *candidate) { c.Claims = []string{"db"} }), nil, orphan, "db"},
		{"NamespaceWithOthers", with(deployment, ref("v1", "Namespace"), func(c *candidate) { c.Foreign = []string{"a", "b", "c", "d", "e", "f", "g"} }), nil, orphan, "and 2 more"},
		{"NamespaceNotSeenWhole", with(deployment, ref("v1", "Namespace"), func(c *candidate) { c.Unknown = "no answer" }), nil, orphan, "no answer"},
		{"NamespaceOfKubernetes", with(deployment, entry{Ref: Ref{"v1", "Namespace", "", "kube-system"}}, nil), nil, orphan, "own"},
		{"CustomResource", with(deployment, ref("shop.example/v1", "Till"), nil), nil, remove, ""},
		{"CustomResourceWithClaims", with(deployment, ref("shop.example/v1", "Till"), func(c *candidate) { c.Claims = []string{"db"} }), nil, orphan, "db"},
		{"SomebodyElsesPersistentVolumeClaim", with(deployment, ref("shop.example/v1", "PersistentVolumeClaim"), nil), nil, remove, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, why := decide(tt.c, "pos", tt.claims)
			if got != tt.want || !strings.Contains(why, tt.says) || (got == orphan) != (why != "") {
				t.Errorf("got %d %q, want %d %q", got, why, tt.want, tt.says)
			}
		})
	}
}

func TestForeign(t *testing.T) {
	tests := []struct {
		c    content
		want bool
	}{
		{content{Ref: Ref{"v1", "ConfigMap", "shop", "theirs"}}, true},
		{content{Ref: Ref{"v1", "Pod", "shop", "theirs"}}, true},
		{content{Ref: Ref{"v1", "Pod", "shop", "of a ReplicaSet"}, Owned: true}, false},
		{content{Ref: Ref{"v1", "Pod", "shop", "ending"}, Going: true}, false},
		{content{Ref: Ref{"v1", "ConfigMap", "shop", "kube-root-ca.crt"}}, false},
		{content{Ref: Ref{"v1", "ServiceAccount", "shop", "default"}}, false},
		{content{Ref: Ref{"v1", "ServiceAccount", "shop", "theirs"}}, true},
		{content{Ref: Ref{"v1", "Event", "shop", "e"}}, false},
		{content{Ref: Ref{"events.k8s.io/v1", "Event", "shop", "e"}}, false},
		{content{Ref: Ref{"v1", "Endpoints", "shop", "s"}}, false},
	}
	for _, tt := range tests {
		if got := isForeign(tt.c); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.c.Ref, got, tt.want)
		}
	}
}

func TestClaimsOfStatefulSets(t *testing.T) {
	for name, want := range map[string]bool{"data-db-0": true, "data-db-12": true, "data-db-": false, "data-db-x": false, "data-db2-0": false, "log-db-0": false, "xdata-db-0": false} {
		if got := isClaimOf(name, "db", []string{"data"}); got != want {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
}

func TestCircles(t *testing.T) {
	app := func(name string, needs ...string) App { return App{Name: name, Needs: needs} }
	if got := circle([]App{app("a", "b", "c"), app("b", "c"), app("c"), app("d", "gone")}); got != "" {
		t.Errorf("no circle, but found %q", got)
	}
	if got := circle([]App{app("x"), app("a", "b"), app("b", "c"), app("c", "a")}); got == "" {
		t.Error("circle not found")
	}
	if got := circle([]App{app("a", "a")}); got != "a" {
		t.Errorf("an app that needs itself: %q", got)
	}
}

func TestPlansThatAreNone(t *testing.T) {
	e := &Engine{}
	o := Object{"v1", "ConfigMap", "shop", "c", []byte(`{}`)}
	for name, p := range map[string]Plan{
		"ErrTwice":          {Apps: []App{{Name: "a"}, {Name: "a"}}},
		"ErrNoName":         {Apps: []App{{}}},
		"ErrObjectTwice":    {Apps: []App{{Name: "a", Objects: []Object{o}}, {Name: "b", Objects: []Object{o}}}},
		"ErrNotJSON":        {Apps: []App{{Name: "a", Objects: []Object{{"v1", "ConfigMap", "", "c", []byte("{")}}}}},
		"ErrBringAndDelete": {Apps: []App{{Name: "a", Objects: []Object{o}}, {Name: "b", Delete: []Ref{o.Ref()}}}},
		"ErrCircle":         {Apps: []App{{Name: "a", Needs: []string{"b"}}, {Name: "b", Needs: []string{"a"}}}},
	} {
		w := &work{Engine: e, plan: p, wanted: map[identity]string{}, digest: map[identity]string{}, done: map[string]chan struct{}{}, result: map[string]*AppResult{}}
		if err := w.check(); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

func TestDigestIsOfTheMeaning(t *testing.T) {
	a, err := Object{JSON: []byte(`{"a":1,"b":[2, 3]}`)}.digest()
	if err != nil {
		t.Fatal(err)
	}
	b, _ := Object{JSON: []byte("{ \"b\":[2,3],\n\"a\":1}")}.digest()
	c, _ := Object{JSON: []byte(`{"a":1,"b":[3,2]}`)}.digest()
	if a != b || a == c {
		t.Errorf("%s %s %s", a, b, c)
	}
}

func FuzzBooks(f *testing.F) {
	inv := inventory{App: "pos", Release: 7, Objects: []entry{{Ref: Ref{"v1", "Secret", "b", "c"}}, {Ref: Ref{"apps/v1", "Deployment", "a", "d"}, Pending: true}}}
	f.Add(inv.encode())
	f.Fuzz(func(t *testing.T, s string) {
		if o, err := decodeOnce(s); err == nil {
			if again, err := decodeOnce(o.encode()); err != nil || again.encode() != o.encode() {
				t.Errorf("%q does not come back: %v", s, err)
			}
		}
		inv, err := decodeInventory(s)
		if err != nil {
			return
		}
		again, err := decodeInventory(inv.encode())
		if err != nil || again.encode() != inv.encode() {
			t.Errorf("%q does not come back: %v", s, err)
		}
	})
}
