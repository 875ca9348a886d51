package vss

import (
	"bytes"
	"fmt"
	"regexp"
	"strings"
)

// What diskshadow prints is in the language of the system, in one of several encodings.
// These tokens are the same in all: identifiers, device names, our own aliases, codes.
var (
	idPattern     = regexp.MustCompile(`\{[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}\}`)
	volumePattern = regexp.MustCompile(`(?i)\\\\\?\\Volume\{[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\}\\`)
	devicePattern = regexp.MustCompile(`\\\\\?\\GLOBALROOT\\Device\\HarddiskVolumeShadowCopy[0-9]{1,9}\b`)
	aliasPattern  = regexp.MustCompile(`(?i)%(drover_[0-9]{1,4}|VSS_SHADOW_SET)%`)
	stateWord     = regexp.MustCompile(`VSS_WS_[A-Z_]+`)
	writerFailure = regexp.MustCompile(`VSS_WS_FAILED_[A-Z_]+|VSS_E_WRITER[A-Z_]+|0x8004(?i:23[0-9a-f]{2})`)
)

// aliasOfSet is diskshadow's own name for the set that was made last.
const aliasOfSet = "%VSS_SHADOW_SET%"

func alias(i int) string { return fmt.Sprintf("drover_%d", i) }

// output is what was found in what diskshadow printed.
type output struct {
	set     string            // its id
	devices map[string]string // by alias, as we gave it
	volumes map[string]string // the same, as diskshadow repeats it
	states  bool              // the writers' states were told
	failed  []string          // writers that failed, and how
}

// parse looks for the tokens, line by line. A shadow copy is described by the lines that
// follow the one with its id and our alias.
func parse(text []byte) (o output) {
	o.devices, o.volumes = map[string]string{}, map[string]string{}
	text = bytes.ReplaceAll(text, []byte{0}, nil) // UTF-16, of which the tokens are ASCII
	current, writer := "", ""
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		id, name := idPattern.FindString(line), strings.ToLower(aliasPattern.FindString(line))
		switch {
		case id != "" && strings.EqualFold(name, aliasOfSet):
			o.set = id
		case id != "" && name != "":
			current = strings.Trim(name, "%")
		}
		if v := volumePattern.FindString(line); v != "" && current != "" && o.volumes[current] == "" {
			o.volumes[current] = v
		}
		if d := devicePattern.FindString(line); d != "" && current != "" && o.devices[current] == "" {
			o.devices[current] = d
		}
		if strings.HasPrefix(line, "*") {
			writer = strings.TrimSpace(strings.TrimPrefix(line, "*"))
		}
		o.states = o.states || stateWord.MatchString(line)
		if writerFailure.MatchString(line) && len(o.failed) < maxFailed {
			o.failed = append(o.failed, shorten(strings.TrimSpace(writer+" "+line)))
		}
	}
	return o
}

// sets gives the ids of the shadow copy sets that a text tells to have been made: also
// when it breaks off in the middle.
func sets(text []byte) (out []string) {
	text = bytes.ReplaceAll(text, []byte{0}, nil)
	for line := range strings.Lines(string(text)) {
		if strings.Contains(strings.ToUpper(line), strings.Trim(aliasOfSet, "%")) {
			out = append(out, idPattern.FindAllString(line, 1)...)
		}
	}
	return out
}

func shorten(s string) string {
	s = strings.ToValidUTF8(s, "?")
	if len(s) > maxReason {
		s = strings.ToValidUTF8(s[:maxReason], "")
	}
	return s
}

// tail is the end of what was printed, for an error.
func tail(text []byte) string {
	text = bytes.TrimSpace(bytes.ReplaceAll(text, []byte{0}, nil))
	if len(text) > maxReason {
		text = text[len(text)-maxReason:]
	}
	return strings.Join(strings.Fields(strings.ToValidUTF8(string(text), "?")), " ")
}
