//go:build linux

package trace

import (
	"fmt"
	"path/filepath"
)

// description is what the kernel says of its ring and events.
type description struct {
	page   pageLayout
	entry  entryLayout
	id     field // where every event has its number
	least  int   // bytes that takes
	events map[uint16]*eventLayout
}

// eventNames are the events' names. That of discards before they become requests is used
// only where a device needs it.
var eventNames = map[kind]string{issue: "block_rq_issue", complete: "block_rq_complete", requeue: "block_rq_requeue",
	bioQueue: "block_bio_queue"}

// describe reads the kernel's descriptions; nothing of it is the same in all kernels.
func (t *tracefs) describe() (*description, error) {
	d := &description{events: map[uint16]*eventLayout{}}
	text, err := t.read("events/header_page")
	if err == nil {
		d.page, err = parsePage(text)
	}
	if err != nil {
		return nil, err
	}
	if text, err = t.read("events/header_event"); err == nil {
		d.entry, err = parseEntry(text)
	}
	if err != nil {
		return nil, err
	}
	for k, name := range eventNames {
		text, err := t.read(filepath.Join(blockDir, name, "format"))
		if err != nil {
			return nil, err
		}
		if err := d.add(k, text); err != nil {
			return nil, fmt.Errorf("the event %s: %w", name, err)
		}
	}
	return d, nil
}

// add takes an event's description in.
func (d *description) add(k kind, text string) error {
	e, id, err := parseEvent(k, text)
	if err != nil {
		return err
	}
	if d.least > 0 && id != d.id {
		return fmt.Errorf("its number is where others have none")
	}
	if _, ok := d.events[e.id]; ok {
		return fmt.Errorf("its number %d is that of another one", e.id)
	}
	d.id, d.least = id, id.end()
	d.events[e.id] = &e
	return nil
}

// decode takes an event apart; ok is false if it is none of ours.
func (d *description) decode(data []byte) (r record, ok bool, err error) {
	if len(data) < d.least {
		return r, false, fmt.Errorf("%w: an event of %d bytes has no number", errPage, len(data))
	}
	e, ok := d.events[uint16(d.id.uint(data))]
	if !ok {
		return r, false, nil
	}
	r, err = e.decode(data)
	return r, true, err
}
