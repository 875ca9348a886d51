package server

import (
	"context"
	"fmt"

	"drover/datapath/ident"
	"drover/datapath/replica"
)

// turns has a replica's changes wait for one another: a grant brings documents while the
// pipeline applies, and a writer takes one change at a time.
type turns struct {
	replica.Writer
	turn chan struct{}
}

func inTurns(w replica.Writer) *turns { return &turns{w, make(chan struct{}, 1)} }

func (w *turns) wait(ctx context.Context) (end func(), err error) {
	select {
	case w.turn <- struct{}{}:
		return func() { <-w.turn }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("wait until another change of the replica has ended: %w", ctx.Err())
	}
}

func (w *turns) BeginGeneration(ctx context.Context, disks []replica.Disk, rescan bool, progress func(done, total int64)) error {
	end, err := w.wait(ctx)
	if err != nil {
		return err
	}
	defer end()
	return w.Writer.BeginGeneration(ctx, disks, rescan, progress)
}

func (w *turns) Apply(ctx context.Context, cs replica.ChangeSet) (replica.Point, error) {
	end, err := w.wait(ctx)
	if err != nil {
		return replica.Point{}, err
	}
	defer end()
	return w.Writer.Apply(ctx, cs)
}

func (w *turns) SetDocuments(ctx context.Context, docs map[string]string) error {
	end, err := w.wait(ctx)
	if err != nil {
		return err
	}
	defer end()
	return w.Writer.SetDocuments(ctx, docs)
}

func (w *turns) Delete(ctx context.Context, points []ident.Seq) (held []ident.Seq, err error) {
	end, err := w.wait(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	return w.Writer.Delete(ctx, points)
}
