package api

import "strings"

// Error is what the catalogue says of a code.
type Error struct {
	Code      string
	Component string // where it arises; what raises it may name the very server
	Cause     string // what it means
	Evidence  string // where to look for what happened
	Action    string // what the operator should do
	Failover  FailoverWord
	// Permanent errors are never tried again: the request, the state or the data is wrong,
	// or somebody has to decide. Everything else (a server away, vCenter or the target
	// busy) is worth another try.
	Permanent bool
	// Resync: a stream that ends with it leaves a replica that only a resync mends.
	Resync bool
}

// FailoverWord says what an error means for a failover of the machine.
type FailoverWord string

// The words.
const (
	FailoverUntouched   FailoverWord = "-"   // not of a machine's replica: it changes nothing
	FailoverPossible    FailoverWord = "yes" // to any recovery point there is
	FailoverOlderPoints FailoverWord = "yes, to points from before"
	FailoverBlocked     FailoverWord = "no" // not before it is mended
)

// Catalogue gives all codes that a person may meet, in order. docs/errors.md is
// made from it (make errors).
func Catalogue() []Error { return append([]Error(nil), catalogue...) }

// Explain gives what the catalogue says of a code; an unknown code gets the word
// for what was not expected.
func Explain(code string) Error {
	for _, e := range catalogue {
		if e.Code == code {
			return e
		}
	}
	e := Explain(CodeInternal)
	e.Code = code
	return e
}

// ofWorkflows reports whether errors of workflows and activities carry the code:
// 1xxx are the control API's, 5xxx the health of servers.
func ofWorkflows(code string) bool {
	return !strings.HasPrefix(code, "DRV-1") && !strings.HasPrefix(code, "DRV-5")
}

// Codes gives all codes that errors of workflows and activities carry.
func Codes() []string { return codes(func(Error) bool { return true }) }

// PermanentCodes gives the codes that are never tried again. The retry policies
// of the workflows are made from it; activities ask [Retryable].
func PermanentCodes() []string { return codes(func(e Error) bool { return e.Permanent }) }

func codes(wanted func(Error) bool) (out []string) {
	for _, e := range catalogue {
		if ofWorkflows(e.Code) && wanted(e) {
			out = append(out, e.Code)
		}
	}
	return out
}

// Retryable reports whether an error with this code is worth another try. An
// unknown code is.
func Retryable(code string) bool { return !Explain(code).Permanent }

// MarksForResync reports whether a stream that ends with this code leaves a
// replica that only a resync mends.
func MarksForResync(code string) bool { return Explain(code).Resync }

// Complete fills what the raiser of a problem left to the catalogue.
func (p Problem) Complete() Problem {
	e := Explain(p.Code)
	if p.Component == "" {
		p.Component = e.Component
	}
	if p.Cause == "" {
		p.Cause = e.Cause
	}
	if p.Evidence == "" {
		p.Evidence = e.Evidence
	}
	if p.Action == "" {
		p.Action = e.Action
	}
	if p.Health == "" {
		p.Health = Warning
	}
	return p
}
