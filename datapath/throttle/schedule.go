package throttle

import (
	"fmt"
	"slices"
	"time"
	_ "time/tzdata" // the zones, on hosts that have none
)

// Unlimited is the limit where no rule applies.
const Unlimited Rate = 0

// Schedule gives the limit at a moment. The zero Schedule has none.
type Schedule struct{ rules []compiled }

// compiled is a rule with its window read; zone is nil for always.
type compiled struct {
	limit      Rate
	zone       *time.Location
	start, end int // minutes after midnight
	days       [7]bool
}

// Compile checks the rules and reads them.
func Compile(rules []Rule) (Schedule, error) {
	problems := append(Check(rules), CheckZones(rules)...)
	if len(problems) > 0 {
		return Schedule{}, fmt.Errorf("throttle%s: %s", problems[0].Path, problems[0].Reason)
	}
	var s Schedule
	for _, r := range rules {
		c := compiled{limit: r.Limit}
		if w := r.Window; w != nil {
			c.zone, _ = time.LoadLocation(w.TimeZone) // these three were checked
			c.start, _ = clock(w.Start)
			c.end, _ = clock(w.End)
			for i, name := range dayNames {
				c.days[i] = len(w.Days) == 0 || slices.Contains(w.Days, name)
			}
		}
		s.rules = append(s.rules, c)
	}
	return s, nil
}

// Until reports whether the window is open at t, and if so when it closes.
func (w Window) Until(t time.Time) (end time.Time, open bool, err error) {
	s, err := Compile([]Rule{{Limit: MinRate, Window: &w}})
	if err != nil || !s.rules[0].open(t) {
		return time.Time{}, false, err
	}
	// Minute by minute: whatever daylight saving does, it is what open says.
	end = t.Truncate(time.Minute)
	for limit := t.Add(48 * time.Hour); s.rules[0].open(end) && end.Before(limit); end = end.Add(time.Minute) {
	}
	return end, true, nil
}

// CheckZones gives the windows whose time zone does not exist. It reads the zone
// database, which workflows must not.
func CheckZones(rules []Rule) []Problem {
	var out []Problem
	for i, r := range rules {
		if r.Window == nil {
			continue
		}
		if _, err := time.LoadLocation(r.Window.TimeZone); err != nil {
			out = append(out, Problem{fmt.Sprintf("[%d].window.timeZone", i),
				fmt.Sprintf("%q: no such time zone; want an IANA name such as Europe/Berlin or UTC", r.Window.TimeZone)})
		}
	}
	return out
}

// At gives the lowest limit that applies at t, or Unlimited.
func (s Schedule) At(t time.Time) Rate {
	limit := Unlimited
	for _, c := range s.rules {
		if c.open(t) && (limit == Unlimited || c.limit < limit) {
			limit = c.limit
		}
	}
	return limit
}

// open reports whether the rule applies. Its end is no part of a window.
func (c compiled) open(t time.Time) bool {
	if c.zone == nil {
		return true
	}
	t = t.In(c.zone)
	minute, today := t.Hour()*60+t.Minute(), int(t.Weekday())
	if c.start < c.end {
		return c.days[today] && c.start <= minute && minute < c.end
	}
	yesterday := (today + 6) % 7
	return c.days[today] && c.start <= minute || c.days[yesterday] && minute < c.end
}
