package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"

	"github.com/spf13/cobra"

	"drover/standalone/temporalserver"
	"drover/worker/config"
	"drover/worker/configserver"
)

func serveCommand(logger *slog.Logger) *cobra.Command {
	var file string
	opts := temporalserver.Options{SearchAttributes: searchAttributes(), Logger: logger}
	cmd := &cobra.Command{
		Use:   "serve --config FILE",
		Short: "Run the configuration server and its Temporal server until SIGTERM",
		Long: "Run the configuration server, and the embedded Temporal server with its web UI, in\n" +
			"this process until SIGTERM. FILE is that of drover-config-server; its\n" +
			"temporal.address is not used, --listen takes its place, and temporal.namespace is\n" +
			"made when absent. Temporal's database is in the directory temporal of the file's\n" +
			"state. Temporal and its UI listen without log-in: keep them on loopback, or where\n" +
			"only process servers and operators reach them. Logs are JSON lines on stderr.",
		Example: "  drover-standalone serve --config /etc/drover/config-server.yaml",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := config.LoadConfigServer(file)
			if err != nil {
				return err
			}
			return serve(cmd.Context(), c, opts)
		},
	}
	cmd.Flags().StringVar(&file, "config", "", "configuration file (YAML) of the configuration server")
	_ = cmd.MarkFlagRequired("config") // the flag is there
	addressFlags(cmd, &opts)
	return cmd
}

// serve runs Temporal and on it the configuration server, until the context ends
// or the configuration server fails. Temporal stops last: what the configuration
// server's worker has under way can still be reported to it.
func serve(ctx context.Context, c *config.ConfigServer, opts temporalserver.Options) error {
	if c.Temporal.Address != opts.Listen {
		opts.Logger.Info("the embedded Temporal server takes the place of the configured one",
			"configured", c.Temporal.Address, "address", opts.Listen)
	}
	opts.Dir = filepath.Join(c.State, "temporal")
	opts.Namespace = c.Temporal.Namespace
	c.Temporal.Address = opts.Listen
	return withTemporal(ctx, opts, func(ctx context.Context) error {
		if err := configserver.Run(ctx, c, opts.Logger); err != nil {
			return fmt.Errorf("run the configuration server %s: %w", c.Name, err)
		}
		opts.Logger.Info("the configuration server stopped", "server", c.Name)
		return nil
	})
}

// withTemporal starts the server, runs f, and stops the server when f returns.
func withTemporal(ctx context.Context, opts temporalserver.Options, f func(context.Context) error) error {
	server, err := temporalserver.Start(ctx, opts)
	if err != nil {
		if ctx.Err() == nil {
			return err
		}
		opts.Logger.Info("asked to stop before Temporal was ready", "error", err.Error())
		return nil
	}
	ready := []any{"address", opts.Listen, "namespace", opts.Namespace, "directory", opts.Dir}
	if opts.UI != "" {
		ready = append(ready, "ui", "http://"+opts.UI)
	}
	opts.Logger.Info("Temporal is ready", ready...)
	err = f(ctx)
	if stopErr := server.Stop(); stopErr != nil {
		return errors.Join(err, stopErr)
	}
	opts.Logger.Info("Temporal stopped", "address", opts.Listen)
	return err
}
