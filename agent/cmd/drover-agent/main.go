// Command drover-agent is Drover's mobility service: it runs on a protected
// machine, reads its disks and streams what changed.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"drover/agent/config"
	"drover/agent/controlapi"
	"drover/agent/proxy"
	"drover/agent/quiesce"
	"drover/agent/quiesce/freeze"
	"drover/agent/run"
)

// version is set when the program is built.
var version = ""

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	err := start(ctx, command())
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "drover-agent:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	root := &cobra.Command{
		Use:   "drover-agent",
		Short: "The agent of Drover on a protected machine",
		Long: "The agent reads the machine's disks and streams what changed to the process server\n" +
			"it is assigned to. It opens no port (but for metrics, when asked to) and never\n" +
			"writes to a disk.",
		SilenceUsage: true, SilenceErrors: true,
	}
	root.AddCommand(runCommand(), enrolCommand(), statusCommand(), doctorCommand(), guardCommand(), &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), versionText())
			return err
		},
	})
	return root
}

// configured adds --config to a command and loads it.
func configured(cmd *cobra.Command, do func(context.Context, *config.Config, *slog.Logger, *quiesce.Gate) error) *cobra.Command {
	var file string
	cmd.Args = cobra.NoArgs
	configFlag(cmd, &file)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := config.Load(file)
		if err != nil {
			return err
		}
		gate := quiesce.NewGate(cmd.ErrOrStderr())
		return do(cmd.Context(), c, slog.New(slog.NewJSONHandler(gate, nil)), gate)
	}
	return cmd
}

func configFlag(cmd *cobra.Command, file *string) {
	cmd.Flags().StringVar(file, "config", config.DefaultFile(), "configuration file (YAML)")
}

func runCommand() *cobra.Command {
	return configured(&cobra.Command{
		Use:   "run",
		Short: "Run the agent until SIGTERM",
		Long: "Run the agent until SIGTERM. Logs are JSON lines on stderr. The first time it enrols\n" +
			"with the token in the configuration's tokenFile.",
		Example: "  drover-agent run --config /etc/drover/agent.yaml",
	}, func(ctx context.Context, c *config.Config, log *slog.Logger, gate *quiesce.Gate) error {
		if !c.Freeze.Off {
			if err := freeze.LockMemory(); err != nil {
				log.Warn("the agent's memory may be paged out while file systems are frozen", "error", err.Error())
			}
		}
		return run.Run(ctx, c, versionText(), log, gate)
	})
}

func enrolCommand() *cobra.Command {
	return configured(&cobra.Command{
		Use:   "enrol",
		Short: "Exchange the token for a certificate, and stop",
		Long: "Exchange the single-use token in the configuration's tokenFile for a certificate.\n" +
			"`run` does the same when there is none; this shows at once whether it works.",
		Example: "  drover-agent enrol --config /etc/drover/agent.yaml",
	}, func(ctx context.Context, c *config.Config, log *slog.Logger, _ *quiesce.Gate) error {
		dial, err := proxy.Dialer(c.Proxy)
		if err != nil {
			return err
		}
		id, err := run.Enrol(ctx, c, versionText(), controlapi.Dial(dial))
		if err != nil {
			return err
		}
		log.Info("enrolled", "peer", id.Peer.String(), "expires", id.Expires().Format(time.RFC3339))
		return nil
	})
}

// guardCommand is the process that thaws file systems when the agent does not.
func guardCommand() *cobra.Command {
	return &cobra.Command{
		Use: freeze.Verb, Short: "Freeze and thaw file systems for the agent that starts it", Args: cobra.NoArgs, Hidden: true,
		RunE: func(*cobra.Command, []string) error { return freeze.Guard() },
	}
}

// versionText is what the program was built from.
func versionText() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		return info.Main.Version
	}
	return "unknown"
}
