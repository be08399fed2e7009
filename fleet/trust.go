package fleet

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/crypto/ssh"
)

var errKeyLine = errors.New("want one ed25519 or ecdsa-p256 key, or an sk- form of one, without options")

// Trust is trust.yaml: who may sign what, and who may open sessions. It is
// judged alone, without the rest of the tree, since machines believe it before
// they believe anything else of a release.
type Trust = TrustSpec

// ParseTrust reads a trust.yaml; file is the name that faults carry.
func ParseTrust(file string, data []byte) (*Trust, error) {
	t, faults := parseTrust(file, data)
	faults, _ = faults.split()
	if len(faults) > 0 {
		return nil, faults
	}
	return t, nil
}

func parseTrust(file string, data []byte) (*Trust, Faults) {
	n, faults := parse(&source{file: file, layer: "trust"}, data)
	d := decoder{}
	t := &Trust{}
	_, spec := d.header(n, "Trust", "")
	if spec != nil {
		d.decode(t, spec, "spec")
	}
	faults = append(faults, d.faults...)
	if spec == nil || spec.kind != mapping {
		return nil, faults
	}
	t.defaults()
	t.validate(spec, &faults)
	return t, faults
}

func (t *Trust) defaults() {
	if t.Threshold == 0 {
		t.Threshold = 1
	}
	for i := range t.Signers {
		if t.Signers[i].Person == "" {
			t.Signers[i].Person = t.Signers[i].Name
		}
	}
	for i := range t.Operators {
		if t.Operators[i].Person == "" {
			t.Operators[i].Person = t.Operators[i].Name
		}
	}
}

// validate finds what no single field shows. spec gives the places; the lists
// in it and in t run in step (an element that did not decode is still there).
func (t *Trust) validate(spec *node, faults *Faults) {
	names, keys, pins := once{}, once{}, once{}
	people := map[string]bool{}
	for i, s := range t.Signers {
		n, at := item(spec, "signers", i)
		names.see(faults, "signer "+s.Name, n.get("name"), at+".name", "is the name of two signers")
		keys.see(faults, "signer "+fingerprint(s.Key), n.get("key"), at+".key", "is the key of two signers")
		checkDates(faults, n, at, s.From != nil && s.Until != nil && !s.From.Before(*s.Until))
		for _, role := range s.Roles {
			if role == "release" {
				people[s.Person] = true
			}
		}
	}
	for i, o := range t.Operators {
		n, at := item(spec, "operators", i)
		names.see(faults, "operator "+o.Name, n.get("name"), at+".name", "is the name of two operators")
		keys.see(faults, "operator "+fingerprint(o.Key), n.get("key"), at+".key", "is the key of two operators")
		checkDates(faults, n, at, o.From != nil && o.Until != nil && !o.From.Before(*o.Until))
	}
	for i, h := range t.Hubs {
		n, at := item(spec, "hubs", i)
		names.see(faults, "hub "+h.Name, n.get("name"), at+".name", "is the name of two hub keys")
		pins.see(faults, h.Pin, n.get("pin"), at+".pin", "is pinned twice")
	}
	switch n := spec.get("signers"); {
	case n == nil:
	case len(people) == 0:
		faults.at(n, "spec.signers", "nobody may sign a release", "a signer with the role release")
	case t.Threshold > len(people):
		where := n
		if x := spec.get("threshold"); x != nil {
			where = x
		}
		faults.at(where, "spec.threshold", fmt.Sprintf("%d people must sign, but only %d may", t.Threshold, len(people)),
			fmt.Sprintf("at most %d, or more signers with the role release", len(people)))
	}
}

func checkDates(faults *Faults, n *node, at string, wrong bool) {
	if wrong {
		faults.at(n.get("until"), at+".until", "is not after from", "a later date")
	}
}

// item is the node of element i of a list below spec, and its name in faults.
func item(spec *node, name string, i int) (*node, string) {
	return spec.get(name).items[i], index("spec."+name, i)
}

// once finds things that should be there once.
type once map[string]*node

func (o once) see(faults *Faults, id string, n *node, at, problem string) {
	if n == nil || n.text == "" || strings.HasSuffix(id, " ") {
		return
	}
	if first, twice := o[id]; twice {
		where := fmt.Sprintf("line %d", first.line)
		if first.src.file != n.src.file {
			where = fmt.Sprintf("%s:%d", first.src.file, first.line)
		}
		faults.at(n, at, fmt.Sprintf("%q %s", shorten(n.text), problem), "the other is in "+where)
		return
	}
	o[id] = n
}

// Fingerprint is the SHA256:… of an OpenSSH public key line, as ssh-keygen -l prints it.
func Fingerprint(sshPublicKeyLine string) (string, error) {
	key, err := parseKey(sshPublicKeyLine)
	if err != nil {
		return "", fmt.Errorf("read public key %q: %w", shorten(sshPublicKeyLine), err)
	}
	return ssh.FingerprintSHA256(key), nil
}

func fingerprint(line string) string {
	s, _ := Fingerprint(line)
	return s
}
