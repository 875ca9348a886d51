package evidence

import (
	"fmt"
	"io"
	"strings"
	"time"

	"drover/workflows/api"
)

// Markdown writes the pack for people.
func (p *Pack) Markdown(w io.Writer) error {
	m := &markdown{}
	m.head(p)
	m.machines(p)
	m.decisions(p)
	m.steps(p)
	m.calls(p)
	m.line("## Where this comes from\n")
	m.line("Made from the history of the workflow `%s` (run `%s`), %d events. SHA-256 of the history as Temporal's JSON:", p.Run, p.RunID, p.History.Events)
	m.line("\n    %s\n", p.History.SHA256)
	if p.History.File != "" {
		m.line("It lies beside this page as `%s`; Temporal's UI and command line show the same events.", p.History.File)
	}
	_, err := io.WriteString(w, m.b.String())
	return err
}

type markdown struct{ b strings.Builder }

func (m *markdown) line(format string, args ...any) { fmt.Fprintf(&m.b, format+"\n", args...) }

// cells writes a row of a table; what people wrote cannot break it.
func (m *markdown) cells(cells ...any) {
	for _, c := range cells {
		s := strings.NewReplacer("|", "\\|", "\r", "", "\n", "<br>", "<", "&lt;").Replace(fmt.Sprint(c))
		m.b.WriteString("| " + s + " ")
	}
	m.b.WriteString("|\n")
}

func (m *markdown) table(head ...any) {
	m.cells(head...)
	m.b.WriteString(strings.Repeat("|---", len(head)) + "|\n")
}

func at(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format("2006-01-02 15:04:05.0 MST")
}

func or(s, instead string) string {
	if s == "" {
		return instead
	}
	return s
}

func (g Goal) String() string {
	switch g.Verdict {
	case Unknown:
		return g.Verdict
	case NoGoal:
		return text(g.Measured) + " (" + g.Verdict + ")"
	}
	return fmt.Sprintf("%s of %s: %s", text(g.Measured), text(g.Goal), g.Verdict)
}

func (m *markdown) head(p *Pack) {
	m.line("# Evidence: %s, %s\n", p.Input.Plan, p.Input.Kind)
	m.table("", "")
	m.cells("run", p.Run)
	m.cells("asked for by", who(p.Input.By, p.Authenticated))
	m.cells("why", or(p.Input.Reason, "-"))
	if p.Input.Network != "" {
		m.cells("network", p.Input.Network)
	}
	m.cells("recovery points", or(string(p.Input.Point), string(api.PointLatest)))
	m.cells("started", at(p.Started))
	m.cells("finished", at(p.Finished))
	m.cells("outcome", strings.TrimSpace(p.State+" "+p.Message))
	m.cells("RTO of the whole", p.RTO)
	m.line("")
	for _, s := range p.Missed() {
		m.line("- **missed** %s", s)
	}
	m.line("")
}

func (m *markdown) machines(p *Pack) {
	m.line("## Machines\n")
	m.table("machine", "state", "recovery point", "its time", "consistency", "RPO", "RTO", "lost")
	for _, v := range p.Machines {
		point, lost := "-", "-"
		if v.Point != nil {
			point = fmt.Sprint(*v.Point)
		}
		if v.Loss != 0 {
			lost = text(v.Loss)
		}
		m.cells(v.Name+" "+v.Machine.String(), v.State, point, at(v.PointTime), or(v.Consistency, "-"), v.RPO, v.RTO, lost)
	}
	m.line("\nRPO: the point's age when the machine's step began, against the policy's threshold. RTO: from the start of the run to the checked machine, against the plan's goal.\n")
}

func (m *markdown) decisions(p *Pack) {
	m.line("## Who decided\n")
	if len(p.Decisions) == 0 {
		m.line("Nobody was asked, and nobody interfered.\n")
		return
	}
	m.table("when", "who", "what", "step", "note")
	for _, d := range p.Decisions {
		what := d.What
		if d.Signal {
			what += " (signal)"
		}
		m.cells(at(d.Time), who(d.By, d.Authenticated), what, or(d.Step, "the one that waited"), or(d.Note, "-"))
	}
	m.line("")
}

// who says by which name somebody came, and whom Temporal has authenticated.
func who(by, authenticated string) string {
	if authenticated == "" {
		return or(by, "-")
	}
	return or(by, "-") + ", authenticated as " + authenticated
}

func (m *markdown) steps(p *Pack) {
	m.line("## Steps\n")
	m.table("step", "kind", "state", "begun", "took", "by", "message")
	for _, s := range p.Steps {
		took := "-"
		if !s.Finished.IsZero() {
			took = text(api.Duration(s.Finished.Sub(s.Started)))
		}
		state := string(s.State)
		if s.Undo != "" {
			state += ", undo " + string(s.Undo)
		}
		m.cells(s.ID, s.Kind, state, at(s.Started), took, or(s.By, "-"), s.Message)
	}
	m.line("")
}

func (m *markdown) calls(p *Pack) {
	m.line("## What ran\n")
	m.table("event", "activity", "begun", "took", "worker", "attempts", "outcome")
	for _, c := range p.Calls {
		took := "-"
		if !c.Ended.IsZero() {
			took = text(api.Duration(c.Ended.Sub(c.Begun)))
		}
		m.cells(c.Event, c.Activity, at(c.Begun), took, or(c.Worker, "-"), c.Attempt, strings.TrimSpace(c.Outcome+" "+c.Error))
	}
	m.line("")
}
