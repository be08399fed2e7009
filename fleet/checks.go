package fleet

import (
	"encoding/base64"
	"net"
	"net/netip"
	"net/url"
	"path"
	"regexp"
	"strconv"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
)

// check is a rule for the text of a field.
type check struct {
	ok      func(string) bool
	problem string // what is wrong where ok says no
	fix     string // what would be right
	pattern string // for the JSON Schema, where a pattern can say it
}

// byPattern makes the check that a pattern says wholly.
func byPattern(pattern, problem, fix string) check {
	re := regexp.MustCompile(pattern)
	return check{re.MatchString, problem, fix, pattern}
}

// maxLabel is the longest DNS label.
const maxLabel = 63

const (
	labelPattern = `^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`
	// versionPattern and className have no "..": what passes them becomes a path.
	versionPattern = `^[A-Za-z0-9]+([._+-][A-Za-z0-9]+)*$`
	classPattern   = `^[a-z0-9]+([._-][a-z0-9]+)*(/[a-z0-9]+([._-][a-z0-9]+)*)*$`
	digestPattern  = `^sha256:[0-9a-f]{64}$`
	domainPattern  = `^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$`
)

// checks are the words that may stand in an is tag.
var checks = map[string]check{
	"label": byPattern(labelPattern, "is no DNS label", "lower-case letters, digits and hyphens, at most 63"),
	"version": byPattern(versionPattern, "is no version",
		"letters and digits, with single . _ + - between them"),
	"className": byPattern(classPattern, "is no name of a class",
		"the path under classes/ without .yaml, such as country/de"),
	"uid":     byPattern(`^[a-z0-9][a-z0-9-]{3,63}$`, "is no uid", "4 to 64 lower-case letters, digits and hyphens that never change"),
	"varName": byPattern(`^[A-Za-z][A-Za-z0-9_]*$`, "is no name of a variable", "a letter, then letters, digits and underscores"),
	"digest":  byPattern(digestPattern, "is no digest", "sha256: and 64 lower-case hex digits"),
	"minor":   byPattern(`^1\.[0-9]+$`, "is no Kubernetes minor", `such as "1.36", in quotes`),
	"clock":   byPattern(`^([01][0-9]|2[0-3]):[0-5][0-9]$`, "is no time of day", `such as "22:00", in quotes`),
	"domain":  byPattern(domainPattern, "is no domain", "such as cluster.local"),
	"image": byPattern(`^(localhost(:[0-9]+)?|[a-z0-9-]+(\.[a-z0-9-]+)+(:[0-9]+)?|[a-z0-9-]+:[0-9]+)(/[a-z0-9]+([._-]+[a-z0-9]+)*)+:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$`,
		"is no full name of an app image", "registry/repository:tag, such as docker.io/library/nginx:1.27"),
	"platform":    byPattern(`^[a-z0-9]+/[a-z0-9]+(/[a-z0-9]+)?$`, "is no platform", "such as linux/amd64"),
	"device":      byPattern(`^/dev/[A-Za-z0-9_][A-Za-z0-9_./-]*$`, "is no device", "a path such as /dev/ttyUSB0"),
	"fleetID":     byPattern(`^[0-9a-f]{32}$`, "is no Fleet-ID", "32 lower-case hex digits, as holdfast init makes them"),
	"machineID":   {isMachineID, "is no machine id", "52 characters of a-z and 2-7, as the machine shows them", `^[a-z2-7]{51}[aq]$`},
	"text":        {isText, "is empty", "at least a word", `\S`},
	"date":        {isDate, "is no date", "such as 2026-11-20", `^[0-9]{4}-[0-9]{2}-[0-9]{2}$`},
	"path":        {isPath, "is no path inside the folder", "a relative path without .. such as patches/till.yaml", `^[^/\\]`},
	"glob":        {isGlob, "is no file name or pattern", "a relative path such as config.yaml or *.conf", `^[^/\\]`},
	"hubURL":      {isHubURL, "is no address of a hub", "https://name or https://name:port, nothing after it", `^https://[^/?#@]+$`},
	"mirror":      {isMirror, "is no address of a mirror", "https://…, s3://… or oci://…", `^(https|s3|oci)://.+`},
	"host":        {isHost, "is no host", "a name or an address", ""},
	"hostPort":    {isHostPort, "is no host with a port", "such as hub.example.com:443", `:[0-9]+$`},
	"proxy":       {isProxy, "is no address of a proxy", "http://name:port, nothing after it", `^http://[^/?#@]+$`},
	"pattern":     byPattern(`^[^\s](.*[^\s])?$`, "is empty, or has a space at an end", "the whole text as the disk tells it, with * for any text"),
	"port":        byPattern(`^(\*|([0-9a-f]{2}:){5}[0-9a-f]{2}|[A-Za-z0-9][A-Za-z0-9_.-]{0,62})$`, "is no network port", "a hardware address such as 52:54:00:12:34:56 in lower case, the name of a driver or a port, or *"),
	"hostAddress": {isHostAddress, "is no address with the length of its network", "such as 192.168.1.10/24", `^[0-9.]+/[0-9]+$`},
	"selector":    {isSelector, "selects no sites", "a folder under sites/ such as de, or a label such as country=de", `^[a-z0-9].*$`},
	"base64":      {isBase64, "is no base64", "standard base64 with padding", `^[A-Za-z0-9+/]*={0,2}$`},
	"recipient":   {isRecipient, "is no age recipient", "a word that begins with age1, as age-keygen prints it (its checksum must hold)", `^age1[a-z0-9]+$`},
	"sshKey": {isSSHKey, "is no key that may sign", "a line as in an OpenSSH .pub file: ssh-ed25519, ecdsa-sha2-nistp256 or their sk- forms; RSA and certificates are refused",
		`^(ssh-ed25519|ecdsa-sha2-nistp256|sk-ssh-ed25519@openssh\.com|sk-ecdsa-sha2-nistp256@openssh\.com) `},
}

