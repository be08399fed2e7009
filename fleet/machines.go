package fleet

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// ParseMachines reads a machines.yaml; file is the name that faults carry.
func ParseMachines(file string, data []byte) (*MachinesSpec, error) {
	m, _, faults := parseMachines(file, data)
	if faults, _ = faults.split(); len(faults) > 0 {
		return nil, faults
	}
	return m, nil
}

// parseMachines gives the spec's node, too; it is nil when there is none. What
// one file can show is checked here.
func parseMachines(file string, data []byte) (*MachinesSpec, *node, Faults) {
	n, faults := parse(&source{file: file, layer: "machines"}, data)
	d := decoder{}
	m := &MachinesSpec{}
	_, spec := d.header(n, "Machines", "")
	if spec != nil {
		d.decode(m, spec, "spec")
	}
	faults = append(faults, d.faults...)
	if spec == nil || spec.kind != mapping {
		return m, nil, faults
	}
	names, ids, addresses := once{}, once{}, once{}
	for i, x := range m.Members {
		n, at := item(spec, "members", i)
		names.see(&faults, x.Name, n.get("name"), at+".name", "is the name of two machines")
		ids.see(&faults, string(x.ID), n.get("id"), at+".id", "is the id of two machines")
		if x.SiteAddress.IsValid() {
			addresses.see(&faults, x.SiteAddress.String(), n.get("siteAddress"), at+".siteAddress", "is the address of two machines")
		}
	}
	gone := once{}
	for i, x := range m.Tombstones {
		n, at := item(spec, "tombstones", i)
		gone.see(&faults, string(x.ID), n.get("id"), at+".id", "has two tombstones")
		if member := ids[string(x.ID)]; member != nil && x.ID != "" {
			faults.at(n.get("id"), at+".id", fmt.Sprintf("is a member, too (line %d)", member.line), "a machine that left is no member, and comes back only with a new identity key")
		}
	}
	return m, spec, faults
}

// CheckRemovals tells which machines left old without a tombstone in the new
// tree: a machine leaves its site by a tombstone, and a tombstone stays. The
// sites are matched by uid, so that moving a folder is no removal.
func CheckRemovals(old, new *Fleet) Faults {
	var faults Faults
	now := map[string]*Site{}
	for _, s := range new.sites {
		now[s.UID] = s
	}
	for _, was := range old.sites {
		s := now[was.UID]
		if s == nil {
			if len(was.Machines) > 0 {
				faults.file(was.Dir, fmt.Sprintf("the site with %d machines is gone", len(was.Machines)), "tombstones for its machines first")
			}
			continue
		}
		known := map[MachineID]bool{}
		for _, m := range s.Machines {
			known[m.ID] = true
		}
		buried := map[MachineID]bool{}
		for _, t := range s.Tombstones {
			buried[t.ID] = true
		}
		for _, m := range was.Machines {
			if !known[m.ID] && !buried[m.ID] {
				faults.file(s.Dir+"/machines.yaml", fmt.Sprintf("machine %s (%s) is gone without a tombstone", m.Name, m.ID), "an entry under tombstones with verb: retire or stolen")
			}
		}
		for _, t := range was.Tombstones {
			if !buried[t.ID] {
				faults.file(s.Dir+"/machines.yaml", fmt.Sprintf("the tombstone of %s is gone", t.ID), "put it back: tombstones stay")
			}
		}
	}
	return faults.sorted()
}

// firstMachine is where the addresses of machines begin: those below are for the
// API and what else a site may need.
const firstMachine = 11

