package replica

import (
	"context"
	"errors"
	"io"

	"drover/datapath/changeset"
	"drover/datapath/checksum"
)

// EachExtent gives all extents of the change set from the first on, each checked against
// the disks.
func EachExtent(ctx context.Context, cs ChangeSet, disks []Disk, fn func(e *changeset.Extent) error) error {
	if err := cs.Rewind(); err != nil {
		return err
	}
	return eachExtent(ctx, cs, disks, CheckExtent, fn)
}

// EachExtentAgain is EachExtent for a change set that it has given as a whole before.
// Data that has been in memory since then is not summed once more.
func EachExtentAgain(ctx context.Context, cs ChangeSet, disks []Disk, fn func(e *changeset.Extent) error) error {
	if err := cs.Rewind(); err != nil {
		return err
	}
	return eachExtent(ctx, cs, disks, checkAgain(cs), fn)
}

// EachExtentOf is EachExtentAgain for one disk. It may run for several disks at once.
func EachExtentOf(ctx context.Context, cs ChangeSet, disk int, disks []Disk, fn func(e *changeset.Extent) error) error {
	return eachExtent(ctx, cs.Disk(disk), disks, checkAgain(cs), fn)
}

func checkAgain(cs ChangeSet) func(*changeset.Extent, []Disk) error {
	if _, ok := cs.(*changeset.Held); ok {
		return checkPlace
	}
	return CheckExtent
}

func eachExtent(ctx context.Context, extents changeset.Extents, disks []Disk, check func(*changeset.Extent, []Disk) error, fn func(e *changeset.Extent) error) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		e, err := extents.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := check(&e, disks); err != nil {
			return err
		}
		if err := fn(&e); err != nil {
			return err
		}
	}
}

// ReadBlocks reads p at off of a disk of size bytes, as [io.ReaderAt] does, by reads of
// whole blocks, of at most so many bytes each. off is not negative.
func ReadBlocks(p []byte, off, size, most int64, read func(b []byte, off int64) error) (int, error) {
	done := 0
	var buf []byte
	for done < len(p) && off+int64(done) < size {
		at := off + int64(done)
		start := at / checksum.BlockSize * checksum.BlockSize
		end := min(start+most, size, roundUp(off+int64(len(p))))
		into := p[done:]
		direct := start == at && int64(len(into)) >= end-start
		if direct {
			into = into[:end-start]
		} else {
			if buf == nil {
				buf = make([]byte, min(most, roundUp(int64(len(p)))+checksum.BlockSize))
			}
			into = buf[:end-start]
		}
		if err := read(into, start); err != nil {
			return done, err
		}
		if direct {
			done += len(into)
		} else {
			done += copy(p[done:], into[at-start:])
		}
	}
	if done < len(p) {
		return done, io.EOF
	}
	return done, nil
}

func roundUp(n int64) int64 { return checksum.Blocks(n) * checksum.BlockSize }
