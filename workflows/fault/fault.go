// Package fault makes and reads the typed errors of workflows. The type of an
// application error is one of the api.Code* constants, stands in histories and
// is what people look up in docs/errors.md; which of them are tried again is
// decided in api/errors.go.
package fault

import (
	"errors"
	"fmt"
	"strings"

	"go.temporal.io/sdk/temporal"

	"drover/workflows/api"
)

// New makes an error with a code. Whether it is tried again follows the code.
func New(code, format string, args ...any) error {
	return Wrap(code, nil, format, args...)
}

// Wrap makes an error with a code that keeps its cause.
func Wrap(code string, cause error, format string, args ...any) error {
	return temporal.NewApplicationErrorWithOptions(fmt.Sprintf(format, args...), code, temporal.ApplicationErrorOptions{
		NonRetryable: !api.Retryable(code),
		Cause:        cause,
	})
}

// WithDetails makes a permanent error that carries details its caller reads
// with [Details], whatever its code. Workflows fail with it: a workflow is not
// tried again by itself.
func WithDetails(code string, cause error, details any, format string, args ...any) error {
	return temporal.NewApplicationErrorWithOptions(fmt.Sprintf(format, args...), code, temporal.ApplicationErrorOptions{
		NonRetryable: true,
		Cause:        cause,
		Details:      []any{details},
	})
}

// CancelledWithDetails makes the error of a workflow that was cancelled and has
// put everything back, with what its caller should know.
func CancelledWithDetails(details any) error { return temporal.NewCanceledError(details) }

// Details reads what WithDetails or CancelledWithDetails put into the outermost
// such error of the chain.
func Details(err error, into any) bool {
	var app *temporal.ApplicationError
	if errors.As(err, &app) && app.HasDetails() {
		return app.Details(into) == nil
	}
	var cancelled *temporal.CanceledError
	return errors.As(err, &cancelled) && cancelled.HasDetails() && cancelled.Details(into) == nil
}

// Code gives the error's code: that of the outermost application error of its
// chain that has one of ours; for an activity that ran out of time, that of the
// system it called; CodeInternal for anything else; "" for nil and for a
// cancellation.
func Code(err error) string {
	if err == nil {
		return ""
	}
	for e := err; e != nil; e = errors.Unwrap(e) {
		var app *temporal.ApplicationError
		if !errors.As(e, &app) {
			break
		}
		if known(app.Type()) {
			return app.Type()
		}
		e = app
	}
	var timeout *temporal.TimeoutError
	switch {
	case errors.As(err, &timeout):
		return ofTimeout(err)
	case Cancelled(err):
		return ""
	}
	return api.CodeInternal
}

// ofTimeout gives the code of the system that did not answer.
func ofTimeout(err error) string {
	var activity *temporal.ActivityError
	if !errors.As(err, &activity) {
		return api.CodeInternal
	}
	name := activity.ActivityType().GetName()
	switch {
	case api.RunsOnHost(name):
		return api.CodeServerLost
	case strings.HasPrefix(name, "vsphere."):
		return api.CodeVCenter
	case strings.HasPrefix(name, "target."):
		return api.CodeTarget
	case strings.HasPrefix(name, "action."):
		return api.CodeActionFailed
	}
	return api.CodeInternal
}

func known(code string) bool {
	for _, c := range api.Codes() {
		if c == code {
			return true
		}
	}
	return false
}

// Cancelled reports whether the error is a cancellation, the workflow's own or
// that of a child or activity.
func Cancelled(err error) bool {
	var app *temporal.ApplicationError
	if errors.As(err, &app) && known(app.Type()) {
		return false
	}
	var cancelled *temporal.CanceledError
	return errors.As(err, &cancelled)
}

// HostLost reports whether the error says that a process server or master target
// does not answer, as opposed to answering with an error.
func HostLost(err error) bool { return Code(err) == api.CodeServerLost }

// Message gives the error's text for people, without the wrapping that Temporal
// adds at every boundary.
func Message(err error) string {
	if err == nil {
		return ""
	}
	var app *temporal.ApplicationError
	if errors.As(err, &app) {
		return app.Message()
	}
	var timeout *temporal.TimeoutError
	var activity *temporal.ActivityError
	switch {
	case errors.As(err, &timeout) && errors.As(err, &activity):
		return fmt.Sprintf("%s got no answer (%s)", activity.ActivityType().GetName(), timeout.TimeoutType())
	case errors.As(err, &timeout):
		return fmt.Sprintf("no answer (%s)", timeout.TimeoutType())
	case Cancelled(err):
		return "cancelled"
	}
	return err.Error()
}
