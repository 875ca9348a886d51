//go:build linux

package trace

import (
	"fmt"
	"path/filepath"
	"strings"
)

// maxFilter bounds the text of a filter; the kernel takes less than a page.
const maxFilter = 4000

// reads are how the kernel writes reads, as far as filters leave them out. One with
// flags that are not here comes through and is left out by us.
var reads = []string{"R", "RA", "RS", "RM", "RSM", "RAM", "RAS"}

// filters gives what events of requests are to be let through: of these devices, and
// no reads. The later ones are for kernels that do not take the earlier ones.
func filters(devices []*device) []string {
	var list, none []string
	for _, d := range devices {
		list = append(list, fmt.Sprintf("dev == %d", number(d.Major, d.Minor)))
	}
	for _, r := range reads {
		none = append(none, fmt.Sprintf("rwbs != %q", r))
	}
	ours := "(" + strings.Join(list, " || ") + ")"
	noReads := strings.Join(none, " && ")
	var out []string
	for _, f := range []string{ours + " && " + noReads, ours, noReads} {
		if len(f) < maxFilter {
			out = append(out, f)
		}
	}
	return append(out, noFilter)
}

// noFilter lets all events through.
const noFilter = "0"

// onlyDiscards is the filter of discards that are no requests yet. They name partitions,
// which come and go, so all devices' come through.
var onlyDiscards = []string{`rwbs ~ "*D*"`, noFilter}

// choose has the kernel trace what the devices need. A filter is changed in one step,
// so nothing is missed meanwhile.
func (s *Source) choose() error {
	ranges := false
	for _, d := range s.devices {
		ranges = ranges || d.ranges
	}
	s.set = map[string]string{"tracing_on": ""}
	for k, name := range eventNames {
		dir := filepath.Join(blockDir, name)
		list, on := filters(s.devices), len(s.devices) > 0
		if k == bioQueue {
			list, on = onlyDiscards, ranges
		}
		if !on {
			if err := writeText(filepath.Join(s.instance, dir, "enable"), "0"); err != nil {
				return fmt.Errorf("stop to trace %s: %w", name, err)
			}
			continue
		}
		if err := s.filter(dir, list); err != nil {
			return fmt.Errorf("filter the trace of %s: %w", name, err)
		}
		if err := writeText(filepath.Join(s.instance, dir, "enable"), "1"); err != nil {
			return fmt.Errorf("trace %s: %w", name, err)
		}
		s.set[filepath.Join(dir, "filter")], s.set[filepath.Join(dir, "enable")] = "", ""
	}
	s.enabled = len(s.devices) > 0
	for name := range s.set {
		text, err := readText(filepath.Join(s.instance, name))
		if err != nil {
			return err
		}
		s.set[name] = text
	}
	return nil
}

// filter sets the first filter that the kernel takes.
func (s *Source) filter(dir string, list []string) (err error) {
	for _, f := range list {
		if err = writeText(filepath.Join(s.instance, dir, "filter"), f); err == nil {
			return nil
		}
	}
	return err
}

// untouched looks whether somebody else has changed what is traced. If so, it is a gap,
// and everything is set again.
func (s *Source) untouched() error {
	if !s.enabled {
		return nil
	}
	for name, want := range s.set {
		text, err := readText(filepath.Join(s.instance, name))
		if err != nil {
			return err
		}
		if text == want {
			continue
		}
		s.ring.gap.add(0, "somebody has changed %s of our trace instance from %q to %q", name, strings.TrimSpace(want), strings.TrimSpace(text))
		if err := writeText(filepath.Join(s.instance, "tracing_on"), "1"); err != nil {
			return err
		}
		return s.choose()
	}
	return nil
}
