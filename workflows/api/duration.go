package api

import (
	"fmt"
	"time"
)

// Duration is a time.Duration that is text ("30s", "1h30m") in JSON and YAML, so
// that people can read histories and files.
type Duration time.Duration

// D gives the time.Duration.
func (d Duration) D() time.Duration { return time.Duration(d) }

func (d Duration) String() string { return time.Duration(d).String() }

// MarshalText gives Go's notation.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads Go's notation.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil {
		return fmt.Errorf("duration %q: want a number with a unit, such as 30s, 15m or 12h", b)
	}
	*d = Duration(v)
	return nil
}
