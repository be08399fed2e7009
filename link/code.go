package link

import (
	"strings"

	"github.com/holdfast-edge/holdfast/fleet"
)

// codeLength in base32 characters: 80 bits, too many for a hub to grind a key
// that shows the same code.
const codeLength = 16

// Code is what a person copies from a machine's console or label to adopt it:
// the first 80 bits of its ID in groups of four.
func Code(id fleet.MachineID) string {
	s := strings.ToUpper(string(id))
	if len(s) > codeLength {
		s = s[:codeLength]
	}
	var groups []string
	for ; len(s) > 4; s = s[4:] {
		groups = append(groups, s[:4])
	}
	return strings.Join(append(groups, s), "-")
}

// MatchCode tells whether a person typed the code of id, or more of the ID than
// the code. Case, dashes and spaces mean nothing; a nought is read as the letter
// O and an eight as B, since base32 has neither. Fewer than 80 bits never match.
func MatchCode(id fleet.MachineID, typed string) bool {
	typed = plainCode(typed)
	return len(typed) >= codeLength && strings.HasPrefix(string(id), typed)
}

func plainCode(typed string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '-' || r == '\u2010' || r == '\u2011' || r == '\u2013' || r == ' ' || r == '\t' || r == '\n' || r == '\r' || r == '\u00a0':
			return -1
		case r >= 'A' && r <= 'Z':
			return r + 'a' - 'A'
		case r == '0':
			return 'o'
		case r == '8':
			return 'b'
		}
		return r
	}, typed)
}
