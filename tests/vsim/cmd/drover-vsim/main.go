// Command drover-vsim runs a simulated vCenter whose disks are real files.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"drover/tests/vsim"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:8989", "address")
	dir := flag.String("dir", "vcenter", "directory for the datastore, vsim.json and the links to attached disks")
	spec := flag.String("spec", "", "YAML file that says which VMs there are")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	if err := run(ctx, *listen, *dir, *spec); err != nil {
		fmt.Fprintln(os.Stderr, "drover-vsim:", err)
		os.Exit(1) //nolint:gocritic // the process ends
	}
}

func run(ctx context.Context, listen, dir, spec string) error {
	s, err := vsim.ReadSpec(spec)
	if err != nil {
		return err
	}
	sim, err := vsim.Start(ctx, dir, listen, s)
	if err != nil {
		return err
	}
	defer sim.Close()
	info, err := json.MarshalIndent(sim.Info(), "", "  ")
	if err != nil {
		return err
	}
	// Written last and in one step: whoever reads it may connect.
	temp := filepath.Join(dir, "vsim.json.tmp")
	if err := os.WriteFile(temp, info, 0o644); err != nil {
		return err
	}
	if err := os.Rename(temp, filepath.Join(dir, "vsim.json")); err != nil {
		return err
	}
	fmt.Fprintln(os.Stderr, "simulated vCenter at", sim.Info().URL)
	<-ctx.Done()
	return nil
}
