package cli

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/google/uuid"
	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"
	"go.temporal.io/sdk/client"

	"drover/starter/spec"
	"drover/workflows/api"
)

func (a *app) planCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "plan", Short: "Recovery plans: applications that fail over as a whole",
		Example: "  drover plan apply -f shop.yaml\n  drover plan run shop --test --wait",
	}
	cmd.AddCommand(a.planApplyCommand(), a.planListCommand(), a.planShowCommand(), a.planRunCommand(), a.planSimulateCommand(), a.planStatusCommand(), a.planTestsCommand(),
		a.planDecision(api.PlanApprove, "Let a run go on that waits at a manual step"),
		a.planDecision(api.PlanReject, "Let the manual step fail that a run waits at"),
		a.planDecision(api.PlanRetry, "Try the failed step again at which a run stopped"),
		a.planDecision(api.PlanSkip, "Pass over the failed step at which a run stopped"),
		a.planDecision(api.PlanPause, "Begin no other step of a run"),
		a.planDecision(api.PlanResume, "Go on with a run that is paused"),
		a.planDecision(api.PlanCancel, "Stop a run after what is under way; what it did stays"),
		a.planDecision(api.PlanBack, "Stop a run after what is under way, and take its machines back"),
	)
	return cmd
}

func (a *app) planApplyCommand() *cobra.Command {
	return a.applyCommand("plan", "shop.yaml", "Runs that are under way keep the plan they began with.",
		func(file string) (document, error) {
			p, err := spec.ReadPlan(file)
			check := func(ctx context.Context) ([]api.FieldError, error) { return a.checkPlan(ctx, p) }
			return document{p.Name, api.VaultApplyPlan, api.ApplyPlan{Plan: p, By: by()}, check}, err
		})
}

// checkTimeout bounds the look at a plan's scripts.
const checkTimeout = 30 * time.Second

// checkPlan has the configuration server look whether the plan's scripts are there.
func (a *app) checkPlan(ctx context.Context, p api.Plan) ([]api.FieldError, error) {
	wrong, err := ask[[]api.FieldError](ctx, a, checkTimeout, client.StartWorkflowOptions{ID: "check-plan-" + uuid.NewString()}, api.WorkflowCheckPlan, p)
	if err != nil {
		return nil, fmt.Errorf("check the scripts of plan %s: %w", p.Name, err)
	}
	return wrong, nil
}

func (a *app) planListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the plans", Example: "  drover plan list", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v, err := a.vault(cmd.Context())
			if err != nil {
				return err
			}
			return a.print(v.Plans, func(w io.Writer) {
				t := table.NewWriter()
				t.SetOutputMirror(w)
				t.AppendHeader(table.Row{"plan", "groups", "machines", "applied", "by"})
				for _, p := range v.Plans {
					machines := 0
					for _, g := range p.Plan.Groups {
						machines += len(g.Machines)
					}
					t.AppendRow(table.Row{p.Plan.Name, len(p.Plan.Groups), machines, p.Applied.Local().Format(time.DateTime), p.By})
				}
				t.Render()
			})
		},
	}
}

func (a *app) planShowCommand() *cobra.Command {
	return &cobra.Command{
		Use: "show PLAN", Short: "Print a plan as the file it can be applied from again",
		Example: "  drover plan show shop > shop.yaml", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			v, err := a.vault(cmd.Context())
			if err != nil {
				return err
			}
			for _, p := range v.Plans {
				if p.Plan.Name != args[0] {
					continue
				}
				text, err := spec.Format(p.Plan)
				if err != nil {
					return err
				}
				return a.print(p.Plan, func(w io.Writer) { _, _ = w.Write(text) })
			}
			return &notFoundError{fmt.Errorf("no plan %q; `drover plan list` lists them", args[0])}
		},
	}
}

// planDecision makes the command of a decision about a run that waits or runs.
func (a *app) planDecision(name, short string) *cobra.Command {
	var d api.StepDecision
	cmd := &cobra.Command{
		Use: name + " RUN", Short: short,
		Example: "  drover plan " + name + " plan-shop-7 --note \"checked with the database team\"",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.connect(cmd.Context()); err != nil {
				return err
			}
			d.By = by()
			s, err := update[api.PlanStatus](cmd.Context(), a, args[0], name, d)
			if err != nil {
				return err
			}
			return a.print(planRun{args[0], s}, func(w io.Writer) { _, _ = fmt.Fprintf(w, "%s: %s\n", args[0], s.State) })
		},
	}
	switch name {
	case api.PlanApprove, api.PlanReject, api.PlanRetry, api.PlanSkip:
		cmd.Flags().StringVar(&d.Step, "step", "", "step, when several wait (default: the one that waits)")
	}
	cmd.Flags().StringVar(&d.Note, "note", "", "note for the record")
	return cmd
}
