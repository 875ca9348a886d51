//go:build linux

package trace

import (
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"
)

// Bounds of the kernel's descriptions.
const (
	maxText     = 64 << 10 // bytes of a description
	maxFields   = 256
	maxPage     = 1 << 20 // bytes of a page of the ring
	wordBytes   = 8
	payloadBits = 32 // the first word of an event: its length or kind, and the time since the one before
)

// field is where a value lies: in an event, or in a page's header.
type field struct{ offset, size int }

// uint takes a number of 1, 2, 4 or 8 bytes out of b, which is long enough.
func (f field) uint(b []byte) uint64 {
	b = b[f.offset : f.offset+f.size]
	switch f.size {
	case 1:
		return uint64(b[0])
	case 2:
		return uint64(binary.NativeEndian.Uint16(b))
	case 4:
		return uint64(binary.NativeEndian.Uint32(b))
	}
	return binary.NativeEndian.Uint64(b)
}

// text takes a text that ends with a zero byte, or with the field.
func (f field) text(b []byte) []byte {
	b = b[f.offset : f.offset+f.size]
	for i, c := range b {
		if c == 0 {
			return b[:i]
		}
	}
	return b
}

func (f field) isNumber() bool {
	return f.size == 1 || f.size == 2 || f.size == 4 || f.size == wordBytes
}

func (f field) end() int { return f.offset + f.size }

// parseFields reads the lines "field:<type> <name>; offset:<n>; size:<n>; ..." of a
// description; other lines are not its matter.
func parseFields(text string) (map[string]field, error) {
	if len(text) > maxText {
		return nil, fmt.Errorf("a description of %d bytes, at most %d are read", len(text), maxText)
	}
	fields := map[string]field{}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "field:") && !strings.HasPrefix(line, "field ") {
			continue
		}
		name, f, err := parseField(line)
		if err != nil {
			return nil, fmt.Errorf("%w in the line %q", err, line)
		}
		if len(fields) == maxFields {
			return nil, fmt.Errorf("more than %d fields", maxFields)
		}
		fields[name] = f
	}
	return fields, nil
}

func parseField(line string) (name string, f field, err error) {
	for part := range strings.SplitSeq(line, ";") {
		key, value, ok := strings.Cut(strings.TrimSpace(part), ":")
		if !ok {
			continue
		}
		value = strings.TrimSpace(value)
		switch key {
		case "field":
			words := strings.Fields(value)
			if len(words) == 0 {
				return "", f, fmt.Errorf("no name")
			}
			name, _, _ = strings.Cut(words[len(words)-1], "[")
		case "offset":
			f.offset, err = bounded(value)
		case "size":
			f.size, err = bounded(value)
		}
		if err != nil {
			return "", f, err
		}
	}
	if name == "" {
		return "", f, fmt.Errorf("no name")
	}
	return name, f, nil
}

func bounded(value string) (int, error) {
	n, err := strconv.ParseUint(value, 10, 32)
	if err != nil || n > maxPage {
		return 0, fmt.Errorf("%q is no offset or size", value)
	}
	return int(n), nil
}

// numbers picks numeric fields by name.
func numbers(fields map[string]field, names map[string]*field) error {
	for name, into := range names {
		f, ok := fields[name]
		if !ok {
			return fmt.Errorf("the kernel describes no field %q", name)
		}
		if !f.isNumber() {
			return fmt.Errorf("the field %q has %d bytes, which is no number", name, f.size)
		}
		*into = f
	}
	return nil
}

// parsePage reads events/header_page: how a page of the ring begins.
func parsePage(text string) (p pageLayout, err error) {
	fields, err := parseFields(text)
	if err == nil {
		err = numbers(fields, map[string]*field{"timestamp": &p.time, "commit": &p.commit})
	}
	if err != nil {
		return p, fmt.Errorf("header_page: %w", err)
	}
	data := fields["data"]
	p.data, p.size = data.offset, data.end()
	if data.size < wordBytes || p.size > maxPage || p.time.end() > p.data || p.commit.end() > p.data {
		return p, fmt.Errorf("header_page: data of %d bytes at %d, which no page has", data.size, data.offset)
	}
	return p, nil
}

// parseEntry reads events/header_event: how an event in a page begins.
func parseEntry(text string) (e entryLayout, err error) {
	if len(text) > maxText {
		return e, fmt.Errorf("header_event: %d bytes, at most %d are read", len(text), maxText)
	}
	e.stamp = noKind // kernels before 4.17 have none
	want := map[string]*uint32{"type_len": &e.lenBits, "time_delta": &e.deltaBits, "padding": &e.padding, "time_extend": &e.extend,
		"time_stamp": &e.stamp, "data max type_len": &e.maxData}
	found := map[string]bool{}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		var name, value string
		if i := strings.Index(line, "=="); i >= 0 {
			name, value = line[:i], line[i+2:]
			name, _, _ = strings.Cut(name, ":")
		} else if name, value, _ = strings.Cut(line, ":"); value != "" {
			value = strings.TrimSuffix(strings.TrimSpace(value), " bits")
		}
		name = strings.TrimSpace(name)
		into, ok := want[name]
		if !ok {
			continue
		}
		n, err := strconv.ParseUint(strings.TrimSpace(value), 10, 8)
		if err != nil {
			return e, fmt.Errorf("header_event: %q is no number in the line %q", value, line)
		}
		*into, found[name] = uint32(n), true
	}
	for name := range want {
		if !found[name] && name != "time_stamp" {
			return e, fmt.Errorf("header_event: the kernel describes no %q", name)
		}
	}
	if e.lenBits == 0 || e.lenBits+e.deltaBits != payloadBits {
		return e, fmt.Errorf("header_event: %d bits of length and %d of time, which is not one word", e.lenBits, e.deltaBits)
	}
	return e, nil
}

// parseID reads an event's number out of its format file.
func parseID(text string) (uint16, error) {
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), "ID:"); ok {
			id, err := strconv.ParseUint(strings.TrimSpace(value), 10, 16)
			if err != nil {
				return 0, fmt.Errorf("%q is no event's number", value)
			}
			return uint16(id), nil
		}
	}
	return 0, fmt.Errorf("the event has no number")
}
