package cli

import (
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jedib0t/go-pretty/v6/table"
	"go.temporal.io/sdk/client"

	"drover/starter/evidence"
	"drover/starter/forecast"
	"drover/workflows/api"
)

const (
	dryRunTimeout = time.Minute
	// maxPast is how many runs before are looked at, newest first.
	maxPast = 50
)

// dryRun is what a run would do, as far as can be known.
type dryRun struct {
	Plan     string           `json:"plan"`
	Kind     api.PlanKind     `json:"kind"`
	Steps    []dryStep        `json:"steps"`
	Whole    forecast.Time    `json:"whole"`
	Unknown  []string         `json:"unknown,omitempty"` // steps that no run before had
	RTO      api.Duration     `json:"rto,omitempty"`     // the plan's goal
	Problems []string         `json:"problems"`          // why the run would fail
	Guests   []string         `json:"guests,omitempty"`  // what speaks against their boot in the target; it blocks nothing
	Drill    string           `json:"drill,omitempty"`   // the last test that was done; Changes are since then
	Changes  []string         `json:"changes,omitempty"`
	past     []*evidence.Pack // of the same kind
	plan     api.Plan
}

// dryStep is one step of it.
type dryStep struct {
	ID      string        `json:"id"`
	Kind    string        `json:"kind"`
	Does    string        `json:"does"`
	Takes   forecast.Time `json:"takes"`
	Problem string        `json:"problem,omitempty"`
}

// dryPlan shows what a run would do, and does nothing. It fails when the run would.
func (a *app) dryPlan(ctx context.Context, in api.PlanRunInput) error {
	v, err := a.vault(ctx)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(v.Plans, func(p api.StoredPlan) bool { return p.Plan.Name == in.Plan })
	if i < 0 {
		return unknownPlan(in.Plan)
	}
	plan := v.Plans[i].Plan
	d := &dryRun{Plan: in.Plan, Kind: in.Kind, RTO: plan.RTO, Problems: []string{}}
	d.plan = plan
	status, err := a.compilePlan(ctx, in)
	if err != nil {
		return err
	}
	if err := a.past(ctx, d, plan); err != nil {
		return err
	}
	times := forecast.Of(status.Steps, d.past)
	d.Whole, d.Unknown = times.Whole, times.Unknown
	for _, s := range status.Steps {
		step := dryStep{ID: s.ID, Kind: s.Kind, Does: doesAction(plan, s), Takes: times.Steps[s.ID]}
		if s.Kind == "machine" {
			if step.Does, step.Problem, err = a.dryMachine(ctx, ofPhase(in, s), d, v, s.Name); err != nil {
				return err
			}
			if s.Phase != "" && s.Phase != api.PlanReprotect {
				step.Problem = "" // the phases before it come first
			}
			if step.Problem == "" && s.Problem != "" {
				step.Problem = refuser(ofPhase(in, s).Kind) + " would refuse: " + s.Problem
			}
		}
		if step.Problem != "" {
			d.Problems = append(d.Problems, step.ID+": "+step.Problem)
		}
		d.Steps = append(d.Steps, step)
	}
	if err := a.print(d, d.show); err != nil || len(d.Problems) == 0 {
		return err
	}
	return fmt.Errorf("a run of plan %s, %s, would fail now: %d problem(s)", in.Plan, in.Kind, len(d.Problems))
}

// compilePlan has the steps listed, and scripts and machines looked up, as a run begins.
func (a *app) compilePlan(ctx context.Context, in api.PlanRunInput) (api.PlanStatus, error) {
	in.DryRun = true
	return ask[api.PlanStatus](ctx, a, dryRunTimeout, client.StartWorkflowOptions{
		ID: "dry-run-" + in.Plan + "-" + uuid.NewString(), StaticSummary: fmt.Sprintf("plan %s, %s: dry run", in.Plan, in.Kind),
	}, api.WorkflowRecoveryPlan, in)
}

