package netns

import (
	"net"
	"os"
	"strings"
	"testing"
)

func TestNewIsEmptyAndElsewhere(t *testing.T) {
	ns, err := New()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	self, err := Of(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	defer self.Close()
	if same, err := Same(ns, self); err != nil || same {
		t.Fatalf("the new namespace is the old one: %v, %v", same, err)
	}
	var names []string
	err = Do(ns, func() error {
		links, err := net.Interfaces()
		for _, l := range links {
			names = append(names, l.Name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		if strings.HasPrefix(n, "eth") || strings.HasPrefix(n, "veth") {
			t.Errorf("the new namespace has %v", names)
		}
	}
}

// TestThreadsComeBack looks at every thread of the process after many visits.
func TestThreadsComeBack(t *testing.T) {
	ns, err := New()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	for range 50 {
		if err := Do(ns, func() error { return nil }); err != nil {
			t.Fatal(err)
		}
	}
	want, _ := os.Readlink("/proc/self/ns/net")
	tasks, _ := os.ReadDir("/proc/self/task")
	for _, task := range tasks {
		if got, err := os.Readlink("/proc/self/task/" + task.Name() + "/ns/net"); err == nil && got != want {
			t.Errorf("thread %s is in %s, want %s", task.Name(), got, want)
		}
	}
}
