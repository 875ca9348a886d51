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

// shutdownFlags say how an unplanned failover brings its source down.
type shutdownFlags struct {
	limit    time.Duration
	powerOff bool
}

func (s *shutdownFlags) add(cmd *cobra.Command) {
	cmd.Flags().DurationVar(&s.limit, "shutdown-limit", 0, "unplanned: how long the source's guest has to shut down (default: "+api.DefaultShutdown.String()+")")
	cmd.Flags().BoolVar(&s.powerOff, "then-power-off", false, "unplanned: switch a source off that has not shut down by then")
}

func (s *shutdownFlags) into(planned bool) (api.SourceShutdown, error) {
	out := api.SourceShutdown{Limit: api.Duration(s.limit), ThenPowerOff: s.powerOff}
	if wrong := api.ValidateShutdown(out); len(wrong) > 0 {
		return out, &usageError{errors.New("--shutdown-limit: " + wrong[0].Reason)}
	}
	if planned && out != (api.SourceShutdown{}) {
		return out, &usageError{errors.New("--shutdown-limit and --then-power-off are for --unplanned: a planned failover switches off a source that is frozen at its last point")}
	}
	return out, nil
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
	var source shutdownFlags
	cmd := &cobra.Command{
		Use:   "failover VM --planned|--unplanned",
		Short: "Bring a machine up on the target side",
		Long: "Bring a machine up on the target side.\n" +
			"Planned: the source makes a last recovery point while frozen and goes down; nothing is lost.\n" +
			"Unplanned: from a recovery point that exists; the source is shut down if it can be reached. If it cannot,\n" +
			"a reason must be given, because it may still be running. The source shuts down by its VMware Tools, within --shutdown-limit;\n" +
			"with --then-power-off it is switched off when it has not.",
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
			if r.Shutdown, err = source.into(planned); err != nil {
				return err
			}
			return a.act(cmd.Context(), args[0], api.ActionFailover, r)
		},
	}
	cmd.Flags().BoolVar(&planned, "planned", false, "both sides are there")
	cmd.Flags().BoolVar(&unplanned, "unplanned", false, "the source may be gone")
	cmd.Flags().StringVar(&reason, "reason", "", "why, when the source cannot be shut down")
	cmd.Flags().BoolVar(&verify, "verify", false, "planned: compare the source with its replica first; it reads all disks")
	source.add(cmd)
	timer.add(cmd)
	point.add(cmd)
	return cmd
}
