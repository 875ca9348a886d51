// Command drover-standalone runs Drover's control plane in one process on an
// embedded Temporal server with its web UI: the whole of it (serve), or the
// Temporal server alone (temporal).
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	_ "time/tzdata" // schedules with time zones on bare hosts

	"github.com/spf13/cobra"
	enumspb "go.temporal.io/api/enums/v1"

	"drover/standalone/temporalserver"
	"drover/workflows/api"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	err := root(slog.New(slog.NewJSONHandler(os.Stderr, nil))).ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "drover-standalone:", err)
		os.Exit(1)
	}
}

func root(logger *slog.Logger) *cobra.Command {
	cmd := &cobra.Command{
		Use: "drover-standalone", SilenceUsage: true, SilenceErrors: true,
		Short: "Drover's control plane in one process, on an embedded Temporal server",
	}
	cmd.AddCommand(serveCommand(logger), temporalCommand(logger))
	return cmd
}

func temporalCommand(logger *slog.Logger) *cobra.Command {
	opts := temporalserver.Options{SearchAttributes: searchAttributes(), Logger: logger}
	cmd := &cobra.Command{
		Use:   "temporal",
		Short: "Run the embedded Temporal server and its web UI alone",
		Long: "Run the embedded Temporal server and its web UI alone, on an SQLite file, or on a\n" +
			"PostgreSQL server whose databases it makes and upgrades.\n" +
			"Both listen without log-in: keep them on loopback.",
		Example: "  drover-standalone temporal --dir /var/lib/drover/temporal",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return withTemporal(cmd.Context(), opts, func(ctx context.Context) error {
				<-ctx.Done()
				return nil
			})
		},
	}
	cmd.Flags().StringVar(&opts.Dir, "dir", "temporal", "directory of the database")
	cmd.Flags().StringVar(&opts.Namespace, "namespace", "default", "namespace, made when absent")
	addressFlags(cmd, &opts)
	return cmd
}

// addressFlags say where Temporal, its UI and its metrics listen.
func addressFlags(cmd *cobra.Command, opts *temporalserver.Options) {
	cmd.Flags().StringVar(&opts.Listen, "listen", "127.0.0.1:7233", "address of the Temporal frontend")
	cmd.Flags().StringVar(&opts.UI, "ui", "127.0.0.1:8233", "address of the web UI; empty runs none")
	p := &temporalserver.Postgres{}
	cmd.Flags().StringVar(&p.Address, "postgres", "", "host:port of a PostgreSQL server for Temporal's databases; empty uses an SQLite file")
	cmd.Flags().StringVar(&p.User, "postgres-user", "temporal", "its user, who may make databases")
	cmd.Flags().StringVar(&p.PasswordFile, "postgres-password-file", "", "file with the user's password")
	cmd.Flags().StringVar(&p.Database, "postgres-database", "temporal", "database of the workflows; that of their index is NAME_visibility")
	cmd.PreRun = func(*cobra.Command, []string) {
		if p.Address != "" {
			opts.Postgres = p
		}
	}
	cmd.Flags().StringVar(&opts.Metrics, "temporal-metrics", "", "address of Temporal's own /metrics for Prometheus; empty serves none")
}

// searchAttributes are those by which the Temporal UI filters machines and plans.
func searchAttributes() map[string]enumspb.IndexedValueType {
	out := map[string]enumspb.IndexedValueType{}
	for _, a := range api.SearchAttributes() {
		out[a.Name] = enumspb.INDEXED_VALUE_TYPE_KEYWORD
		if a.List {
			out[a.Name] = enumspb.INDEXED_VALUE_TYPE_KEYWORD_LIST
		}
	}
	return out
}