// NextAddress is the lowest address of siteRange from .11 on that no machine of
// the site has.
func NextAddress(siteRange netip.Prefix, members []Machine) (netip.Addr, error) {
	taken := map[netip.Addr]bool{}
	for _, m := range members {
		taken[m.SiteAddress] = true
	}
	a := siteRange.Masked().Addr()
	for range firstMachine {
		a = a.Next()
	}
	for ; usable(siteRange, a); a = a.Next() {
		if !taken[a] {
			return a, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("find an address for a machine: all of %s from its %dth on are taken", siteRange, firstMachine)
}

// defaultSiteRange is the built-in one, for sites that say nothing.
var defaultSiteRange = netip.MustParsePrefix("10.213.0.0/24")

// AddMember writes a machine into a machines.yaml and leaves all else in it as
// it is, comments and order included; empty data makes a new document. A machine
// without a site address gets the next free one of 10.213.0.0/24 (see AddMemberIn).
func AddMember(data []byte, m Machine) ([]byte, error) { return AddMemberIn(data, m, defaultSiteRange) }

// AddMemberIn is AddMember for a site whose addresses come from siteRange.
func AddMemberIn(data []byte, m Machine, siteRange netip.Prefix) ([]byte, error) {
	old, err := readMachines(data)
	if err != nil {
		return nil, fmt.Errorf("add machine %s: %w", m.Name, err)
	}
	if !m.SiteAddress.IsValid() {
		if m.SiteAddress, err = NextAddress(siteRange, old.Members); err != nil {
			return nil, fmt.Errorf("add machine %s: %w", m.Name, err)
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "- name: %s\n  id: %s\n  role: %s\n  siteAddress: %s\n", plainOrQuoted(m.Name), m.ID, m.Role, m.SiteAddress)
	for _, f := range [][2]string{{"recipient", m.Recipient}, {"protection", m.Protection}} {
		if f[1] != "" {
			fmt.Fprintf(&b, "  %s: %s\n", f[0], plainOrQuoted(f[1]))
		}
	}
	if m.Unverified {
		b.WriteString("  unverified: true\n")
	}
	if m.Introduction != "" {
		fmt.Fprintf(&b, "  introduction: %s\n", plainOrQuoted(m.Introduction))
	}
	out, err := addItem(data, "members", b.String())
	if err == nil {
		err = onlyChanged(out, append(slices.Clone(old.Members), m), old.Tombstones)
	}
	if err != nil {
		return nil, fmt.Errorf("add machine %s: %w", m.Name, err)
	}
	return out, nil
}

// AddTombstone moves a machine from the members of a machines.yaml to its
// tombstones, and leaves all else in it as it is.
func AddTombstone(data []byte, t Tombstone) ([]byte, error) {
	old, err := readMachines(data)
	if err != nil {
		return nil, fmt.Errorf("bury machine %s: %w", t.ID, err)
	}
	data, err = removeMember(data, t.ID)
	if err != nil {
		return nil, fmt.Errorf("bury machine %s: %w", t.ID, err)
	}
	item := fmt.Sprintf("- id: %s\n  verb: %s\n", t.ID, t.Verb)
	if t.Since != "" {
		item += fmt.Sprintf("  since: %s\n", plainOrQuoted(t.Since))
	}
	out, err := addItem(data, "tombstones", item)
	if err == nil {
		left := slices.DeleteFunc(slices.Clone(old.Members), func(m Machine) bool { return m.ID == t.ID })
		err = onlyChanged(out, left, append(slices.Clone(old.Tombstones), t))
	}
	if err != nil {
		return nil, fmt.Errorf("bury machine %s: %w", t.ID, err)
	}
	return out, nil
}

// onlyChanged reads an edited file again and refuses it when more changed than
// was meant: text was edited, and a layout that nobody thought of is an error.
func onlyChanged(out []byte, members []Machine, tombstones []Tombstone) error {
	m, err := ParseMachines("machines.yaml", out)
	if err != nil {
		return err
	}
	if !slices.Equal(m.Members, members) || !slices.Equal(m.Tombstones, tombstones) {
		return errors.New("the file is laid out in a way that holdfast cannot edit: write one field in each line")
	}
	return nil
}

func readMachines(data []byte) (*MachinesSpec, error) {
	if len(bytes.TrimSpace(data)) == 0 {
		return &MachinesSpec{}, nil
	}
	return ParseMachines("machines.yaml", data)
}

const emptyMachines = "# Written by holdfast; the machines of this site.\napiVersion: " + APIVersion + "\nkind: Machines\nspec:\n"

// addItem puts the lines of a list item at the end of a list below spec. It
// edits text and not a tree, since people's lines are to stay as they are; what
// comes out is read again, so that an odd layout is an error and never a loss.
func addItem(data []byte, name, item string) ([]byte, error) {
	if len(bytes.TrimSpace(data)) == 0 {
		data = []byte(emptyMachines)
	}
	eol, body := lineEnds(data)
	n, faults := parse(&source{file: "machines.yaml"}, []byte(body))
	if len(faults) > 0 {
		return nil, faults
	}
	lines := strings.SplitAfter(body, "\n")
	if last := len(lines) - 1; lines[last] == "" {
		lines = lines[:last]
	} else {
		lines[last] += "\n"
	}
	spec := n.get("spec")
	key := keyOf(spec, name)
	switch {
	case spec == nil || spec.kind == null || spec.kind == mapping && key == nil && len(spec.keys) > 0 && spec.line > keyOf(n, "spec").line || spec != nil && spec.kind == mapping && len(spec.keys) == 0:
		lines = addList(lines, n, spec, name, item)
	case key == nil:
		return nil, errors.New("spec is written in one line: spread it over several")
	default:
		l := spec.get(name)
		col := int(key.col) - 1
		switch {
		case l.kind == list && len(l.items) > 0 && l.line > key.line:
			col = int(l.col) - 1 // the dash
			lines = insert(lines, lastLine(l.items[len(l.items)-1]), indent(item, col))
		case l.kind == null || l.kind == list && len(l.items) == 0:
			lines[key.line-1] = lines[key.line-1][:int(key.col)-1] + name + ":" + comment(lines[key.line-1]) + "\n"
			lines = insert(lines, int(key.line), indent(item, col+2))
		default:
			return nil, fmt.Errorf("spec.%s is written in one line: write one item under the other", name)
		}
	}
	return whole(data, strings.Join(lines, ""), eol), nil
}

// whole is an edited body with the line ends and the byte-order mark of the file it was.
func whole(was []byte, body, eol string) []byte {
	body = strings.ReplaceAll(body, "\n", eol)
	if bytes.HasPrefix(was, []byte("\xef\xbb\xbf")) {
		body = "\xef\xbb\xbf" + body
	}
	return []byte(body)
}

// lineEnds is the body without carriage returns and byte-order mark, and how its lines end.
func lineEnds(data []byte) (eol, body string) {
	body = strings.TrimPrefix(string(data), "\xef\xbb\xbf")
	if strings.Contains(body, "\r\n") {
		return "\r\n", strings.ReplaceAll(body, "\r\n", "\n")
	}
	return "\n", body
}

// addList adds a list with one item to a spec that has no such list.
func addList(lines []string, doc, spec *node, name, item string) []string {
	col, at := 2, len(lines)
	if spec != nil && spec.kind == mapping && len(spec.keys) > 0 {
		col = int(spec.keys[0].col) - 1
		at = lastLine(spec)
	} else if k := keyOf(doc, "spec"); k != nil {
		lines[k.line-1] = "spec:" + comment(lines[k.line-1]) + "\n"
		at = int(k.line)
	} else {
		lines = append(lines, "spec:\n")
		at = len(lines)
	}
	return insert(lines, at, indent(name+":\n"+indent(item, 2), col))
}

func removeMember(data []byte, id MachineID) ([]byte, error) {
	eol, body := lineEnds(data)
	n, faults := parse(&source{file: "machines.yaml"}, []byte(body))
	if len(faults) > 0 {
		return nil, faults
	}
	members := n.path("spec", "members")
	for _, m := range elements(members) {
		if m.get("id").str() != string(id) {
			continue
		}
		if keyOf(n.get("spec"), "members").line == m.line {
			return nil, errors.New("spec.members is written in one line: write one item under the other")
		}
		lines := strings.SplitAfter(body, "\n")
		lines = append(lines[:m.line-1:m.line-1], lines[lastLine(m):]...)
		if len(members.items) == 1 {
			k := keyOf(n.get("spec"), "members")
			lines[k.line-1] = lines[k.line-1][:k.col-1] + "members: []" + comment(lines[k.line-1]) + "\n"
		}
		return whole(data, strings.Join(lines, ""), eol), nil
	}
	return data, nil
}

func keyOf(n *node, name string) *node {
	if n == nil {
		return nil
	}
	if i := indexOf(n.keys, name); i >= 0 {
		return n.keys[i]
	}
	return nil
}

// comment is the comment at the end of a line, with the space before it.
func comment(line string) string {
	if i := strings.Index(line, " #"); i >= 0 {
		return strings.TrimRight(line[i:], "\n")
	}
	return ""
}

// lastLine is the last line on which a value stands.
func lastLine(n *node) int {
	last := int(n.line)
	for _, x := range n.keys {
		last = max(last, lastLine(x))
	}
	for _, x := range n.items {
		last = max(last, lastLine(x))
	}
	return last
}

func insert(lines []string, at int, text string) []string {
	return append(append(append([]string(nil), lines[:at]...), text), lines[at:]...)
}

func indent(text string, by int) string {
	pad := strings.Repeat(" ", by)
	return pad + strings.TrimSuffix(strings.ReplaceAll(text, "\n", "\n"+pad), pad)
}
