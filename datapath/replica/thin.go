package replica

import (
	"time"

	"drover/datapath/ident"
)

// Retention says how far back points are kept and how densely. The defaults are
// features.md row 3: all for 2 h, one per hour to 1 d, one per 2 h to 7 d, one
// per 4 h to 15 d.
type Retention struct {
	Keep  time.Duration `json:"keep"` // older points go, once a newer usable one exists
	Steps []ThinStep    `json:"steps"`
}

// ThinStep keeps one point per Every among those not older than Until.
type ThinStep struct {
	Until time.Duration `json:"until"`
	Every time.Duration `json:"every"` // 0 keeps all
}

// DefaultRetention is the thinning of a policy that says nothing else.
func DefaultRetention() Retention {
	const day = 24 * time.Hour
	return Retention{Keep: 15 * day, Steps: []ThinStep{
		{2 * time.Hour, 0}, {day, time.Hour}, {7 * day, 2 * time.Hour}, {15 * day, 4 * time.Hour},
	}}
}

// Thin plans which points to delete. Order is by sequence. Age is counted back
// from the newest point's time, not from the wall clock, so that old points are
// kept while no new one can be made. Of each interval the newest point stays, but
// the strongest consistency wins. The newest point and held points always stay.
//
// Points of a consistency group come before those of the machine alone, and among them
// those for which the scripts of all were run. They have the same time and the same rank
// at all its machines, so that each of them keeps the same ones, as long as their
// policies are the same.
//
// Times come from clocks, and clocks jump; a wrong time may keep points for longer
// than the policy says, but never makes one older than it can be: see [ages]. now is
// the server's clock.
func Thin(points []Point, r Retention, now time.Time) []ident.Seq {
	if len(points) < 2 {
		return nil
	}
	ages := ages(points, now)
	kept := map[[2]int64]int{} // (step, interval) -> index of the point that stays
	drop := make([]bool, len(points))
	for i := len(points) - 2; i >= 0; i-- {
		p := points[i]
		step := stepOf(r, ages[i])
		switch {
		case isHeld(p, now):
		case step < 0:
			drop[i] = true
		case r.Steps[step].Every == 0:
		default:
			key := [2]int64{int64(step), p.Time.UnixNano() / int64(r.Steps[step].Every)}
			j, taken := kept[key]
			switch {
			case !taken:
				kept[key] = i
			case rank(points[j]) < rank(p):
				drop[j], kept[key] = true, i
			default:
				drop[i] = true
			}
		}
	}
	var plan []ident.Seq
	for i, d := range drop {
		if d {
			plan = append(plan, points[i].ID)
		}
	}
	return plan
}

// rank orders points of one interval; a point of more is good for more.
func rank(p Point) int {
	const group, scripts = int(ident.ApplicationConsistent) + 1, 1
	switch {
	case p.Group == nil:
		return int(p.Consistency)
	case p.Group.Scripts:
		return group + scripts
	}
	return group
}

// ages says how old each point is at least.
//
//   - They are counted from the newest point's time, or from now if that is earlier:
//     one point from the future makes no other one old.
//   - A point from after that moment is no older than the point after it.
//   - A point is never older than one before it in sequence: a clock that ran behind
//     for a while makes nothing expire.
func ages(points []Point, now time.Time) []time.Duration {
	last := len(points) - 1
	from := points[last].Time
	if from.After(now) {
		from = now
	}
	out := make([]time.Duration, len(points))
	for i := last - 1; i >= 0; i-- {
		out[i] = from.Sub(points[i].Time)
		if out[i] < 0 {
			out[i] = out[i+1]
		}
	}
	for i := 1; i <= last; i++ {
		out[i] = min(out[i], out[i-1])
	}
	return out
}

func stepOf(r Retention, age time.Duration) int {
	if age > r.Keep {
		return -1
	}
	for i, s := range r.Steps {
		if age <= s.Until {
			return i
		}
	}
	return -1
}

func isHeld(p Point, now time.Time) bool {
	for _, h := range p.Holds {
		if h.Expires.After(now) {
			return true
		}
	}
	return false
}
