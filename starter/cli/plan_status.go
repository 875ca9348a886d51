package cli

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"
	"go.temporal.io/api/serviceerror"

	"drover/workflows/api"
)

func (a *app) planStatusCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "status RUN|PLAN",
		Short:   "Show a run of a plan, or a plan's newest run",
		Example: "  drover plan status plan-shop-7\n  drover plan status shop",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.connect(cmd.Context()); err != nil {
				return err
			}
			id, s, err := a.planStatus(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return a.print(planRun{id, s}, func(w io.Writer) { printPlan(w, id, s) })
		},
	}
}

func (a *app) planStatus(ctx context.Context, name string) (string, api.PlanStatus, error) {
	s, err := query[api.PlanStatus](ctx, a, name)
	var absent *serviceerror.NotFound
	if !errors.As(err, &absent) {
		return name, s, err
	}
	run, err := a.newestRun(ctx, name)
	if err != nil {
		return "", s, err
	}
	s, err = query[api.PlanStatus](ctx, a, run)
	return run, s, err
}

// newestRun gives the newest run of a plan.
func (a *app) newestRun(ctx context.Context, plan string) (string, error) {
	runs, err := a.ids(ctx, planQuery(plan), 1)
	if err != nil {
		return "", err
	}
	if len(runs) == 0 {
		return "", &notFoundError{fmt.Errorf("no run and no plan with a run is named %q", plan)}
	}
	return runs[0], nil
}
