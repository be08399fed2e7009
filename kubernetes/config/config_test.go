package config

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
)

const good = `{
  "etcd": {"name": "a", "dataDir": "/d", "peerURL": "https://10.213.0.11:2380", "peerCert": "c", "peerKey": "k",
    "peerCA": "ca", "initialCluster": {"a": "https://10.213.0.11:2380"}, "token": "t"},
  "apiServer": ["--bind-address=10.213.0.11"],
  "probe": {"address": "10.213.0.11:6443", "serverName": "kubernetes", "ca": "ca"},
  "memory": {"gcPercent": 20}
}`

func TestDecode(t *testing.T) {
	c := new(ControlPlane)
	if err := decode([]byte(good), c); err != nil {
		t.Fatal(err)
	}
	if got, want := c.Etcd.Quota(), int64(512<<20); got != want {
		t.Errorf("default quota = %d, want %d", got, want)
	}
}

func TestRefusals(t *testing.T) {
	for name, tt := range map[string]struct{ old, new, want string }{
		"unknown key":         {`"probe"`, `"prob": 1, "probe"`, `unknown field "prob"`},
		"trailing document":   {`"gcPercent": 20}` + "\n}", `"gcPercent": 20}` + "\n} {}", "something stands after"},
		"peer without TLS":    {`"peerURL": "https`, `"peerURL": "http`, "not an https URL"},
		"not in its cluster":  {`{"a": "https`, `{"b": "https`, `member "a" is missing`},
		"own etcd servers":    {`"--bind-address=10.213.0.11"`, `"--etcd-servers=http://x"`, "--etcd-servers is set by this program"},
		"scheduler alone":     {`"memory"`, `"scheduler": ["--x"], "memory"`, "one without the other"},
		"nervous election":    {`"token"`, `"electionMillis": 200, "token"`, "less than five heartbeats"},
		"no API server":       {`["--bind-address=10.213.0.11"]`, `[]`, "apiServer: no arguments"},
		"no name of a member": {`"name": "a"`, `"name": ""`, "etcd.name: missing"},
	} {
		t.Run(name, func(t *testing.T) {
			text := strings.Replace(good, tt.old, tt.new, 1)
			if text == good {
				t.Fatal("the case changes nothing")
			}
			err := decode([]byte(text), new(ControlPlane))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error = %v, want one with %q", err, tt.want)
			}
		})
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(good))
	f.Fuzz(func(t *testing.T, data []byte) {
		first := new(ControlPlane)
		if decode(data, first) != nil {
			return
		}
		text, err := json.Marshal(first)
		if err != nil {
			t.Fatal(err)
		}
		second := new(ControlPlane)
		if err := decode(text, second); err != nil {
			t.Fatalf("what was accepted is refused when written again: %v", err)
		}
		if !reflect.DeepEqual(first, second) {
			t.Errorf("written again it says something else:\n%+v\n%+v", first, second)
		}
	})
}
