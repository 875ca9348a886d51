package main

import (
	"context"
	"fmt"
	"log/slog"
	"os/exec"
	"strings"

	"drover/agent/tracker"
	"drover/agent/tracker/changes"
	"drover/agent/tracker/choose"
	"drover/agent/tracker/ebpf"
	"drover/agent/tracker/trace"
	"drover/tests/lab/guest"
)

// attach makes a block device of an image, which is what an agent finds in a machine.
// Where that is not allowed the image itself is the disk.
func attach(ctx context.Context, image string) (path string, detach func() error) {
	losetup := guest.Tool("losetup")
	out, err := exec.CommandContext(ctx, losetup, "--show", "-f", image).Output()
	if err != nil {
		return image, func() error { return nil }
	}
	path = strings.TrimSpace(string(out))
	return path, func() error {
		if out, err := exec.Command(losetup, "-d", path).CombinedOutput(); err != nil {
			return fmt.Errorf("losetup -d %s: %w: %s", path, err, out)
		}
		return nil
	}
}

// track is the tracker that an agent takes by itself.
func track() tracker.Tracker {
	return choose.New(slog.New(slog.DiscardHandler),
		choose.Candidate{Name: ebpf.Name, Open: func() (changes.Source, error) { return ebpf.Open("") }},
		choose.Candidate{Name: trace.Name, Open: func() (changes.Source, error) { return trace.Open(trace.Options{}) }})
}
