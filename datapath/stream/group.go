package stream

import (
	"fmt"
	"regexp"
	"time"

	"drover/datapath/changeset"
	"drover/datapath/ident"
)

// Bounds of a consistency group's rounds.
const (
	DefaultReady  = 10 * time.Second
	MaxReady      = 5 * time.Minute
	DefaultFrozen = time.Second
	MaxFrozen     = 30 * time.Second
	MinWithin     = 100 * time.Millisecond
	// MaxMissing bounds the machines that a status names.
	MaxMissing = 8
)

// Group is a consistency group: all machines of one server that are granted with the
// same name get recovery points of one moment.
type Group struct {
	Name string `json:"name"`
	// Ready is how long is waited at most until all machines have sent what has changed,
	// and once more until scripts have run; Frozen until all are frozen. 0: the defaults.
	Ready  time.Duration `json:"ready,omitempty"`
	Frozen time.Duration `json:"frozen,omitempty"`
}

var groupName = regexp.MustCompile(fmt.Sprintf(`^[a-z0-9][a-z0-9-]{0,%d}$`, changeset.MaxGroupName-1))

// Validate checks name and bounds.
func (g Group) Validate() error {
	for _, w := range []struct {
		what      string
		have, max time.Duration
	}{{"ready", g.Ready, MaxReady}, {"frozen", g.Frozen, MaxFrozen}} {
		if w.have != 0 && (w.have < MinWithin || w.have > w.max) {
			return fmt.Errorf("consistency group %.64q: %s within %s: want %s to %s, or 0 for the default", g.Name, w.what, w.have, MinWithin, w.max)
		}
	}
	if !groupName.MatchString(g.Name) {
		return fmt.Errorf("consistency group %.64q: want 1 to %d of a-z, 0-9 and -, not beginning with -", g.Name, changeset.MaxGroupName)
	}
	return nil
}

// ReadyWithin is Ready or its default.
func (g Group) ReadyWithin() time.Duration {
	if g.Ready == 0 {
		return DefaultReady
	}
	return g.Ready
}

// FrozenWithin is Frozen or its default.
func (g Group) FrozenWithin() time.Duration {
	if g.Frozen == 0 {
		return DefaultFrozen
	}
	return g.Frozen
}

// GroupStatus is how a consistency group does on one server.
type GroupStatus struct {
	Name    string `json:"name"`
	Members int    `json:"members"` // that are granted on this server
	// Round and Time are of the newest point that all its machines have in common; zero
	// before there was one since the server started.
	Round ident.Round `json:"round,omitzero"`
	Time  time.Time   `json:"time,omitzero"`
	// Missed are the machines for which the last round had no common moment; empty: it had.
	// There are at most MaxMissing, and Others more. Since is when it began.
	Missed []Missing `json:"missed,omitempty"`
	Others int       `json:"others,omitempty"`
	Since  time.Time `json:"since,omitzero"`
	// Why this machine missed it; empty: it did not.
	Why string `json:"why,omitempty"`
}

// Missing is a machine that was not where the others of its group were.
type Missing struct {
	Machine ident.MachineID `json:"machine"`
	Name    string          `json:"name"`
	Why     string          `json:"why"`
}

// String gives name and reason.
func (m Missing) String() string { return m.Name + ": " + m.Why }
