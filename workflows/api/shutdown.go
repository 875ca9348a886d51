package api

import "time"

// Bounds of the time that a source's guest has to shut down.
const (
	DefaultShutdown = 5 * time.Minute
	MinShutdown     = 10 * time.Second
	MaxShutdown     = time.Hour
)

// SourceShutdown says how an unplanned failover brings its source down. A planned one
// switches a source off that is frozen at its last point: it cannot shut down any more.
type SourceShutdown struct {
	// Limit is how long the guest has to shut down, by its VMware Tools; 0: DefaultShutdown.
	Limit Duration `json:"limit,omitempty"`
	// ThenPowerOff switches a source off that has not shut down by then. Else the shutdown
	// has failed, and the failover goes on for a stated reason only.
	ThenPowerOff bool `json:"thenPowerOff,omitempty"`
}

// Within is how long the guest has.
func (s SourceShutdown) Within() time.Duration {
	if s.Limit == 0 {
		return DefaultShutdown
	}
	return s.Limit.D()
}

// ValidateShutdown gives all that is wrong with how a source is to be brought down.
func ValidateShutdown(s SourceShutdown) []FieldError {
	c := &checker{}
	if s.Limit != 0 {
		c.between("limit", s.Limit.D(), MinShutdown, MaxShutdown)
	}
	return c.errs
}
