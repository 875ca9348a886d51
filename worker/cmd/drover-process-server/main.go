// Command drover-process-server runs a Drover process server or master target.
package main

import (
	"github.com/spf13/cobra"

	"drover/worker/config"
	"drover/worker/processserver"
	"drover/worker/service"
)

func main() { service.Main(command()) }

func command() *cobra.Command {
	root := &cobra.Command{
		Use:   "drover-process-server",
		Short: "A process server or master target of Drover",
		Long: "A process server takes machines' changes, keeps them in the cache storage and applies\n" +
			"them to the replicas. A master target does the same on the way back, with the\n" +
			"original disks attached to it.",
		SilenceUsage: true, SilenceErrors: true,
	}
	root.AddCommand(serveCommand(), service.VersionCommand())
	return root
}

func serveCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "serve --config FILE",
		Short: "Run the server until SIGTERM",
		Long: "Run the server until SIGTERM. Logs are JSON lines on stderr. The first time it enrols\n" +
			"with the token in the configuration's tokenFile; issue one with\n" +
			"`drover-config-server token --role process-server --name NAME`. Once enrolled it\n" +
			"streams also while Temporal or the configuration server is away.",
		Example: "  drover-process-server serve --config /etc/drover/process-server.yaml",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := config.LoadProcessServer(file)
			if err != nil {
				return err
			}
			return processserver.Run(cmd.Context(), c, service.Logger(cmd.ErrOrStderr()))
		},
	}
	cmd.Flags().StringVar(&file, "config", "", "configuration file (YAML)")
	_ = cmd.MarkFlagRequired("config") // the flag is there
	return cmd
}
