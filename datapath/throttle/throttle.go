// Package throttle limits the bandwidth of streams by the time of day. A schedule
// is a list of rules; where several apply the lowest limit wins, and where none
// does there is no limit.
//
// A process server enforces it by reading an agent's connection no faster than the
// machine's own schedule and its share of the server's allow: TCP then holds the
// agent back. What the server sends is not limited.
//
//	throttle.go  rules, as people write them
//	schedule.go  the limit at a moment
//	limiter.go   readers held to schedules, with equal shares
package throttle

import (
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Bounds of rules.
const (
	// MinRate is the lowest limit. Below it, acknowledgements would take longer than
	// sessions wait. To stop a machine, pause it.
	MinRate = Rate(64_000) // 512kbit/s
	MaxRate = Rate(125_000_000_000)
	// MaxRules bounds a schedule.
	MaxRules = 32
	maxZone  = 64
)

// Rate is a bandwidth in bytes per second; as text "20Mbit/s" or "4MiB/s".
type Rate int64

var units = []struct {
	suffix string
	bytes  int64
}{
	{"Gbit/s", 125_000_000}, {"Mbit/s", 125_000}, {"kbit/s", 125},
	{"GiB/s", 1 << 30}, {"MiB/s", 1 << 20}, {"KiB/s", 1 << 10}, {"B/s", 1},
}

// String gives the rate in the largest unit that needs no fraction.
func (r Rate) String() string {
	for _, u := range units {
		if int64(r) >= u.bytes && int64(r)%u.bytes == 0 {
			return strconv.FormatInt(int64(r)/u.bytes, 10) + u.suffix
		}
	}
	return strconv.FormatInt(int64(r), 10) + "B/s"
}

// MarshalText gives the rate as String does.
func (r Rate) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText reads a rate. Whether it is allowed is for Check to say.
func (r *Rate) UnmarshalText(text []byte) error {
	for _, u := range units {
		number, ok := strings.CutSuffix(string(text), u.suffix)
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(strings.TrimSpace(number), 10, 64)
		if err != nil || n < 0 || n > math.MaxInt64/u.bytes {
			break
		}
		*r = Rate(n * u.bytes)
		return nil
	}
	return fmt.Errorf("rate %q: want a whole number with kbit/s, Mbit/s, Gbit/s, KiB/s, MiB/s or GiB/s, such as 20Mbit/s", text)
}

// Window is a window of time that comes back every day, by the clock on the wall of
// its time zone: an hour that is skipped in spring is no part of it, one that comes
// twice in autumn counts twice.
type Window struct {
	TimeZone string   `json:"timeZone"`       // IANA name
	Start    string   `json:"start"`          // "22:00"
	End      string   `json:"end"`            // "06:00", may be on the next day
	Days     []string `json:"days,omitempty"` // "mon".."sun" on which it starts; empty is every day
}

// Rule is a limit, always or in a window.
type Rule struct {
	Limit  Rate    `json:"limit"`
	Window *Window `json:"window,omitempty"` // nil: always
}

// Problem is a field that is wrong, by its path below the list of rules.
type Problem struct{ Path, Reason string }

// dayNames is in the order of time.Weekday.
var dayNames = []string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}

var zoneForm = regexp.MustCompile(`^[A-Za-z0-9_+/-]+$`)

// Check gives all that is wrong with the rules but for zones that do not exist.
func Check(rules []Rule) []Problem {
	var out []Problem
	fail := func(path, format string, args ...any) {
		out = append(out, Problem{path, fmt.Sprintf(format, args...)})
	}
	if len(rules) > MaxRules {
		fail("", "%d rules, at most %d", len(rules), MaxRules)
	}
	for i, r := range rules {
		at := fmt.Sprintf("[%d]", i)
		if r.Limit < MinRate || r.Limit > MaxRate {
			fail(at+".limit", "%s: want %s to %s; to stop a machine use drover pause, for no limit leave the rule out", r.Limit, MinRate, MaxRate)
		}
		if r.Window == nil {
			continue
		}
		if z := r.Window.TimeZone; len(z) > maxZone || !zoneForm.MatchString(z) {
			fail(at+".window.timeZone", "%q: want an IANA name such as Europe/Berlin or UTC", z)
		}
		for _, p := range r.Window.Check() {
			fail(at+".window"+p.Path, "%s", p.Reason)
		}
		if r.Window.Start == r.Window.End {
			fail(at+".window.end", "%q is the start too; for the whole day leave the window out, or end it at another time", r.Window.End)
		}
	}
	return out
}

// Check gives what is wrong with the window's times and days.
func (w Window) Check() []Problem {
	var out []Problem
	for _, f := range [][2]string{{".start", w.Start}, {".end", w.End}} {
		if _, err := clock(f[1]); err != nil {
			out = append(out, Problem{f[0], err.Error()})
		}
	}
	for i, d := range w.Days {
		if !slices.Contains(dayNames, d) {
			out = append(out, Problem{fmt.Sprintf(".days[%d]", i), fmt.Sprintf("%q: want mon, tue, wed, thu, fri, sat or sun", d)})
		}
	}
	return out
}

// clock reads a time of day, as minutes after midnight.
func clock(text string) (int, error) {
	t, err := time.Parse("15:04", text)
	if err != nil {
		return 0, fmt.Errorf("%q: want a time such as 22:00", text)
	}
	return t.Hour()*60 + t.Minute(), nil
}
