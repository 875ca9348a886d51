package cli

import (
	"github.com/spf13/cobra"

	"drover/workflows/api"
)

func (a *app) rollBackCommand() *cobra.Command {
	var r api.ActionRequest
	cmd := &cobra.Command{
		Use:   "roll-back VM",
		Short: "Take a machine back from a failover, reprotect or failback",
		Long: "Take a machine one step back, while that is possible:\n" +
			"after a failover that is not committed the source runs and replicates again, and the machine in the target is deleted;\n" +
			"after a reprotect the machine in the target goes on, and the original's disks are let go;\n" +
			"after a failback the original goes down, and the machine in the target runs again.\n" +
			"What the side that is stopped has written is given up. A source that cannot be powered on needs a reason.",
		Example: "  drover roll-back db-1",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.act(cmd.Context(), args[0], api.ActionRollBack, r)
		},
	}
	cmd.Flags().StringVar(&r.Reason, "reason", "", "why, when the source cannot be powered on")
	return cmd
}

func (a *app) changePointCommand() *cobra.Command {
	var point pointFlags
	cmd := &cobra.Command{
		Use:   "change-point VM",
		Short: "Make a failed-over machine anew from another recovery point",
		Long: "Make a failed-over machine anew from another recovery point, before the failover is committed.\n" +
			"What the machine has written since the failover is given up. If it cannot be made, the old one is made again.",
		Example: "  drover points db-1\n  drover change-point db-1 --point-id 214",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var r api.ActionRequest
			if err := point.into(&r); err != nil {
				return err
			}
			return a.act(cmd.Context(), args[0], api.ActionChangePoint, r)
		},
	}
	point.add(cmd)
	return cmd
}
