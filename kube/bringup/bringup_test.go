//go:build system && linux

package bringup_test

import (
	"bufio"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-edge/holdfast/internal/netns"
	"github.com/holdfast-edge/holdfast/internal/spawn"
	"github.com/holdfast-edge/holdfast/kube"
)

const crd = `apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: tills.shop.example.com}
spec:
  group: shop.example.com
  names: {kind: Till, plural: tills, singular: till}
  scope: Namespaced
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
              drawer: {type: string, description: the drawer that opens}
`

// TestBringUp is one machine's life: nothing, an app that answers, everything that
// an API server should do, a crash, a stop.
func TestBringUp(t *testing.T) {
	m := newMachine(t, func(o *kube.Options) { o.Split = os.Getenv("SPLIT") != "" })
	defer func() {
		if t.Failed() {
			for _, name := range sortedKeys(m.children) {
				m.tail(t, name)
			}
		}
	}()
	m.start(t)
	// The service account of a namespace made in the same breath takes a moment.
	eventually(t, time.Minute, "app is applied", func() error {
		out, err := m.kubectl(app, "apply", "-f", "-", "--server-side")
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	eventually(t, time.Minute, "app answers through its Service", func() error {
		_, err := get("http://10.215.0.83/")
		return err
	})
	t.Logf("%6.2f s  app answers through its Service", time.Since(m.began).Seconds())
	if d, err := time.ParseDuration(os.Getenv("HOLDFAST_MEASURE")); err == nil {
		measure(t, m, d)
	}
	before := documents(t, m)
	t.Run("names", func(t *testing.T) { names(t) })
	t.Run("doors", func(t *testing.T) { doors(t, m) })
	t.Run("settled", func(t *testing.T) { settled(t, m, before) })
	t.Run("api", func(t *testing.T) { api(t, m) })
	t.Run("crash", func(t *testing.T) { crash(t, m) })
	t.Run("stop", func(t *testing.T) {
		for _, name := range []string{"coredns", "node", "controllers", "control-plane", "containerd"} {
			if m.children[name] != nil {
				m.stop(t, name)
			}
		}
	})
}

func livePids(m *machine) map[string]int {
	pids := map[string]int{}
	for name, c := range m.children {
		pids[name] = c.Process.Pid
	}
	return pids
}

func names(t *testing.T) {
	for name, want := range map[string]string{
		"web":                           "[10.215.0.83]",
		"web.default.svc.cluster.local": "[10.215.0.83]",
		"kubernetes.default":            "[10.215.0.1]",
		"kube-dns.kube-system.svc":      "[10.215.0.10]",
	} {
		eventually(t, 20*time.Second, "resolve "+name, func() error {
			got, err := get("http://10.215.0.83/resolve?name=" + name)
			if err == nil && got != want {
				err = fmt.Errorf("got %s, want %s", got, want)
			}
			return err
		})
	}
	// The upstream is a box without a name server: the answer is no, and soon.
	began := time.Now()
	if got, err := get("http://10.215.0.83/resolve?name=example.com."); err == nil {
		t.Errorf("example.com resolved to %s without an upstream", got)
	}
	if took := time.Since(began); took > 2500*time.Millisecond {
		t.Errorf("a name that nobody can resolve took %v to fail", took)
	}
}

// doors shows what a box on the LAN reaches of a machine.
func doors(t *testing.T, m *machine) {
	pod := strings.TrimSpace(m.mustKubectl(t, "", "get", "pods", "-l", "app=web", "-o", "jsonpath={.items[0].status.podIP}"))
	dial := func(address string) error {
		return netns.Do(m.stranger, func() error {
			c, err := net.DialTimeout("tcp", address, 700*time.Millisecond)
			if err == nil {
				c.Close()
			}
			return err
		})
	}
	m.mustKubectl(t, "", "wait", "-n", "door", "--for=condition=Ready", "pod/door")
	for what, address := range map[string]string{"a NodePort": "172.30.0.2:30080", "a hostPort": "172.30.0.2:8088"} {
		if err := dial(address); err != nil {
			t.Errorf("%s (%s) is not reached from the LAN: %v", what, address, err)
		}
	}
	for what, address := range map[string]string{
		"a pod": pod + ":8080", "a Service": "10.215.0.83:80", "the API at its site address": "10.213.0.11:6443",
		"the API's balancer": "10.213.0.1:6443", "etcd": "10.213.0.11:2380", "kubelet": "10.213.0.11:10250", "DNS": "10.213.0.11:53",
		"the API by the LAN address": "172.30.0.2:6443", "kubelet by the LAN address": "172.30.0.2:10250",
	} {
		if err := dial(address); err == nil {
			t.Errorf("%s (%s) is reached from the LAN", what, address)
		}
	}
	// A pod reaches the API behind its Service: it is asked who it is.
	if _, err := get("http://10.215.0.83/get?url=https://kubernetes.default"); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("kubernetes.default from a pod: %v, want a server whose certificate the pod does not know", err)
	}
}

// documents are the OpenAPI documents in each form that they are served in.
func documents(t *testing.T, m *machine) map[string]string {
	t.Helper()
	cert, err := tls.LoadX509KeyPair(m.paths.PKI+"/machined.crt", m.paths.PKI+"/machined.key")
	must(t, err)
	ca, err := os.ReadFile(m.paths.PKI + "/cluster-ca.crt")
	must(t, err)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	c := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: pool}}}
	defer c.CloseIdleConnections()
	list := map[string]string{}
	fetch := func(path, accept string) []byte {
		r, err := http.NewRequest(http.MethodGet, "https://10.213.0.11:6443"+path, nil)
		must(t, err)
		r.Header.Set("Accept", accept)
		resp, err := c.Do(r)
		must(t, err)
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		must(t, err)
		list[path+" as "+accept] = fmt.Sprintf("%d %s %s %x", resp.StatusCode, resp.Header.Get("Content-Type"), resp.Header.Get("Etag"), sha256.Sum256(body))
		return body
	}
	fetch("/openapi/v2", "application/json")
	fetch("/openapi/v2", "application/com.github.proto-openapi.spec.v2@v1.0+protobuf")
	var index struct {
		Paths map[string]struct{ ServerRelativeURL string }
	}
	must(t, json.Unmarshal(fetch("/openapi/v3", "application/json"), &index))
	if len(index.Paths) < 30 {
		t.Errorf("only %d OpenAPI v3 documents", len(index.Paths))
	}
	for name, p := range index.Paths {
		fetch(p.ServerRelativeURL, "application/json")
		fetch("/openapi/v3/"+name, "application/com.github.proto-openapi.spec.v3@v1.0+protobuf")
		fetch("/openapi/v3/"+name, "text/html")
	}
	return list
}

