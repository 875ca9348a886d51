package wire

import (
	"errors"
	"fmt"
	"time"

	"drover/datapath/changeset"
	"drover/datapath/ident"
)

// maxWithin bounds how long a round waits for a step.
const maxWithin = 10 * time.Minute

// roundOf gives the round of a cut; 0 of one that is of no group.
func roundOf(c changeset.Cut) ident.Round {
	if c.Group == nil {
		return 0
	}
	return c.Group.Round
}

func (m *Barrier) marshal(e *encoder) {
	e.u64(uint64(m.Round))
	e.u8(uint8(m.Step))
	e.flag(m.Scripts)
	e.i64(int64(m.Within))
}

func (m *Barrier) unmarshal(d *decoder) {
	m.Round = ident.Round(d.u64())
	m.Step = Step(d.u8())
	m.Scripts = d.flag()
	m.Within = d.duration()
}

// Validate checks the fields.
func (m *Barrier) Validate() error {
	switch {
	case m.Round == 0:
		return errors.New("a barrier of no round")
	case m.Step < StepSend || m.Step > StepAlone:
		return fmt.Errorf("unknown step %d", m.Step)
	case m.Within < 0 || m.Within > maxWithin:
		return fmt.Errorf("a step within %s, at most %s", m.Within, maxWithin)
	}
	return nil
}

func (m *Reached) marshal(e *encoder) {
	e.u64(uint64(m.Round))
	e.u8(uint8(m.Step))
	e.text(m.Missed)
}

func (m *Reached) unmarshal(d *decoder) {
	m.Round = ident.Round(d.u64())
	m.Step = Step(d.u8())
	m.Missed = d.text(maxNote)
}

// Validate checks the fields.
func (m *Reached) Validate() error {
	if m.Round == 0 || m.Step < StepSend || m.Step > StepAlone {
		return fmt.Errorf("step %d of round %s", m.Step, m.Round)
	}
	return validText("why it was missed", m.Missed, maxNote)
}