// past reads the runs before: those of the same kind for how long steps take, and the
// last test that was done for what has changed since.
func (a *app) past(ctx context.Context, d *dryRun, plan api.Plan) error {
	runs, err := a.ids(ctx, planQuery(d.Plan), maxPast)
	if err != nil {
		return err
	}
	for _, run := range runs {
		h, err := a.history(ctx, run)
		if err != nil {
			return err
		}
		p, _, err := evidence.Read(run, h)
		if err != nil {
			return err
		}
		if p.Input.Kind == d.Kind && p.State == "done" {
			d.past = append(d.past, p)
		}
		if d.Drill == "" && p.Input.Kind == api.PlanTest && p.State == "done" && p.Plan != nil {
			d.Drill = run
			if d.Changes, err = forecast.Changes(*p.Plan, plan); err != nil {
				return err
			}
		}
	}
	return nil
}

// ofPhase is the run as a step of one of its phases has it.
func ofPhase(in api.PlanRunInput, s api.PlanStep) api.PlanRunInput {
	if s.Phase != "" {
		in.Kind = s.Phase
	}
	return in
}

// dryMachine says what the run would do with a machine, and why it could not.
func (a *app) dryMachine(ctx context.Context, in api.PlanRunInput, d *dryRun, v api.VaultStatus, name string) (does, problem string, err error) {
	m, err := memberOf(v, name)
	if err != nil {
		return "", "", err
	}
	line, err := a.line(ctx, m)
	if err != nil {
		return "", "", err
	}
	s, action := line.Machine, api.ActionOf(in.Kind)
	does = action
	switch action {
	case api.ActionFailover, api.ActionTestFailover:
		if s.Agent != nil {
			for _, finding := range against(s.Agent.Preflight) {
				d.Guests = append(d.Guests, m.Name+": "+finding)
			}
		}
		does = fmt.Sprintf("%s from %s", action, point(in, line))
		switch in.Kind {
		case api.PlanPlanned:
			does = action + " from a last point, the source switched off while it is frozen there"
		case api.PlanUnplanned:
			does += ", " + bringsDown(d.plan.Shutdown, in.Reason)
		}
		network := s.TargetSpec.Network
		if action == api.ActionTestFailover {
			network = s.TargetSpec.TestNetwork
		}
		if in.Network != "" {
			network = in.Network
		}
		does += ", into network " + network
	case api.ActionReprotect:
		does = "reprotect, on to the original's disks"
		if at := locationOf(d.plan, name); at != nil {
			does = "reprotect, on to a VM that is made anew: " + at.String()
		}
	}
	switch {
	case s.Doing != "" && !slices.Contains(s.Possible, action):
		problem = "busy with " + s.Doing
	case !slices.Contains(s.Possible, action):
		problem = fmt.Sprintf("%s is not possible in state %s", action, s.State)
	}
	for _, p := range s.Problems {
		if problem == "" && !p.Failover && (action == api.ActionFailover || action == api.ActionTestFailover) {
			problem = p.Code + ": " + p.Cause
		}
	}
	return does, problem, nil
}

// locationOf is where the plan has a machine's VM made anew; nil: nowhere.
func locationOf(p api.Plan, name string) *api.Location {
	for _, g := range p.Groups {
		for _, m := range g.Machines {
			if m.Name == name {
				return m.Location
			}
		}
	}
	return nil
}

// refuser is who was asked whether a step would be refused.
func refuser(kind api.PlanKind) string {
	if kind == api.PlanReprotect {
		return "vCenter"
	}
	return "the target"
}

// bringsDown says what becomes of the source in an unplanned failover.
func bringsDown(s api.SourceShutdown, reason string) string {
	text := fmt.Sprintf("the source has %s to shut down", s.Within())
	switch {
	case s.ThenPowerOff:
		return text + ", then it is switched off"
	case reason != "":
		return text + "; if it does not, it may go on running"
	}
	return text + "; if it does not, this step fails"
}