// settled waits for the moment when a control plane packs what it rarely needs,
// and asks for it again.
func settled(t *testing.T, m *machine, before map[string]string) {
	eventually(t, 2*time.Minute, "control plane settles", func() error {
		log, err := os.ReadFile(m.dir + "/log/control-plane.log")
		if err == nil && !strings.Contains(string(log), "kube: settled") {
			err = fmt.Errorf("not yet")
		}
		return err
	})
	if log, _ := os.ReadFile(m.dir + "/log/control-plane.log"); strings.Contains(string(log), "stay unpacked") {
		m.tail(t, "control-plane")
		t.Error("OpenAPI documents were not packed")
	}
	if diff := cmp.Diff(before, documents(t, m)); diff != "" {
		t.Errorf("OpenAPI documents are served differently once packed (-before +after):\n%s", diff)
	}
}

// api is what kubectl, helm and operators need of an API server.
func api(t *testing.T, m *machine) {
	out := m.mustKubectl(t, "", "explain", "deployment.spec.strategy")
	if !strings.Contains(out, "rollingUpdate") {
		t.Errorf("explain: %s", out)
	}
	m.mustKubectl(t, crd, "apply", "--server-side", "-f", "-")
	m.mustKubectl(t, "", "wait", "--for=condition=Established", "crd/tills.shop.example.com")
	eventually(t, 20*time.Second, "a custom resource is applied", func() error {
		out, err := m.kubectl("apiVersion: shop.example.com/v1\nkind: Till\nmetadata: {name: one, namespace: default}\nspec: {drawer: left}\n", "apply", "-f", "-")
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	if out := m.mustKubectl(t, "", "get", "tills"); !strings.Contains(out, "one") {
		t.Errorf("get tills: %s", out)
	}
	eventually(t, 20*time.Second, "explain a custom resource", func() error {
		out, err := m.kubectl("", "explain", "till.spec.drawer")
		if err == nil && !strings.Contains(out, "the drawer that opens") {
			err = fmt.Errorf("%s", out)
		}
		return err
	})
	if out := m.mustKubectl(t, "", "get", "apiservices", "-o", `jsonpath={range .items[*]}{.status.conditions[?(@.type=="Available")].status}{"\n"}{end}`); strings.Contains(out, "False") {
		t.Errorf("an API service is not available: %s", out)
	}
	for _, path := range []string{"/openapi/v2", "/openapi/v3", "/apis/apiregistration.k8s.io/v1/apiservices"} {
		if out := m.mustKubectl(t, "", "get", "--raw", path); len(out) < 500 {
			t.Errorf("GET %s: %d bytes", path, len(out))
		}
	}
	pod := strings.TrimSpace(m.mustKubectl(t, "", "get", "pods", "-l", "app=web", "-o", "jsonpath={.items[0].metadata.name}"))
	if out := m.mustKubectl(t, "", "get", "--raw", "/api/v1/namespaces/default/services/web:80/proxy/"); !strings.Contains(out, "hello from "+pod) {
		t.Errorf("through the API server's proxy: %s", out)
	}
	m.mustKubectl(t, "", "logs", pod)
	// A privileged pod is refused where nobody said otherwise.
	out, err := m.kubectl("", "run", "bad", "--image=holdfast.dev/web:1", "--privileged")
	if err == nil || !strings.Contains(out, "baseline") {
		t.Errorf("a privileged pod: %v: %s", err, out)
	}
	out, err = m.kubectl("", "--as=op:nobody", "get", "pods")
	if err == nil || !strings.Contains(out, "forbidden") {
		t.Errorf("a stranger lists pods: %v: %s", err, out)
	}
	// Secrets at rest are noise.
	m.mustKubectl(t, "", "create", "secret", "generic", "till", "--from-literal=pin=correct-horse")
	data, err := os.ReadFile(m.paths.Etcd + "/member/snap/db")
	must(t, err)
	if strings.Contains(string(data), "correct-horse") {
		t.Error("a Secret stands in etcd's file as it is")
	}
	// etcd has no client port, and nothing that should be private listens to all.
	for _, l := range listeners(t) {
		switch {
		case strings.HasSuffix(l, ":2379"):
			t.Errorf("etcd listens for clients on %s", l)
		case strings.HasPrefix(l, "0.0.0.0:"), strings.HasPrefix(l, "[::]:"), strings.HasPrefix(l, "*:"):
			t.Errorf("%s is open to every address", l)
		}
	}
}

// listeners are the TCP sockets of the machine's network namespace that accept.
func listeners(t *testing.T) []string {
	t.Helper()
	var list []string
	for _, file := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		f, err := os.Open(file)
		must(t, err)
		defer f.Close()
		s := bufio.NewScanner(f)
		for s.Scan() {
			fields := strings.Fields(s.Text())
			if len(fields) < 4 || fields[3] != "0A" {
				continue
			}
			host, port, _ := strings.Cut(fields[1], ":")
			p, _ := strconv.ParseUint(port, 16, 16)
			switch {
			case strings.Trim(host, "0") == "":
				list = append(list, fmt.Sprintf("*:%d", p))
			case len(host) == 8:
				n, _ := strconv.ParseUint(host, 16, 32)
				list = append(list, fmt.Sprintf("%d.%d.%d.%d:%d", n&255, n>>8&255, n>>16&255, n>>24, p))
			default:
				list = append(list, fmt.Sprintf("%s:%d", host, p))
			}
		}
	}
	t.Logf("listens: %v", list)
	return list
}

// crash kills the control plane hard: the app answers throughout, and what was
// acknowledged is there after.
func crash(t *testing.T, m *machine) {
	m.mustKubectl(t, "", "create", "configmap", "kept", "--from-literal=a=b")
	cmd := m.children["control-plane"]
	must(t, cmd.Process.Signal(syscall.SIGKILL))
	spawn.Wait(cmd)
	if _, err := get("http://10.215.0.83/"); err != nil {
		t.Errorf("with the control plane dead the app does not answer: %v", err)
	}
	began := time.Now()
	for _, c := range m.plan.Commands {
		if c.Name == "control-plane" {
			must(t, os.Remove(c.Ready.File))
			must(t, m.run(c))
			eventually(t, time.Minute, "control plane ready again", func() error {
				if !isReady(c.Ready) {
					return fmt.Errorf("no")
				}
				return nil
			})
		}
	}
	t.Logf("after SIGKILL the API is ready in %.2f s", time.Since(began).Seconds())
	m.mustKubectl(t, "", "get", "configmap", "kept")
	m.mustKubectl(t, "", "scale", "deployment", "web", "--replicas=0")
	eventually(t, time.Minute, "controllers act", func() error {
		out, err := m.kubectl("", "get", "pods", "-l", "app=web", "-o", "name")
		if err == nil && strings.TrimSpace(out) != "" && !strings.Contains(out, "No resources") {
			err = fmt.Errorf("%s", out)
		}
		return err
	})
	t.Logf("after SIGKILL the controllers have acted in %.2f s", time.Since(began).Seconds())
}
