package apps

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestOrderOfKinds(t *testing.T) {
	refs := []Ref{
		{"admissionregistration.k8s.io/v1", "ValidatingWebhookConfiguration", "", "w"},
		{"shop.example/v1", "Till", "shop", "t"},
		{"apps/v1", "Deployment", "shop", "b"},
		{"apps/v1", "Deployment", "shop", "a"},
		{"v1", "Service", "shop", "s"},
		{"serving.example/v1", "Service", "shop", "not Kubernetes' own"},
		{"v1", "ConfigMap", "shop", "c"},
		{"rbac.authorization.k8s.io/v1", "RoleBinding", "shop", "r"},
		{"rbac.authorization.k8s.io/v1", "Role", "shop", "r"},
		{"v1", "Namespace", "", "shop"},
		{"apiextensions.k8s.io/v1", "CustomResourceDefinition", "", "tills.shop.example"},
	}
	var got [][]string
	for _, stage := range inStages(refs, func(r Ref) Ref { return r }) {
		var names []string
		for _, r := range stage {
			names = append(names, r.String())
		}
		got = append(got, names)
	}
	want := [][]string{
		{"CustomResourceDefinition tills.shop.example"}, {"Namespace shop"}, {"Role shop/r"}, {"RoleBinding shop/r"}, {"ConfigMap shop/c"}, {"Service shop/s"},
		{"Deployment shop/b", "Deployment shop/a"}, {"Till shop/t", "Service shop/not Kubernetes' own"}, {"ValidatingWebhookConfiguration w"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestEveryWatchedKindHasAStage(t *testing.T) {
	named := map[string]bool{}
	for _, kinds := range stages {
		for _, k := range kinds {
			if named[k] {
				t.Errorf("%s stands twice", k)
			}
			named[k] = true
		}
	}
	for k := range inert {
		if !named[k] {
			t.Errorf("%s is inert but has no stage", k)
		}
	}
}
