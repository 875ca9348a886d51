package api

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"drover/datapath/stream"
	"drover/datapath/throttle"
)

// FieldError says which field of a document is wrong and why.
type FieldError struct {
	Path   string `json:"path"` // e.g. "groups[1].machines[0].name"
	Reason string `json:"reason"`
}

func (e FieldError) Error() string { return e.Path + ": " + e.Reason }

// Limits of policies and plans.
const (
	MaxGroups        = 64
	MaxPlanMachines  = 512
	MaxPlanActions   = 256
	MaxName          = 63
	MaxMachineName   = 80 // as in vCenter
	MinCutInterval   = 5 * time.Second
	MaxCutInterval   = time.Hour
	MinAppConsistent = time.Hour
	MaxAppConsistent = 12 * time.Hour
	MaxRetentionStep = 16
	MaxAtOnce        = 64 // resyncs of a window per process server
	MaxActionRetries = 20
	MaxActionTimeout = 7 * 24 * time.Hour
	MaxFallBackSizes = 8
	MaxParameters    = 32 // of a runbook
	MaxParameter     = 4096
)

// runbookForm is Azure Automation's.
var runbookForm = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_-]{0,62}$`)

var digestForm = regexp.MustCompile(`^[0-9a-f]{64}$`)

var nameForm = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)

// ValidName reports whether s may name a policy, plan or group.
func ValidName(s string) bool { return nameForm.MatchString(s) }

// checker collects what is wrong.
type checker struct{ errs []FieldError }

func (c *checker) fail(path, format string, args ...any) {
	c.errs = append(c.errs, FieldError{Path: path, Reason: fmt.Sprintf(format, args...)})
}

func (c *checker) name(path, s string) {
	if !ValidName(s) {
		c.fail(path, "%q: want 1 to %d of a-z, 0-9 and -, not beginning with -", s, MaxName)
	}
}

func (c *checker) between(path string, d, low, high time.Duration) {
	if d < low || d > high {
		c.fail(path, "%s: want %s to %s", d, low, high)
	}
}

// ValidatePolicy gives all that is wrong with a policy; nothing means that it may
// be used.
func ValidatePolicy(p Policy) []FieldError {
	c := &checker{}
	c.name("name", p.Name)
	c.policy("", p)
	if p.Failback != nil {
		if p.Failback.Failback != nil {
			c.fail("failback.failback", "a failback policy has none of its own")
		}
		c.policy("failback.", *p.Failback)
	}
	return c.errs
}

func (c *checker) policy(at string, p Policy) {
	c.between(at+"cutInterval", p.CutInterval.D(), MinCutInterval, MaxCutInterval)
	if p.RPOThreshold < 0 || p.RPOThreshold > 0 && p.RPOThreshold < p.CutInterval {
		c.fail(at+"rpoThreshold", "%s: want 0 (off) or at least the cutInterval %s", p.RPOThreshold, p.CutInterval)
	}
	if p.AppConsistentEvery != 0 {
		c.between(at+"appConsistentEvery", p.AppConsistentEvery.D(), MinAppConsistent, MaxAppConsistent)
	}
	c.group(at+"consistencyGroup", p.ConsistencyGroup)
	if p.Resync.AfterDisconnect < 0 {
		c.fail(at+"resync.afterDisconnect", "%s: want 0 (never) or more", p.Resync.AfterDisconnect)
	}
	if p.NewDisks != "" && p.NewDisks != NewDisksAsk && p.NewDisks != NewDisksProtect {
		c.fail(at+"newDisks", "%q: want %s or %s", p.NewDisks, NewDisksAsk, NewDisksProtect)
	}
	if err := p.Compression.Validate(); err != nil {
		c.fail(at+"compression", "%v", err)
	}
	if p.Resync.AtOnce < 0 || p.Resync.AtOnce > MaxAtOnce {
		c.fail(at+"resync.atOnce", "%d: want 0 (%d) to %d", p.Resync.AtOnce, DefaultAtOnce, MaxAtOnce)
	}
	c.retention(at+"retention", p)
	c.window(at+"resync.window", p.Resync.Window)
	for _, wrong := range throttle.Check(p.Throttle) {
		c.fail(at+"throttle"+wrong.Path, "%s", wrong.Reason)
	}
}

func (c *checker) group(at string, g *ConsistencyGroup) {
	if g == nil {
		return
	}
	c.name(at+".name", g.Name)
	if g.ReadyWithin != 0 {
		c.between(at+".readyWithin", g.ReadyWithin.D(), stream.MinWithin, stream.MaxReady)
	}
	if g.FrozenWithin != 0 {
		c.between(at+".frozenWithin", g.FrozenWithin.D(), stream.MinWithin, stream.MaxFrozen)
	}
}

func (c *checker) retention(at string, p Policy) {
	r := p.Retention
	if r.Keep == 0 && len(r.Steps) == 0 {
		return // replica.DefaultRetention is meant
	}
	if r.Keep <= 0 {
		c.fail(at+".keep", "%s: want how long recovery points are kept", r.Keep)
	}
	if len(r.Steps) == 0 || len(r.Steps) > MaxRetentionStep {
		c.fail(at+".steps", "%d steps, want 1 to %d", len(r.Steps), MaxRetentionStep)
	}
	last := time.Duration(0)
	for i, s := range r.Steps {
		step := fmt.Sprintf("%s.steps[%d]", at, i)
		if s.Until <= last {
			c.fail(step+".until", "%s: want more than the step before (%s)", s.Until, last)
		}
		if s.Every < 0 {
			c.fail(step+".every", "%s: want 0 (all) or more", s.Every)
		}
		last = s.Until
	}
}

func (c *checker) window(at string, w Window) {
	if w.Start == "" && w.End == "" && w.TimeZone == "" && len(w.Days) == 0 {
		return
	}
	for _, p := range w.Check() {
		c.fail(at+p.Path, "%s", p.Reason)
	}
}

// ValidateNewPolicy gives what is wrong with a policy that somebody wants to keep: more
// than with one that machines have had for long.
func ValidateNewPolicy(p Policy) []FieldError {
	c := &checker{errs: ValidatePolicy(p)}
	c.resync("resync.window", p.Resync.Window)
	if p.Failback != nil {
		c.resync("failback.resync.window", p.Failback.Resync.Window)
	}
	return c.errs
}

func (c *checker) resync(at string, w Window) {
	switch {
	case w.Start == "" && w.End == "" && w.TimeZone == "" && len(w.Days) == 0:
	case w.TimeZone == "":
		c.fail(at+".timeZone", "want an IANA name such as Europe/Berlin or UTC")
	case w.Start == w.End:
		c.fail(at+".end", "%q is the start too; to resynchronise at any time leave the window out", w.End)
	}
}

// ValidatePlan gives all that is wrong with a plan; nothing means that it may be
// used.
func ValidatePlan(p Plan) []FieldError {
	c := &checker{}
	c.name("name", p.Name)
	if p.RTO < 0 {
		c.fail("rto", "%s: want 0 (no goal) or more", p.RTO)
	}
	for _, wrong := range ValidateShutdown(p.Shutdown) {
		c.fail("shutdown."+wrong.Path, "%s", wrong.Reason)
	}
	actions := c.actions("before", p.Before) + c.actions("after", p.After)
	if len(p.Groups) == 0 || len(p.Groups) > MaxGroups {
		c.fail("groups", "%d groups, want 1 to %d", len(p.Groups), MaxGroups)
	}
	seen, groups := map[string]string{}, map[string]bool{}
	for i, g := range p.Groups {
		at := fmt.Sprintf("groups[%d]", i)
		c.name(at+".name", g.Name)
		if groups[g.Name] {
			c.fail(at+".name", "group %s is there twice", g.Name)
		}
		groups[g.Name] = true
		if len(g.Machines) == 0 {
			c.fail(at+".machines", "group %s is empty: name its machines or remove it", g.Name)
		}
		for j, m := range g.Machines {
			path := fmt.Sprintf("%s.machines[%d].name", at, j)
			if m.Name == "" || len(m.Name) > MaxMachineName || strings.ContainsAny(m.Name, "/\x00\n") {
				c.fail(path, "%q: want a VM's name or machine id", m.Name)
			}
			if before, twice := seen[m.Name]; twice {
				c.fail(path, "machine %s is in the plan twice, also in %s", m.Name, before)
			}
			seen[m.Name] = at
			if m.Location != nil {
				for _, wrong := range ValidateLocation(*m.Location) {
					c.fail(fmt.Sprintf("%s.machines[%d].location.%s", at, j, wrong.Path), "%s", wrong.Reason)
				}
			}
		}
		actions += c.actions(at+".before", g.Before) + c.actions(at+".after", g.After)
	}
	if len(seen) > MaxPlanMachines {
		c.fail("groups", "%d machines, at most %d", len(seen), MaxPlanMachines)
	}
	if actions > MaxPlanActions {
		c.fail("groups", "%d actions, at most %d", actions, MaxPlanActions)
	}
	return c.errs
}

// LocatedAction is an action with its place in the plan.
type LocatedAction struct {
	Path   string     `json:"path"` // e.g. "groups[1].after[0]"
	Action PlanAction `json:"action"`
}

// Actions lists the plan's actions in the order in which they run.
func (p Plan) Actions() []LocatedAction {
	var out []LocatedAction
	add := func(at string, actions []PlanAction) {
		for i, a := range actions {
			out = append(out, LocatedAction{fmt.Sprintf("%s[%d]", at, i), a})
		}
	}
	add("before", p.Before)
	for i, g := range p.Groups {
		add(fmt.Sprintf("groups[%d].before", i), g.Before)
		add(fmt.Sprintf("groups[%d].after", i), g.After)
	}
	add("after", p.After)
	return out
}

func (c *checker) actions(at string, actions []PlanAction) int {
	names := map[string]bool{}
	for i, a := range actions {
		path := fmt.Sprintf("%s[%d]", at, i)
		if strings.TrimSpace(a.Name) == "" || len(a.Name) > MaxMachineName || strings.ContainsAny(a.Name, "/\n\x00") {
			c.fail(path+".name", "%q: want a short name without / or line breaks", a.Name)
		}
		if names[a.Name] {
			c.fail(path+".name", "action %s is there twice", a.Name)
		}
		names[a.Name] = true
		c.action(path, a)
	}
	return len(actions)
}

func (c *checker) action(path string, a PlanAction) {
	kinds := 0
	if a.Script != nil {
		kinds++
		if f := a.Script.File; f == "" || strings.ContainsAny(f, "/\\\x00") || strings.HasPrefix(f, ".") {
			c.fail(path+".script.file", "%q: want the plain name of a file in the configuration server's script directory", f)
		}
		if d := a.Script.SHA256; d != "" && !digestForm.MatchString(d) {
			c.fail(path+".script.sha256", "%q: want 64 hex digits, as sha256sum prints them", d)
		}
	}
	if a.Webhook != nil {
		kinds++
		if u := a.Webhook.URL; !strings.HasPrefix(u, "https://") && !strings.HasPrefix(u, "http://") {
			c.fail(path+".webhook.url", "want an http or https URL")
		}
	}
	if a.Runbook != nil {
		kinds++
		c.runbook(path+".runbook", *a.Runbook)
	}
	if a.Manual != nil {
		kinds++
		if strings.TrimSpace(a.Manual.Instructions) == "" {
			c.fail(path+".manual.instructions", "want what the person is to do or to check")
		}
		for _, who := range a.Manual.Approvers {
			if strings.TrimSpace(who) == "" {
				c.fail(path+".manual.approvers", "an approver has no name")
			}
		}
	}
	if kinds != 1 {
		c.fail(path, "want exactly one of script, webhook, runbook and manual, found %d", kinds)
	}
	for i, k := range a.On {
		if k == PlanReturn || !slices.Contains(PlanKinds, k) {
			c.fail(fmt.Sprintf("%s.on[%d]", path, i), "%q: want test, planned, unplanned, failback or another kind of run but return, whose phases have their own", k)
		}
	}
	if a.Timeout < 0 || a.Timeout.D() > MaxActionTimeout {
		c.fail(path+".timeout", "%s: want up to %s", a.Timeout, MaxActionTimeout)
	}
	if a.Retries < 0 || a.Retries > MaxActionRetries {
		c.fail(path+".retries", "%d: want 0 to %d", a.Retries, MaxActionRetries)
	}
	switch a.OnError {
	case "", "stop", "continue", "ask":
	default:
		c.fail(path+".onError", "%q: want stop, continue or ask", a.OnError)
	}
}

// names are the parameters', sorted.
//
//workflowcheck:ignore
func names(parameters map[string]string) []string {
	out := make([]string, 0, len(parameters))
	for k := range parameters {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

func (c *checker) runbook(path string, r RunbookAction) {
	if !runbookForm.MatchString(r.Name) {
		c.fail(path+".name", "%q: want the name of a runbook: a letter, then up to 62 letters, digits, _ and -", r.Name)
	}
	if len(r.Parameters) > MaxParameters {
		c.fail(path+".parameters", "%d parameters, at most %d", len(r.Parameters), MaxParameters)
	}
	for _, k := range names(r.Parameters) {
		v := r.Parameters[k]
		if k == "" || k == "RecoveryPlanContext" || len(k)+len(v) > MaxParameter {
			c.fail(path+".parameters", "%q: want a name that is not RecoveryPlanContext, and up to %d characters with its value", k, MaxParameter)
		}
	}
}
