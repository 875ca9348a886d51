package pipeline

import (
	"context"
	"errors"
	"fmt"

	"drover/datapath/cachestore"
	"drover/datapath/changeset"
	"drover/datapath/failpoint"
	"drover/datapath/replica"
	"drover/datapath/waterfall"
)

// storeNext uploads the oldest change set that is not in the cache storage yet.
func (p *Pipeline) storeNext() error {
	var next *item
	err := p.await(p.ctx, func() bool {
		next = nil
		for _, i := range p.items {
			if !i.stored {
				next = i
				break
			}
		}
		return next != nil
	})
	if err != nil {
		return err
	}
	content, err := p.Spool.Open(next.entry)
	if err != nil {
		return err
	}
	failpoint.Hit(failpoint.Store)
	err = p.Slots.storing(p.ctx, func() error { return p.Cache.Put(p.ctx, next.name(), content, content.Size()) })
	if err := errors.Join(err, content.Close()); err != nil {
		return fmt.Errorf("store change set %d: %w", next.entry.Seq, err)
	}
	failpoint.Hit(failpoint.Stored)
	p.mu.Lock()
	next.done(p.Times, waterfall.Upload)
	next.stored = true
	p.signal()
	p.mu.Unlock()
	p.Events.Stored(next.summary)
	return nil
}

// applyNext applies the oldest change set once it is in the cache storage.
func (p *Pipeline) applyNext() error {
	var next *item
	err := p.await(p.ctx, func() bool {
		if len(p.items) == 0 || !p.items[0].stored {
			return false
		}
		next = p.items[0]
		return true
	})
	if err != nil {
		return err
	}
	var point replica.Point
	err = p.Slots.applying(p.ctx, func() (err error) { point, err = p.apply(next); return err })
	if err != nil {
		return fmt.Errorf("apply change set %d: %w", next.entry.Seq, err)
	}
	next.done(p.Times, waterfall.Apply)
	failpoint.Hit(failpoint.Applied)
	// The position is durable: what is left of the set is of no use any more.
	err = errors.Join(p.Spool.Remove(next.entry), p.Cache.Delete(p.ctx, next.name()))
	if err != nil && p.ctx.Err() == nil {
		p.Logger.Warn("an applied change set could not be removed; the next start removes it", "machine", p.Machine.String(), "set", next.entry.Seq, "error", err.Error())
	}
	p.thin(next)
	p.Events.Applied(next.summary, point)
	p.mu.Lock()
	p.items = p.items[1:]
	p.signal()
	p.mu.Unlock()
	return nil
}

func (p *Pipeline) apply(i *item) (replica.Point, error) {
	if i.held != nil {
		point, err := p.Writer.Apply(p.ctx, i.held)
		if err == nil {
			i.held.Free()
		}
		return point, err
	}
	content, err := p.open(p.ctx, i)
	if err != nil {
		return replica.Point{}, err
	}
	reader, err := changeset.Open(content, content.Size(), p.Keys)
	if err != nil {
		return replica.Point{}, errors.Join(err, content.Close())
	}
	reader.Keep(keepBytes)
	defer reader.Free()
	point, err := p.Writer.Apply(p.ctx, reader)
	return point, errors.Join(err, content.Close())
}

// open opens the set where it lies nearest.
func (p *Pipeline) open(ctx context.Context, i *item) (cachestore.Object, error) {
	if i.cached {
		return p.Cache.Open(ctx, i.name())
	}
	return p.Spool.Open(i.entry)
}

// thin deletes the points that retention does not keep.
func (p *Pipeline) thin(i *item) {
	if i.entry.Seq%thinEvery != 0 {
		return
	}
	old := replica.Thin(p.Writer.State().Points, p.Retention(), p.clock.read())
	if len(old) == 0 {
		return
	}
	if _, err := p.Writer.Delete(p.ctx, old); err != nil && p.ctx.Err() == nil {
		p.Logger.Warn("old recovery points could not be deleted; it is tried again later", "machine", p.Machine.String(), "points", len(old), "error", err.Error())
	}
}
