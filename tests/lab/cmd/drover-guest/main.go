// Command drover-guest is the application inside a simulated VM (run), and the
// agent's hook that freezes and thaws it (hook).
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"drover/tests/lab/guest"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	root := &cobra.Command{Use: "drover-guest", SilenceUsage: true}
	root.AddCommand(runCommand(), hookCommand())
	err := root.ExecuteContext(ctx)
	stop()
	if err != nil {
		os.Exit(1)
	}
}

func runCommand() *cobra.Command {
	var opts guest.Options
	var disks []string
	cmd := &cobra.Command{
		Use: "run", Short: "Keep changing files on the disks until terminated",
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, d := range disks {
				name, path, ok := strings.Cut(d, "=")
				if !ok {
					return fmt.Errorf("--disk %q: want NAME=PATH", d)
				}
				opts.Disks = append(opts.Disks, guest.Disk{Name: name, Path: path})
			}
			if len(opts.Disks) == 0 {
				return errors.New("no --disk given")
			}
			return guest.Run(cmd.Context(), opts)
		},
	}
	f := cmd.Flags()
	f.StringArrayVar(&disks, "disk", nil, "NAME=PATH of a disk; repeat for more")
	f.StringVar(&opts.Socket, "socket", "", "where freeze and thaw are asked for")
	f.StringVar(&opts.Ledger, "ledger", "", "file for the digests at every freeze")
	f.DurationVar(&opts.Pause, "pause", 200*time.Millisecond, "pause between two writes")
	f.DurationVar(&opts.Limit, "limit", 20*time.Second, "end a freeze that nobody thaws")
	return cmd
}

func hookCommand() *cobra.Command {
	var socket string
	cmd := &cobra.Command{
		Use: "hook", Short: "Freeze or thaw the guest, as DROVER_PHASE says",
		RunE: func(*cobra.Command, []string) error {
			r := guest.Request{Op: os.Getenv("DROVER_PHASE"), Machine: os.Getenv("DROVER_MACHINE"), Final: os.Getenv("DROVER_FINAL") == "1"}
			r.Epoch, _ = strconv.ParseUint(os.Getenv("DROVER_EPOCH"), 10, 64)
			r.Seq, _ = strconv.ParseUint(os.Getenv("DROVER_SEQ"), 10, 64)
			return guest.Ask(socket, r)
		},
	}
	cmd.Flags().StringVar(&socket, "socket", "", "the guest's socket")
	return cmd
}
