package pipeline

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"drover/datapath/cachestore"
	"drover/datapath/changeset"
	"drover/datapath/replica"
	"drover/datapath/spool"
)

// recover lines up what lies in the spool and in the cache storage behind the
// replica's position. The chain of digests says what follows what, so that sets of
// an older owner are used where they fit and dropped where they do not.
func (p *Pipeline) recover(ctx context.Context) error {
	state := p.Writer.State()
	p.tail, p.whole = state.Position, state.Complete
	found, err := p.find(ctx)
	if err != nil {
		return err
	}
	left := found[:0]
	for _, i := range found {
		switch {
		case i.entry.Seq <= state.Position.Seq:
			err = p.drop(ctx, i) // applied; it was not removed any more
		case i.summary.Header.Follows(p.tail) && i.summary.Header.Generation == state.Generation:
			// The cache storage refuses what an older owner did not store; it is applied from here.
			i.stored = i.stored || i.entry.Epoch < state.Epoch
			p.append(i)
		default:
			left = append(left, i)
		}
		if err != nil {
			return err
		}
	}
	for _, i := range left {
		h := i.summary.Header
		if h.Epoch == state.Epoch && h.Generation == state.Generation && i.entry.Seq > p.tail.Seq {
			return fmt.Errorf("change set %d was acknowledged, but the one before it is missing: %w", h.Seq, replica.ErrCorrupt)
		}
		p.Logger.Info("a change set of an older owner or generation is dropped", "machine", p.Machine.String(), "set", h.Seq, "epoch", h.Epoch, "generation", h.Generation)
		if err := p.drop(ctx, i); err != nil {
			return err
		}
	}
	return nil
}

// find gives all sets of the machine, by sequence; of the same sequence the newest
// owner's first. A set in both places counts once.
func (p *Pipeline) find(ctx context.Context) ([]*item, error) {
	spooled, err := p.Spool.List(p.Machine)
	if err != nil {
		return nil, err
	}
	cached, err := p.Cache.List(ctx, p.Machine)
	if err != nil {
		return nil, err
	}
	var out []*item
	for _, e := range spooled {
		both := slices.Contains(cached, cachestore.Name{Machine: e.Machine, Seq: e.Seq, Epoch: e.Epoch})
		out = append(out, &item{entry: e, both: both})
	}
	for _, n := range cached {
		if !slices.ContainsFunc(spooled, func(e spool.Entry) bool { return e.Seq == n.Seq && e.Epoch == n.Epoch }) {
			out = append(out, &item{entry: spool.Entry{Machine: n.Machine, Seq: n.Seq, Epoch: n.Epoch}, cached: true, stored: true})
		}
	}
	for _, i := range out {
		if err := p.read(ctx, i); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(out, func(a, b *item) int {
		if a.entry.Seq != b.entry.Seq {
			return int(int64(a.entry.Seq) - int64(b.entry.Seq))
		}
		return int(int64(b.entry.Epoch) - int64(a.entry.Epoch))
	})
	return out, nil
}

// read reads a set's summary. Sets that the replica has are not opened: their key
// may be gone.
func (p *Pipeline) read(ctx context.Context, i *item) error {
	if i.entry.Seq <= p.tail.Seq {
		return nil
	}
	content, err := p.open(ctx, i)
	if errors.Is(err, cachestore.ErrNotFound) || errors.Is(err, spool.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = content.Close() }() // only read
	r, err := changeset.Open(content, content.Size(), p.Keys)
	if errors.Is(err, changeset.ErrCorrupt) && i.both && !i.cached {
		p.Logger.Warn("a spooled change set is damaged; the cache storage's copy is used", "machine", p.Machine.String(), "set", i.entry.Seq, "error", err.Error())
		i.cached, i.stored = true, true
		return p.read(ctx, i)
	}
	if errors.Is(err, changeset.ErrCorrupt) {
		return fmt.Errorf("change set %d: %w: %w", i.entry.Seq, replica.ErrCorrupt, err)
	}
	if err != nil {
		return fmt.Errorf("change set %d: %w", i.entry.Seq, err)
	}
	i.summary, i.entry.Size = r.Summary(), content.Size()
	return nil
}

// drop removes a set from both places.
func (p *Pipeline) drop(ctx context.Context, i *item) error {
	return errors.Join(p.Spool.Remove(i.entry), p.Cache.Delete(ctx, i.name()))
}

// Discard removes all the machine's sets: a new generation begins, and what they
// would have brought is compared and sent anew.
func Discard(ctx context.Context, c Config) error {
	p := &Pipeline{Config: c}
	spooled, err := c.Spool.List(c.Machine)
	for _, e := range spooled {
		err = errors.Join(err, p.drop(ctx, &item{entry: e}))
	}
	cached, listErr := c.Cache.List(ctx, c.Machine)
	err = errors.Join(err, listErr)
	for _, n := range cached {
		err = errors.Join(err, c.Cache.Delete(ctx, n))
	}
	if err != nil {
		return fmt.Errorf("discard the change sets of machine %s: %w", c.Machine, err)
	}
	return nil
}
