package cli

import (
	"time"

	"github.com/spf13/cobra"

	"drover/workflows/api"
)

func (a *app) testFailoverCommand() *cobra.Command {
	var point pointFlags
	var network string
	var ttl time.Duration
	cmd := &cobra.Command{
		Use:     "test-failover VM",
		Short:   "Bring a copy of a machine up in an isolated network",
		Long:    "Bring a copy of a machine up in an isolated network, beside replication that goes on.\nDelete it with drover cleanup.",
		Example: "  drover test-failover db-1\n  drover cleanup db-1",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			r := api.ActionRequest{Network: network, CleanAfter: api.Duration(ttl)}
			if err := point.into(&r); err != nil {
				return err
			}
			return a.act(cmd.Context(), args[0], api.ActionTestFailover, r)
		},
	}
	cmd.Flags().StringVar(&network, "network", "", "isolated network (default: the machine's test network)")
	cmd.Flags().DurationVar(&ttl, "ttl", 0, "clean up by itself after so long (default: only drover cleanup does)")
	point.add(cmd)
	return cmd
}
