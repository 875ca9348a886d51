package cli

import (
	"errors"
	"fmt"
	"io"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"drover/starter/simulate"
	"drover/starter/spec"
	"drover/workflows/api"
)

func (a *app) planSimulateCommand() *cobra.Command {
	o := simulate.Options{}
	var faults []string
	var every bool
	var point pointFlags
	chosen := make([]bool, len(planKinds))
	cmd := &cobra.Command{
		Use:   "simulate FILE --test|--planned|--unplanned|...",
		Short: "Play a run of a plan against a model, with faults",
		Long: "Play a run of a plan with the workflows that a real run has, against a model of sources, targets and the store. It asks no\n" +
			"server and changes nothing. --fault lets a call fail: MACHINE=CALL as the simulation lists them, with #N for the N-th, and\n" +
			",lost when it takes effect and only its answer is lost; or the step of a plan's action. --then says what is decided about a\n" +
			"step that failed. --every-step disturbs every call in turn in every way, and goes on and back from there.\n" +
			"The exit code is 1 when something did not hold that always must.",
		Example: "  drover plan simulate shop.yaml --planned\n  drover plan simulate shop.yaml --planned --fault app-1=target.StartMachine --then back\n" +
			"  drover plan simulate shop.yaml --test --every-step",
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			var err error
			if o.Kind, err = kindOf(chosen); err != nil {
				return err
			}
			var r api.ActionRequest
			if err := point.into(&r); err != nil {
				return err
			}
			o.Point = r.Point
			for _, text := range faults {
				f, err := simulate.ParseFault(text)
				if err != nil {
					return &usageError{err}
				}
				o.Faults = append(o.Faults, f)
			}
			if o.Plan, err = spec.ReadPlan(args[0]); err != nil {
				return err
			}
			if every {
				return a.simulateEvery(o)
			}
			return a.simulate(o)
		},
	}
	f := cmd.Flags()
	for i, k := range planKinds {
		f.BoolVar(&chosen[i], string(k.kind), false, k.help)
	}
	f.StringArrayVar(&faults, "fault", nil, "call that fails, once: MACHINE=CALL[#N][,lost] or the step of an action; may be repeated")
	f.StringVar(&o.Then, "then", "", "what is decided about a step that failed: retry, skip, back or cancel (default: cancel)")
	f.StringVar(&o.Reason, "reason", "", "why; needed when a source cannot be shut down")
	f.BoolVar(&o.Verify, "verify", false, "compare every source with its replica first")
	f.BoolVar(&every, "every-step", false, "disturb every call in turn, and go on and back from there")
	f.StringVar(&point.choice, "point", string(api.PointLatest), pointHelp)
	return cmd
}

// kindOf is the one kind of run that was chosen.
func kindOf(chosen []bool) (kind api.PlanKind, err error) {
	for i, on := range chosen {
		if on && kind != "" {
			return "", &usageError{errors.New("name one kind of run only")}
		}
		if on {
			kind = planKinds[i].kind
		}
	}
	if kind == "" {
		return "", &usageError{errors.New("name the kind of run, such as --test or --planned")}
	}
	return kind, nil
}

func (a *app) simulate(o simulate.Options) error {
	r, err := simulate.Run(o)
	if err != nil {
		return &usageError{err}
	}
	if err := a.print(r, func(w io.Writer) { printSimulation(w, r) }); err != nil || len(r.Broken) == 0 {
		return err
	}
	return fmt.Errorf("%d thing(s) did not hold that always must: %s", len(r.Broken), r.Broken[0])
}

func printSimulation(w io.Writer, r simulate.Result) {
	_, _ = fmt.Fprintf(w, "%s, %s: %s (simulated: nothing was done)\n", r.Plan, r.Kind, r.State)
	t := table.NewWriter()
	t.SetOutputMirror(w)
	t.AppendHeader(table.Row{"step", "kind", "state", "undo", "message"})
	for _, s := range r.Steps {
		t.AppendRow(table.Row{s.ID, s.Kind, s.State, s.Undo, firstLine(s.Message)})
	}
	t.Render()
	for _, d := range r.Decided {
		_, _ = fmt.Fprintln(w, "decided:", d)
	}
	t = table.NewWriter()
	t.SetOutputMirror(w)
	t.AppendHeader(table.Row{"machine", "state", "runs at the", "error"})
	for _, m := range r.Machines {
		t.AppendRow(table.Row{m.Name, m.State, m.Runs, firstLine(m.Error)})
	}
	t.Render()
	_, _ = fmt.Fprintf(w, "%d calls, any of which can be a --fault:", len(r.Calls))
	for _, c := range r.Calls {
		_, _ = fmt.Fprintf(w, " %s", c)
	}
	_, _ = fmt.Fprintln(w)
	if r.Message != "" {
		_, _ = fmt.Fprintln(w, r.Message)
	}
	for _, b := range r.Broken {
		_, _ = fmt.Fprintln(w, "BROKEN:", b)
	}
}

func (a *app) simulateEvery(o simulate.Options) error {
	if len(o.Faults) > 0 || o.Then != "" {
		return &usageError{errors.New("--every-step chooses faults and decisions itself: leave out --fault and --then")}
	}
	table, err := simulate.Every(o, func(c simulate.Case) {
		for _, b := range c.Broken {
			a.note("BROKEN: %s %s, then %s: %s", c.Call, c.How, c.Then, b)
		}
	})
	if err != nil {
		return err
	}
	if err := a.print(table, func(w io.Writer) {
		_, _ = fmt.Fprintf(w, "%s, %s: %d calls, each disturbed in turn: %d runs, of which %d left something that must not be.\n",
			table.Plan, table.Kind, table.Calls, len(table.Cases), table.Broken)
	}); err != nil || table.Broken == 0 {
		return err
	}
	return fmt.Errorf("%d of %d disturbed runs left something that must not be", table.Broken, len(table.Cases))
}
