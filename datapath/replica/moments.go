package replica

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"drover/datapath/ident"
)

// Moment is a round of a consistency group: the points that its machines have of it.
type Moment struct {
	Group   string
	Round   ident.Round
	Time    time.Time
	Members int // machines that were frozen together
	Points  map[ident.MachineID]Point
}

// Whole reports whether all machines of the round have their point of it still.
func (m Moment) Whole() bool { return len(m.Points) == m.Members }

// Consistency is the weakest of its points'.
func (m Moment) Consistency() ident.Consistency {
	weakest := ident.ApplicationConsistent
	for _, p := range m.Points {
		weakest = min(weakest, p.Consistency)
	}
	return weakest
}

// Moments gives the rounds of all consistency groups that the store has points of,
// oldest first.
func Moments(ctx context.Context, store Store) ([]Moment, error) {
	machines, err := store.Machines(ctx)
	if err != nil {
		return nil, err
	}
	found := map[ident.Round]*Moment{}
	for _, id := range machines {
		points, err := pointsOf(ctx, store, id)
		if errors.Is(err, ErrNotFound) {
			continue // it went meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("list the recovery points of machine %s: %w", id, err)
		}
		for _, p := range points {
			if p.Group == nil {
				continue
			}
			m := found[p.Group.Round]
			if m == nil {
				m = &Moment{Group: p.Group.Name, Round: p.Group.Round, Time: p.Time, Members: p.Group.Members, Points: map[ident.MachineID]Point{}}
				found[p.Group.Round] = m
			}
			m.Points[id] = p
		}
	}
	out := make([]Moment, 0, len(found))
	for _, m := range found {
		out = append(out, *m)
	}
	slices.SortFunc(out, func(a, b Moment) int { return a.Time.Compare(b.Time) })
	return out, nil
}

func pointsOf(ctx context.Context, store Store, id ident.MachineID) ([]Point, error) {
	r, err := store.OpenReader(ctx, id)
	if err != nil {
		return nil, err
	}
	st, err := r.State(ctx)
	return st.Points, errors.Join(err, r.Close())
}
