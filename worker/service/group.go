package service

import (
	"context"
	"errors"
	"sync"
)

// Group runs the parts of a program. The first part that fails stops the others.
type Group struct {
	ctx    context.Context
	cancel context.CancelFunc
	parts  sync.WaitGroup
	mu     sync.Mutex
	errs   []error
}

// NewGroup makes a group whose parts stop when ctx ends.
func NewGroup(ctx context.Context) *Group {
	g := &Group{}
	g.ctx, g.cancel = context.WithCancel(ctx)
	return g
}

// Go runs a part until it returns. An error stops the group; the end of its
// context is none.
func (g *Group) Go(part func(context.Context) error) {
	g.parts.Go(func() {
		err := part(g.ctx)
		if err == nil || (g.ctx.Err() != nil && errors.Is(err, context.Canceled)) {
			return
		}
		g.mu.Lock()
		g.errs = append(g.errs, err)
		g.mu.Unlock()
		g.cancel()
	})
}

// Wait waits for all parts and gives their errors.
func (g *Group) Wait() error {
	g.parts.Wait()
	g.cancel()
	g.mu.Lock()
	defer g.mu.Unlock()
	return errors.Join(g.errs...)
}
