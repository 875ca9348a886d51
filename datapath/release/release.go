// Package release says which releases of the agent a server takes: its own, and those of
// up to four minor releases before. docs/agent.md has the rule for people.
package release

import (
	"fmt"
	"regexp"
	"strconv"
)

// Code is the error's code in the catalogue of errors.
const Code = "DRV-2105"

// Back is how many minor releases an agent may be behind its server.
const Back = 4

// lastMinor is the last minor release of each major one that has a successor: who begins a
// new major release enters the one before. It is the only way to count across them; agents
// of a major release that is not here are not taken by the next.
var lastMinor = map[int]int{}

// number is a release's. The patch level does not matter: a patch changes nothing that
// agent and server say to each other.
type number struct{ major, minor int }

func (n number) String() string { return fmt.Sprintf("%d.%d", n.major, n.minor) }

// form is a version as the builds print it: 1.2.0, v1.2.0, v1.2.0-5-gabcdef0-dirty (so many
// commits after it), 1.2.0+5.gabcdef0.
var form = regexp.MustCompile(`^v?(\d{1,5})\.(\d{1,5})\.\d{1,9}(?:[-+][0-9A-Za-z.+-]*)?$`)

// parse reads a version; ok is false for a build of no release.
func parse(version string) (n number, ok bool) {
	m := form.FindStringSubmatch(version)
	if m == nil {
		return n, false
	}
	n.major, _ = strconv.Atoi(m[1]) // digits, and few
	n.minor, _ = strconv.Atoi(m[2])
	return n, n != number{} // 0.0 is what builds without a tag call themselves
}

// behind gives by how many minor releases the agent is older; known is false when that
// cannot be counted.
func behind(server, agent number, last map[int]int) (releases int, known bool) {
	for n := agent; ; n = (number{n.major + 1, 0}) {
		if n.major == server.major {
			return releases + server.minor - n.minor, true
		}
		most, finished := last[n.major]
		if !finished || n.minor > most {
			return 0, false
		}
		releases += most - n.minor + 1
	}
}

// Takes says why a server does not take an agent, and what to do; nil: it does. A build of no
// release (from a checkout without tags, or with none of its own) is taken, and takes all:
// there is nothing to compare, and the wire's own version still holds.
func Takes(server, agent string) error { return takes(server, agent, lastMinor) }

func takes(server, agent string, last map[int]int) error {
	s, known := parse(server)
	a, too := parse(agent)
	if !known || !too {
		return nil
	}
	if a.major > s.major || a.major == s.major && a.minor > s.minor {
		return fmt.Errorf("the agent is of release %s, newer than the server's %s: upgrade the servers first, or install the server's agent", a, s)
	}
	if n, counted := behind(s, a, last); !counted || n > Back {
		return fmt.Errorf("the agent is of release %s, more than %d minor releases older than the server's %s: upgrade the agent, with its package or `drover agent install`", a, Back, s)
	}
	return nil
}
