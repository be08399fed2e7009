package dialect

import (
	"slices"
	"strings"
	"testing"
)

func TestOf(t *testing.T) {
	for name, tt := range map[string]struct {
		hold, program, etcd string
		want                Dialect
		fault               string
	}{
		"none":                    {"", "v1.37.2", "3.7", Dialect{Own: "1.37"}, ""},
		"its own":                 {"1.37", "v1.37.2", "3.7", Dialect{Own: "1.37"}, ""},
		"before, with older etcd": {"1.36", "v1.37.2", "3.7", Dialect{Own: "1.37", Emulate: "1.36", Etcd: "3.6"}, ""},
		"before, with same etcd":  {"1.35", "v1.36.3", "3.6", Dialect{Own: "1.36", Emulate: "1.35"}, ""},
		"two before":              {"1.35", "v1.37.2", "3.7", Dialect{}, "one at a time"},
		"after":                   {"1.38", "v1.37.2", "3.7", Dialect{}, "not at 1.38"},
		"unknown":                 {"1.34", "v1.35.0", "3.6", Dialect{}, "does not know which etcd"},
		"unstamped, free":         {"", "v0.0.0-master+$Format:%H$", "3.7", Dialect{Own: "v0.0.0-master+$Format:%H$"}, ""},
		"unstamped":               {"1.36", "v0.0.0-master+$Format:%H$", "3.7", Dialect{}, "built without its version"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Of(tt.hold, tt.program, tt.etcd)
			if tt.fault != "" {
				if err == nil || !strings.Contains(err.Error(), tt.fault) {
					t.Fatalf("error = %v, want one with %q", err, tt.fault)
				}
				return
			}
			if err != nil || got != tt.want {
				t.Errorf("got %+v, %v, want %+v", got, err, tt.want)
			}
		})
	}
}

func TestArguments(t *testing.T) {
	args := []string{"--a", "--b"}
	if got := (Dialect{Own: "1.37"}).Arguments(args); !slices.Equal(got, args) {
		t.Errorf("not held: %q", got)
	}
	if got, want := (Dialect{Own: "1.37", Emulate: "1.36"}).Arguments(args), []string{"--emulated-version=1.36", "--a", "--b"}; !slices.Equal(got, want) {
		t.Errorf("held: %q, want %q", got, want)
	}
}
