package cli

import (
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"drover/datapath/ident"
	"drover/workflows/api"
)

// pointFlags choose the recovery point.
type pointFlags struct {
	choice string
	id     uint64
}

func (p *pointFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&p.choice, "point", string(api.PointLatest), pointHelp)
	cmd.Flags().Uint64Var(&p.id, "point-id", 0, "recovery point by its number, as drover points lists them")
}

func (p *pointFlags) into(r *api.ActionRequest) error {
	r.Point, r.PointID = api.PointChoice(p.choice), ident.Seq(p.id)
	if p.id != 0 {
		r.Point = api.PointCustom
	}
	if r.Point == api.PointCustom || slices.Contains(api.PointChoices, r.Point) {
		return nil
	}
	return &usageError{errors.New("--point: want " + choices())}
}

var pointHelp = "recovery point: " + choices()

// timerFlags say what happens to a failover that nobody decides about.
type timerFlags struct{ commit, back time.Duration }

func (t *timerFlags) add(cmd *cobra.Command) {
	cmd.Flags().DurationVar(&t.commit, "commit-after", 0, "commit by itself after so long")
	cmd.Flags().DurationVar(&t.back, "roll-back-after", 0, "roll back by itself after so long, unless it is committed")
}

func (t *timerFlags) into() (after api.Duration, action string, err error) {
	switch {
	case t.commit < 0 || t.back < 0 || t.commit > 0 && t.back > 0:
		return 0, "", &usageError{errors.New("want one of --commit-after and --roll-back-after, and more than 0")}
	case t.back > 0:
		return api.Duration(t.back), api.ActionRollBack, nil
	case t.commit > 0:
		return api.Duration(t.commit), api.ActionCommit, nil
	}
	return 0, "", nil
}

// choices are the choices of a recovery point, for people.
func choices() string {
	names := make([]string, len(api.PointChoices))
	for i, c := range api.PointChoices {
		names[i] = string(c)
	}
	return strings.Join(names, ", ")
}

func (a *app) failoverCommand() *cobra.Command {
	var planned, unplanned, verify bool
	var point pointFlags
	var reason string
	var timer timerFlags
	cmd := &cobra.Command{
		Use:   "failover VM --planned|--unplanned",
		Short: "Bring a machine up on the target side",
		Long: "Bring a machine up on the target side.\n" +
			"Planned: the source makes a last recovery point while frozen and goes down; nothing is lost.\n" +
			"Unplanned: from a recovery point that exists; the source is shut down if it can be reached. If it cannot,\n" +
			"a reason must be given, because it may still be running.",
		Example: "  drover failover db-1 --planned\n  drover failover db-1 --unplanned --point-id 214 --reason \"site A burns\"",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if planned == unplanned {
				return &usageError{errors.New("exactly one of --planned and --unplanned is needed")}
			}
			r := api.ActionRequest{Planned: planned, Reason: reason, Verify: verify}
			if err := point.into(&r); err != nil {
				return err
			}
			var err error
			if r.CommitAfter, r.OnTimer, err = timer.into(); err != nil {
				return err
			}
			return a.act(cmd.Context(), args[0], api.ActionFailover, r)
		},
	}
	cmd.Flags().BoolVar(&planned, "planned", false, "both sides are there")
	cmd.Flags().BoolVar(&unplanned, "unplanned", false, "the source may be gone")
	cmd.Flags().StringVar(&reason, "reason", "", "why, when the source cannot be shut down")
	cmd.Flags().BoolVar(&verify, "verify", false, "planned: compare the source with its replica first; it reads all disks")
	timer.add(cmd)
	point.add(cmd)
	return cmd
}