// point is the recovery point that a failover would take, as far as is known.
func point(in api.PlanRunInput, line machineLine) string {
	choice := in.Point
	if choice == "" {
		choice = api.PointLatest
	}
	newest := line.Machine.LastPoint
	if choice == api.PointLatestApp || newest == 0 || line.Stream == nil {
		return "its " + string(choice) + " point"
	}
	return fmt.Sprintf("its %s point (the newest is %d, %s old)", choice, newest, age(time.Now(), line.Stream.PointTime))
}

// doesAction says what a step that is no machine's does.
func doesAction(p api.Plan, s api.PlanStep) string {
	all := slices.Concat(p.Before, p.After)
	for _, g := range p.Groups {
		all = slices.Concat(all, g.Before, g.After)
	}
	for _, act := range all {
		if act.Name != s.Name {
			continue
		}
		switch {
		case act.Script != nil:
			return fmt.Sprintf("run %s %q", act.Script.File, act.Script.Args)
		case act.Webhook != nil:
			return "post to " + act.Webhook.URL
		case act.Manual != nil:
			return "wait for a person: " + firstLine(act.Manual.Instructions)
		}
	}
	return s.Name
}

func unknownPlan(name string) error {
	return &notFoundError{fmt.Errorf("no plan %q; `drover plan list` lists them, `drover plan apply -f FILE` adds one", name)}
}

func (d *dryRun) show(w io.Writer) {
	_, _ = fmt.Fprintf(w, "%s, %s: what a run would do; nothing was done\n", d.Plan, d.Kind)
	t := table.NewWriter()
	t.SetOutputMirror(w)
	t.AppendHeader(table.Row{"step", "kind", "does", "P50", "P95", "runs", "problem"})
	for _, s := range d.Steps {
		p50, p95 := "-", "-"
		if s.Takes.Runs > 0 {
			p50, p95 = seconds(s.Takes.P50), seconds(s.Takes.P95)
		}
		t.AppendRow(table.Row{s.ID, s.Kind, s.Does, p50, p95, s.Takes.Runs, s.Problem})
	}
	t.Render()
	d.showTimes(w)
	switch {
	case d.Drill == "":
		_, _ = fmt.Fprintln(w, "The plan has never been tested: drover plan run "+d.Plan+" --test")
	case len(d.Changes) == 0:
		_, _ = fmt.Fprintf(w, "Nothing has changed in the plan since the test %s.\n", d.Drill)
	default:
		_, _ = fmt.Fprintf(w, "Changed in the plan since the test %s:\n", d.Drill)
		for _, c := range d.Changes {
			_, _ = fmt.Fprintln(w, "  "+c)
		}
	}
	for _, g := range d.Guests {
		_, _ = fmt.Fprintln(w, "may not boot in the target:", g)
	}
	for _, p := range d.Problems {
		_, _ = fmt.Fprintln(w, "would fail:", p)
	}
}

func (d *dryRun) showTimes(w io.Writer) {
	if len(d.Unknown) == len(d.Steps) {
		_, _ = fmt.Fprintf(w, "No run of this kind was done before: how long it takes is not known.\n")
		return
	}
	_, _ = fmt.Fprintf(w, "It would take %s (P50), %s at most (every step at its P95)", seconds(d.Whole.P50), seconds(d.Whole.P95))
	if len(d.Unknown) > 0 {
		_, _ = fmt.Fprintf(w, ", without %d step(s) that no run before had", len(d.Unknown))
	}
	if d.RTO != 0 && d.Kind.BringsUp() {
		_, _ = fmt.Fprintf(w, "; the plan's goal is %s", d.RTO.D())
	}
	_, _ = fmt.Fprintln(w, ".")
}

func seconds(d api.Duration) string { return d.D().Round(100 * time.Millisecond).String() }
