//go:build site

package site

import (
	"strings"
	"testing"

	"github.com/holdfast-edge/holdfast/lab/labtest"
)

const definition = `apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: grinders.shop.example}
spec:
  group: shop.example
  scope: Namespaced
  names: {kind: Grinder, plural: grinders, singular: grinder}
  versions:
    - name: v1
      served: true
      storage: true
      schema:
        openAPIV3Schema:
          type: object
          properties:
            spec:
              type: object
              properties:
                coarseness: {type: integer, minimum: 1, maximum: 9, description: how coarse the coffee becomes}
`

const grinder = `apiVersion: shop.example/v1
kind: Grinder
metadata: {name: left, namespace: default}
spec: {coarseness: COARSE}
`

const settings = `apiVersion: v1
kind: ConfigMap
metadata: {name: settings, namespace: default}
data: {light: "VALUE"}
`

// testKubernetes is what a cluster that was cut down would lack first.
func (s *shop) testKubernetes(t *testing.T) {
	says := func(got, want string) {
		t.Helper()
		if !strings.Contains(got, want) {
			t.Errorf("%q is not in:\n%.1000s", want, got)
		}
	}
	refuses := func(err error, want string) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want a refusal that says %q", err, want)
		}
	}
	s.Kubectl(t, definition, "apply", "-f", "-")
	s.Kubectl(t, "", "wait", "--for=condition=Established", "crd/grinders.shop.example", "--timeout=30s")
	s.Kubectl(t, strings.Replace(grinder, "COARSE", "5", 1), "apply", "--server-side", "-f", "-")
	_, err := s.TryKubectl(strings.Replace(grinder, "COARSE", "10", 1), "apply", "--server-side", "-f", "-")
	refuses(err, "less than or equal to 9")
	says(s.Kubectl(t, "", "get", "grinders", "left", "-o", "jsonpath={.spec.coarseness}"), "5")
	labtest.Within(t, comeBack, func() error { // its OpenAPI follows a moment later
		_, err := s.TryKubectl("", "explain", "grinder.spec.coarseness")
		return err
	})
	says(s.Kubectl(t, "", "explain", "grinder.spec.coarseness"), "how coarse the coffee becomes")
	s.Kubectl(t, "", "delete", "crd", "grinders.shop.example")
	_, err = s.TryKubectl("", "get", "grinders")
	refuses(err, "grinders")
	says(s.Kubectl(t, "", "explain", "deployment.spec.replicas"), "Number of desired pods")

	s.Kubectl(t, strings.Replace(settings, "VALUE", "on", 1), "apply", "--server-side", "--field-manager", "one", "-f", "-")
	_, err = s.TryKubectl(strings.Replace(settings, "VALUE", "off", 1), "apply", "--server-side", "--field-manager", "two", "-f", "-")
	refuses(err, `conflict with "one"`)
	s.Kubectl(t, strings.Replace(settings, "VALUE", "off", 1), "apply", "--server-side", "--field-manager", "two", "--force-conflicts", "-f", "-")
	says(s.Kubectl(t, "", "get", "configmap", "settings", "-o", "jsonpath={.data.light}"), "off")
	s.Kubectl(t, "", "delete", "configmap", "settings")

	services := s.Kubectl(t, "", "get", "apiservices", "-o", `jsonpath={range .items[*]}{.metadata.name} {.status.conditions[?(@.type=="Available")].status}{"\n"}{end}`)
	says(services, "v1.apps True")
	for line := range strings.Lines(services) {
		if !strings.HasSuffix(strings.TrimSpace(line), " True") {
			t.Errorf("API service %s is not available", strings.TrimSpace(line))
		}
	}
	says(s.Kubectl(t, "", "api-resources"), "deployments")
	says(s.Kubectl(t, "", "get", "--raw", "/openapi/v2"), "io.k8s.api.apps.v1.Deployment")
	says(s.Kubectl(t, "", "get", "--raw", "/openapi/v3/apis/apps/v1"), "io.k8s.api.apps.v1.Deployment")
	says(s.Kubectl(t, "", "get", "nodes", "-o", `jsonpath={.items[*].status.conditions[?(@.type=="Ready")].status}`), "True")
	says(s.Kubectl(t, "", "logs", "-n", "hello", "deployment/hello", "--tail=1")+"ok", "ok")
}
