// Command drover-demo runs the whole life of a three-machine application in a lab
// on this machine, as an operator would with the CLI, and proves every step.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"drover/tests/azurite"
	"drover/tests/lab"
	"drover/tests/replay"
)

func main() {
	var o options
	flag.StringVar(&o.dir, "dir", "build/demo", "directory for everything the demo makes; emptied first")
	flag.StringVar(&o.bin, "bin", "build/bin", "directory of the programs")
	flag.BoolVar(&o.keep, "keep", false, "leave everything running at the end, until Ctrl-C")
	flag.StringVar(&o.content, "content", "", "directory that fills the disks (default: the Go tool chain)")
	flag.StringVar(&o.histories, "histories", "", "directory for the workflows' histories (for the replay tests)")
	flag.StringVar(&o.cloud, "cloud", "", "azurite: replicas in page blobs and change sets in block blobs of an emulated storage account, and machines in an emulated Azure")
	flag.DurationVar(&o.limit, "limit", 15*time.Minute, "give up after")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "\ndemo:", err)
		stop()
		os.Exit(1) //nolint:gocritic // stop was called
	}
}

type options struct {
	dir, bin, content string
	histories         string
	cloud             string
	keep              bool
	limit             time.Duration
}

// startCloud starts what the replicas are kept in, and gives its endpoint; nothing for
// directories.
func startCloud(ctx context.Context, cloud, dir string) (endpoint string, stop func(), err error) {
	switch cloud {
	case "", "local":
		return "", func() {}, nil
	case "azurite":
		at := filepath.Join(dir, "azurite")
		if err := os.Mkdir(at, 0o700); err != nil {
			return "", nil, err
		}
		s, err := azurite.Start(ctx, at)
		if err != nil {
			return "", nil, err
		}
		return s.Endpoint(), func() {
			if err := s.Stop(); err != nil {
				fmt.Fprintln(os.Stderr, "demo:", err)
			}
		}, nil
	}
	return "", nil, fmt.Errorf("cloud %q: want local or azurite", cloud)
}

// marker is a file that says that a directory is ours to empty.
const marker = ".drover-demo"

// prepare empties the demo's directory, but only one that a demo made.
func prepare(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	if _, err := os.Stat(filepath.Join(dir, marker)); len(entries) > 0 && err != nil {
		return "", fmt.Errorf("%s is not empty and was not made by a demo: name another --dir", dir)
	}
	if err := os.RemoveAll(dir); err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	return dir, os.WriteFile(filepath.Join(dir, marker), nil, 0o644)
}

func run(ctx context.Context, o options) error {
	if err := lab.NeedTools(); err != nil {
		return err
	}
	dir, err := prepare(o.dir)
	if err != nil {
		return err
	}
	bin, err := filepath.Abs(o.bin)
	if err != nil {
		return err
	}
	account, stop, err := startCloud(ctx, o.cloud, dir)
	if err != nil {
		return err
	}
	defer stop()
	world, err := lab.New(lab.Options{Dir: dir, Bin: bin, VMs: machines(o.content), Azure: account})
	if err != nil {
		return err
	}
	d := newDemo(world)
	limited, cancel := context.WithTimeout(ctx, o.limit)
	failed := d.play(limited)
	cancel()
	d.report.Seconds = time.Since(d.report.Started).Seconds()
	d.report.judge()
	d.table()
	err = errors.Join(failed, d.report.save(dir))
	if o.histories != "" && failed == nil {
		err = errors.Join(err, replay.Record(ctx, world.TemporalAddress, o.histories))
	}
	if o.keep && ctx.Err() == nil {
		d.addresses()
		<-ctx.Done()
	}
	err = errors.Join(err, world.Close())
	if err == nil && !d.report.Proven {
		err = errors.New("not everything was proven")
	}
	if err != nil {
		return fmt.Errorf("%w\n(logs are in %s, the report is %s)", err, world.Path("log"), filepath.Join(dir, "report.json"))
	}
	return nil
}
