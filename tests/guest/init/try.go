package main

import (
	"errors"
	"fmt"

	"drover/agent/tracker/changes"
)

const (
	rounds  = 2
	writes  = 100 // of a round
	nothing = "nothing is written"
)

// judge compares what a source says with what is on the disk.
type judge struct {
	subject
	source         changes.Source
	dev            *device
	before         []uint64
	changed, named int64
}

// try has a source follow the disk while it is written to.
func try(what subject) (text string, err error) {
	source, err := what.open()
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, source.Close()) }()
	d, err := openDevice(what.disk)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, d.close()) }()
	if _, err := source.Follow([]changes.Device{d.about}); err != nil {
		return "", err
	}
	j := &judge{subject: what, source: source, dev: d}
	if j.before, err = d.snapshot(); err != nil {
		return "", err
	}
	if err := j.compare(nothing); err != nil {
		return "", err
	}
	if j.named > 0 {
		return "", fmt.Errorf("%d blocks are named that nobody wrote", j.named)
	}
	if err := what.write(j); err != nil {
		return "", err
	}
	counters, err := source.Counters()
	return fmt.Sprintf("%d blocks changed, %d were named, %v", j.changed, j.named, counters), err
}

// writeAll writes in all the ways there are, with a file system and without.
func writeAll(j *judge) error {
	if err := writeFiles(j); err != nil {
		return err
	}
	for i := range rounds {
		if err := writeRound(j, i); err != nil {
			return err
		}
	}
	return nil
}

// writeRound writes to the disk and to its partition, by turns.
func writeRound(j *judge, round int) error {
	path := []string{j.disk, j.partition}[round%2]
	d, err := openDevice(path)
	if err != nil {
		return err
	}
	err = errors.Join(d.write(writes), d.close())
	if err != nil {
		return err
	}
	return j.compare(fmt.Sprintf("round %d on %s", round, path))
}

// compare asks the source and reads the disk.
func (j *judge) compare(what string) error {
	said := make(changes.Bitmap, changes.Words(j.dev.size))
	if err := j.source.Drain(0, said); err != nil {
		return err
	}
	gap, err := j.source.Gap()
	if err != nil {
		return err
	}
	if gap != "" {
		return fmt.Errorf("%s: a gap: %s", what, gap)
	}
	now, err := j.dev.snapshot()
	if err != nil {
		return err
	}
	missed, changed := 0, j.changed
	for b := range now {
		if now[b] == j.before[b] {
			continue
		}
		j.changed++
		if !said.Has(int64(b)) {
			missed++
		}
	}
	if missed == 0 && what != nothing && j.changed == changed {
		return fmt.Errorf("%s: nothing changed: the test writes nothing", what)
	}
	j.before = now
	j.named += said.Count()
	if missed > 0 {
		return fmt.Errorf("%s: %d blocks changed and were not named", what, missed)
	}
	return nil
}

// silent is a source that says nothing: it is to fail.
type silent struct{ changes.Source }

func (silent) Follow([]changes.Device) ([]bool, error) { return make([]bool, 1), nil }
func (silent) Drain(int, changes.Bitmap) error         { return nil }
func (silent) Gap() (string, error)                    { return "", nil }
func (silent) Counters() (map[string]uint64, error)    { return nil, nil }
func (silent) Close() error                            { return nil }