func isText(s string) bool { return strings.TrimSpace(s) != "" }

func isMachineID(s string) bool { _, err := ParseMachineID(s); return err == nil }

func isDate(s string) bool { _, err := time.Parse(time.DateOnly, s); return err == nil }

// isPath holds for clean relative paths that stay below where they begin, on any system.
func isPath(s string) bool {
	return s != "" && s != "." && !strings.ContainsAny(s, "\\:\x00") && path.Clean(s) == s && !path.IsAbs(s) && s != ".." && !strings.HasPrefix(s, "../")
}

func isGlob(s string) bool { _, err := path.Match(s, ""); return err == nil && isPath(s) }

func isHubURL(s string) bool {
	u, err := url.Parse(s)
	return err == nil && u.Scheme == "https" && u.Host != "" && isHost(u.Hostname()) && isPort(u.Port()) &&
		u.User == nil && u.Path == "" && u.RawQuery == "" && u.Fragment == "" && s == "https://"+u.Host
}

func isPort(s string) bool {
	if s == "" {
		return true
	}
	n, err := strconv.Atoi(s)
	return err == nil && n > 0 && n < 1<<16
}

func isMirror(s string) bool {
	u, err := url.Parse(s)
	return err == nil && (u.Scheme == "https" || u.Scheme == "s3" || u.Scheme == "oci") && u.Host != "" && u.User == nil && u.Fragment == ""
}

func isHostPort(s string) bool {
	host, port, err := net.SplitHostPort(s)
	return err == nil && isHost(host) && port != "" && isPort(port)
}

func isProxy(s string) bool {
	u, err := url.Parse(s)
	return err == nil && u.Scheme == "http" && isHost(u.Hostname()) && isPort(u.Port()) && s == "http://"+u.Host
}

func isHostAddress(s string) bool {
	p, err := netip.ParsePrefix(s)
	return err == nil && p.Addr().Is4() && p.Bits() >= 8 && (p.Bits() == 32 || p.Bits() == 31 || usable(p.Masked(), p.Addr()))
}

var domainRE = regexp.MustCompile(domainPattern)

func isHost(s string) bool {
	if _, err := netip.ParseAddr(s); err == nil {
		return true
	}
	return len(s) <= 253 && domainRE.MatchString(s)
}

func isSelector(s string) bool {
	if key, value, ok := strings.Cut(s, "="); ok {
		return isText(key) && isText(value)
	}
	return isPath(s) && !strings.HasPrefix(s, "sites/")
}

func isBase64(s string) bool {
	_, err := base64.StdEncoding.Strict().DecodeString(s)
	return err == nil
}

func isSSHKey(s string) bool { _, err := parseKey(s); return err == nil }

// parseKey reads one line of an OpenSSH .pub file, of the kinds that TRUST allows.
func parseKey(line string) (ssh.PublicKey, error) {
	key, _, options, rest, err := ssh.ParseAuthorizedKey([]byte(line))
	if err != nil {
		return nil, err
	}
	if len(options) > 0 || len(rest) > 0 {
		return nil, errKeyLine
	}
	switch key.Type() {
	case ssh.KeyAlgoED25519, ssh.KeyAlgoECDSA256, ssh.KeyAlgoSKED25519, ssh.KeyAlgoSKECDSA256:
		return key, nil
	}
	return nil, errKeyLine
}

// isRecipient checks form and checksum (Bech32, BIP 173) of an age recipient of
// any kind: a slip in a recovery recipient would be found when it is too late.
func isRecipient(s string) bool {
	const charset = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
	at := strings.LastIndexByte(s, '1')
	if !strings.HasPrefix(s, "age") || at < 3 || len(s)-at < 7 || strings.ToLower(s) != s {
		return false
	}
	sum := uint32(1)
	feed := func(v uint32) {
		top := sum >> 25
		sum = sum&0x1ffffff<<5 ^ v
		for i, g := range [...]uint32{0x3b6a57b2, 0x26508e6d, 0x1ea119fa, 0x3d4233dd, 0x2a1462b3} {
			if top>>i&1 == 1 {
				sum ^= g
			}
		}
	}
	for _, c := range []byte(s[:at]) {
		feed(uint32(c) >> 5)
	}
	feed(0)
	for _, c := range []byte(s[:at]) {
		feed(uint32(c) & 31)
	}
	for _, c := range []byte(s[at+1:]) {
		v := strings.IndexByte(charset, c)
		if v < 0 {
			return false
		}
		feed(uint32(v))
	}
	return sum == 1
}
