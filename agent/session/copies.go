package session

import (
	"context"
	"errors"
	"fmt"

	"drover/agent/disk"
	"drover/agent/quiesce"
	"drover/agent/tracker"
)

// sendCopies sends what changed up to the moment of the shadow copies, from them. What of
// the disks has no copy, such as partition tables, is read from the disks: it is as it
// was at that moment if nothing is found there that the pass before did not find. why
// says why there is no point.
func (x *session) sendCopies(hold *quiesce.Hold, copies []quiesce.Copy) (why, err error) {
	ctx, cancel := context.WithTimeout(x.ctx, hold.Limit())
	defer cancel()
	x.fixed = true
	defer func() { x.fixed = false }()
	if !x.passed {
		return errors.New("the disks have not been read as a whole before the shadow copies were made"), nil
	}
	end, err := x.readFrom(copies)
	if err == nil {
		err = x.pass(ctx)
	}
	beside := x.beside
	err = errors.Join(err, end())
	switch {
	case x.ctx.Err() != nil:
		return nil, x.ctx.Err()
	case ctx.Err() != nil:
		return fmt.Errorf("the shadow copies were read for longer than %s", hold.Limit()), nil
	case errors.Is(err, errTooMuch):
		return err, nil
	case err == nil && beside != "":
		return fmt.Errorf("beside the shadow copies something was written meanwhile (%s)", beside), nil
	}
	return nil, err
}

// readFrom makes the tracker read the copies where there are any, until end is called.
func (x *session) readFrom(copies []quiesce.Copy) (end func() error, err error) {
	var opened []*disk.Disk
	end = func() error {
		x.copied, x.beside = nil, ""
		_, err := x.Tracker.Attach(x.trackedDisks())
		for _, d := range opened {
			err = errors.Join(err, d.Close())
		}
		return err
	}
	parts := map[string][]disk.OverlayPart{}
	for _, c := range copies {
		d, err := x.OpenCopy(c.Device)
		if err != nil {
			return end, fmt.Errorf("read a shadow copy: %w", err)
		}
		opened = append(opened, d)
		parts[c.Disk] = append(parts[c.Disk], disk.OverlayPart{Offset: c.Offset, Length: c.Length, From: d})
	}
	var read []tracker.Disk
	var overlays []*disk.Overlay
	for _, d := range x.open {
		o, err := disk.NewOverlay(d.Disk, parts[d.Path()])
		if err != nil {
			return end, fmt.Errorf("read the shadow copies: %w", err)
		}
		overlays, read = append(overlays, o), append(read, o)
	}
	kept, err := x.Tracker.Attach(read)
	if err == nil && !kept {
		err = errors.New("the tracker cannot go over from disks to shadow copies; set `tracker: scan`")
	}
	if err != nil {
		return end, fmt.Errorf("read the shadow copies: %w", err)
	}
	x.copied = overlays
	return end, nil
}
