package api

import (
	"strconv"
	"strings"
)

// Target says what a machine becomes on the target side.
type Target struct {
	Size        string            `json:"size,omitempty"` // empty: the smallest that fits
	Network     string            `json:"network"`
	Subnet      string            `json:"subnet"`
	TestNetwork string            `json:"testNetwork"`
	Address     string            `json:"address,omitempty"` // static IP to keep
	Tags        map[string]string `json:"tags,omitempty"`
	// FallBackSizes are taken in order when there is no room for Size.
	FallBackSizes []string `json:"fallBackSizes,omitempty"`
	// AddressPolicy says what to do when Address is taken: AddressRefuse (the
	// default) or AddressNext.
	AddressPolicy string `json:"addressPolicy,omitempty"`
	// Zone, or the availability set, of the machine; not both.
	Zone            string `json:"zone,omitempty"`
	AvailabilitySet string `json:"availabilitySet,omitempty"`
	DiskType        string `json:"diskType,omitempty"` // as the target calls it; empty: its default
	// Health says what shows that a started machine is up: HealthRunning (the
	// default), HealthAgent, HealthCommand, or HealthTCP with a port ("tcp:22").
	Health string `json:"health,omitempty"`
	// Relay: on the way back the machine in the target streams by way of a temporary
	// process server there, because it does not reach the master target itself.
	Relay bool `json:"relay,omitempty"`
}

// TestName is the name of a VM's copy in a test.
func TestName(vm VM) string { return vm.Name + "-test" }

// What to do when the address to keep is taken.
const (
	AddressRefuse = "refuse"
	AddressNext   = "next"
)

// Evidence that a machine is up.
const (
	HealthRunning = "running" // the target says that it runs
	HealthAgent   = "agent"   // its agent has called home
	HealthCommand = "command" // a command ran inside of it
	HealthTCP     = "tcp"     // a port answers: "tcp:22"
)

// ValidateTarget gives all that is wrong with what a machine is to become.
func ValidateTarget(t Target) []FieldError {
	c := &checker{}
	if len(t.FallBackSizes) > MaxFallBackSizes || len(t.FallBackSizes) > 0 && t.Size == "" {
		c.fail("fallBackSizes", "%d sizes: want up to %d, and a size to fall back from", len(t.FallBackSizes), MaxFallBackSizes)
	}
	switch t.AddressPolicy {
	case "", AddressRefuse, AddressNext:
	default:
		c.fail("addressPolicy", "%q: want %s or %s", t.AddressPolicy, AddressRefuse, AddressNext)
	}
	if t.Zone != "" && t.AvailabilitySet != "" {
		c.fail("zone", "a machine is in a zone or in an availability set, not both")
	}
	kind, port, tcp := strings.Cut(t.Health, ":")
	n, err := strconv.Atoi(port)
	switch {
	case kind == HealthTCP && tcp && err == nil && n > 0 && n < 1<<16:
	case tcp || kind != "" && kind != HealthRunning && kind != HealthAgent && kind != HealthCommand:
		c.fail("health", "%q: want %s, %s, %s or %s:PORT", t.Health, HealthRunning, HealthAgent, HealthCommand, HealthTCP)
	}
	return c.errs
}
