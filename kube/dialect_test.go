package kube

import (
	"strings"
	"testing"
)

const heldStatus = `{"program":"v1.37.2","speaks":"1.36","held":true,"etcd":"3.7.3","etcdSpeaks":"3.6","clusterVersion":"3.6","storageVersion":"3.6","members":1,"ready":true}` + "\n"

func TestDialect(t *testing.T) {
	lifted := strings.NewReplacer(`"speaks":"1.36","held":true`, `"speaks":"1.37","held":false`, `Speaks":"3.6"`, `Speaks":"3.7"`, `Version":"3.6"`, `Version":"3.7"`).Replace(heldStatus)
	for name, tt := range map[string]struct{ text, held, lifted string }{
		"held":             {heldStatus, "", "still speaks Kubernetes 1.36"},
		"lifted":           {lifted, "speaks Kubernetes 1.37, not 1.36", ""},
		"log has risen":    {strings.Replace(heldStatus, `clusterVersion":"3.6`, `clusterVersion":"3.7`, 1), `log is at "3.7"`, "still speaks"},
		"undecided":        {strings.Replace(heldStatus, `storageVersion":"3.6`, `storageVersion":"`, 1), `database at ""`, "still speaks"},
		"not risen yet":    {strings.Replace(lifted, `storageVersion":"3.7`, `storageVersion":"3.6`, 1), "not 1.36", `database at "3.6"`},
		"not begun":        {strings.ReplaceAll(lifted, `Version":"3.7`, `Version":"3.6`), "not 1.36", "both should be 3.7"},
		"the first of 3":   {strings.Replace(strings.ReplaceAll(lifted, `Version":"3.7`, `Version":"3.6`), `members":1`, `members":3`, 1), "not 1.36", ""},
		"the last of 3":    {strings.Replace(lifted, `members":1`, `members":3`, 1), "not 1.36", ""},
		"undecided, of 3":  {strings.Replace(strings.ReplaceAll(lifted, `Version":"3.7`, `Version":"`), `members":1`, `members":3`, 1), "not 1.36", "not one yet"},
		"API not ready":    {strings.Replace(lifted, `"ready":true`, `"ready":false`, 1), "not 1.36", "not ready"},
		"held, same etcd":  {strings.ReplaceAll(heldStatus, "1.36", "1.35"), "speaks Kubernetes 1.35, not 1.36", "still speaks"},
		"held, no API yet": {strings.Replace(heldStatus, `"ready":true`, `"ready":false`, 1), "", "still speaks"},
	} {
		t.Run(name, func(t *testing.T) {
			d, err := ParseDialect([]byte(tt.text))
			if err != nil {
				t.Fatal(err)
			}
			for what, got := range map[string]struct {
				err  error
				want string
			}{"held": {d.Held("1.36"), tt.held}, "lifted": {d.Lifted(), tt.lifted}} {
				if got.want == "" && got.err != nil || got.want != "" && (got.err == nil || !strings.Contains(got.err.Error(), got.want)) {
					t.Errorf("%s: %v, want %q", what, got.err, got.want)
				}
			}
		})
	}
	for _, bad := range []string{"", "{", "{}", "[]", `{"program":"v1.37.2"}`, strings.Replace(heldStatus, "ready", "reddy", 1)} {
		if d, err := ParseDialect([]byte(bad)); err == nil {
			t.Errorf("%q was read as %+v", bad, d)
		}
	}
}

func FuzzParseDialect(f *testing.F) {
	f.Add([]byte(heldStatus))
	f.Fuzz(func(t *testing.T, data []byte) {
		d, err := ParseDialect(data)
		if err != nil {
			return
		}
		if d.Held(d.Speaks) == nil && d.Hold && d.Lifted() == nil {
			t.Errorf("%+v is held and lifted at once", d)
		}
	})
}

// The hold stands in the files of the control plane and nowhere else.
func TestHold(t *testing.T) {
	for name, split := range map[string]bool{"merged": false, "split": true} {
		t.Run(name, func(t *testing.T) {
			r, o := shop(), options()
			o.Split = split
			free, err := New(r, r.Machines[0], DefaultPaths(), o)
			if err != nil {
				t.Fatal(err)
			}
			o.Hold = "1.36"
			held, err := New(r, r.Machines[0], DefaultPaths(), o)
			if err != nil {
				t.Fatal(err)
			}
			want := map[string]bool{"/run/holdfast/kube/control-plane.json": true, "/run/holdfast/kube/controllers.json": split}
			for i, f := range held.Files {
				if has := strings.Contains(string(f.Content), `"hold": "1.36"`); has != want[f.Path] {
					t.Errorf("%s: holds %v, want %v", f.Path, has, want[f.Path])
				}
				if changed := string(f.Content) != string(free.Files[i].Content); changed != want[f.Path] {
					t.Errorf("%s: changed %v, want %v", f.Path, changed, want[f.Path])
				}
			}
			for i, c := range held.Commands {
				wantRestart := c.Name == "control-plane" || c.Name == "controllers"
				if restarts := c.Revision != free.Commands[i].Revision; restarts != wantRestart {
					t.Errorf("%s: restarts when lifted: %v, want %v", c.Name, restarts, wantRestart)
				}
			}
			if held.DialectFile != "/run/holdfast/control-plane.status" {
				t.Errorf("dialect file %q", held.DialectFile)
			}
		})
	}
}

// What a small machine is spared, and what a large one keeps.
func TestMemory(t *testing.T) {
	for name, tt := range map[string]struct {
		memory, reserved int64
		worker           bool
		kubelet          []string
		env              string
		inflight         string
		startGC, settle  string
	}{
		"unknown":             {kubelet: []string{`"471859200"`, "memory.available: 100Mi"}, inflight: "400", startGC: "100", settle: "60"},
		"2 GiB":               {memory: 2 << 30, kubelet: []string{`"471859200"`, "memory.available: 100Mi"}, inflight: "400", startGC: "100", settle: "60"},
		"1 GiB less firmware": {memory: 970 << 20, kubelet: []string{`"471859200"`}, env: "GOMEMLIMIT=250MiB", inflight: "100", startGC: "100", settle: "10"},
		"640 MiB":             {memory: 640 << 20, kubelet: []string{`"419430400"`, "memory.available: 32Mi"}, env: "GOMEMLIMIT=250MiB", inflight: "100", startGC: "25", settle: "10"},
		"512 MiB":             {memory: 512 << 20, kubelet: []string{`"335544320"`, "memory.available: 32Mi"}, env: "GOMEMLIMIT=250MiB", inflight: "100", startGC: "25", settle: "10"},
		"512 MiB, told":       {memory: 512 << 20, reserved: 100 << 20, kubelet: []string{`"104857600"`, "memory.available: 32Mi"}, env: "GOMEMLIMIT=250MiB", inflight: "100", startGC: "25", settle: "10"},
		"512 MiB, worker":     {memory: 512 << 20, worker: true, kubelet: []string{`"314572800"`, "memory.available: 32Mi"}},
	} {
		t.Run(name, func(t *testing.T) {
			r, o := shop(), options()
			r.Machines = append(r.Machines, machine("shelf", "worker", "10.213.0.21"))
			o.Memory, o.Reserved = tt.memory, tt.reserved
			self := r.Machines[0]
			if tt.worker {
				self = r.Machines[1]
			}
			p, err := New(r, self, DefaultPaths(), o)
			if err != nil {
				t.Fatal(err)
			}
			files := map[string]string{}
			for _, f := range p.Files {
				files[strings.TrimPrefix(f.Path, "/run/holdfast/kube/")] = string(f.Content)
			}
			for _, want := range append(tt.kubelet, "failSwapOn: false", "memorySwap: {swapBehavior: NoSwap}") {
				if !strings.Contains(files["kubelet.yaml"], want) {
					t.Errorf("kubelet.yaml lacks %s:\n%s", want, files["kubelet.yaml"])
				}
			}
			for _, c := range p.Commands {
				if c.Name == "control-plane" && strings.Join(c.Env, " ") != tt.env {
					t.Errorf("environment of the control plane %q, want %q", c.Env, tt.env)
				}
			}
			if tt.worker {
				return
			}
			for _, want := range []string{`"--max-requests-inflight=` + tt.inflight + `"`, `"startGCPercent": ` + tt.startGC, `"settleSeconds": ` + tt.settle, `"gcPercent": 10`} {
				if !strings.Contains(files["control-plane.json"], want) {
					t.Errorf("control-plane.json lacks %s:\n%s", want, files["control-plane.json"])
				}
			}
		})
	}
}
