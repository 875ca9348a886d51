// Package activityerr makes the typed errors of activities. The type of an
// application error is one of the api.Code* constants; whether it is tried again
// follows from the code (workflows/api/errors.go).
package activityerr

import (
	"context"
	"errors"
	"fmt"

	"go.temporal.io/sdk/temporal"

	"drover/datapath/cachestore"
	"drover/datapath/replica"
	"drover/datapath/stream"
	"drover/workflows/api"
)

// New makes an error with a code.
func New(code, format string, args ...any) error { return Wrap(code, nil, format, args...) }

// Wrap makes an error with a code that keeps its cause.
func Wrap(code string, cause error, format string, args ...any) error {
	return temporal.NewApplicationErrorWithOptions(fmt.Sprintf(format, args...), code, temporal.ApplicationErrorOptions{
		NonRetryable: !api.Retryable(code),
		Cause:        cause,
	})
}

// Text gives what an error says, to be put into the text of another one. That of an error
// with a code is its own; what it prints has its cause behind it, which its own text has
// already.
func Text(err error) string {
	if app, ok := err.(*temporal.ApplicationError); ok {
		return app.Message()
	}
	return err.Error()
}

// Of gives an error of the data path its code, with what was being done in front.
// An error that has a code already, a cancellation and nil stay as they are; an
// error that no code fits is api.CodeInternal, which is tried again.
func Of(err error, doing string, args ...any) error {
	var app *temporal.ApplicationError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &app):
		return app // Temporal reads the type of the outermost error only
	case errors.Is(err, context.Canceled):
		return err
	}
	code, hint := classify(err)
	return Wrap(code, err, "%s: %v%s", fmt.Sprintf(doing, args...), err, hint)
}

// classify finds the code of a data path error, and what to do about it.
func classify(err error) (code, hint string) {
	switch {
	case errors.Is(err, replica.ErrFenced), errors.Is(err, cachestore.ErrFenced):
		return api.CodeFenced, "; the machine has a newer owner, nothing is to be done here"
	case errors.Is(err, replica.ErrGap), errors.Is(err, replica.ErrCorrupt):
		return api.CodeReplicaDamaged, "; resync the machine"
	case errors.Is(err, stream.ErrNotCompared):
		return api.CodeNotCompared, ""
	case errors.Is(err, stream.ErrNotComplete):
		return api.CodeNotInState, ""
	case errors.Is(err, stream.ErrOtherDepth):
		return api.CodeBusy, ""
	case errors.Is(err, replica.ErrNotFound), errors.Is(err, cachestore.ErrNotFound):
		return api.CodeNotFound, ""
	case errors.Is(err, replica.ErrHeld):
		return api.CodeBusy, "; wait for the failover or test that holds it, or clean it up"
	case errors.Is(err, replica.ErrNoSpace):
		return api.CodeInternal, "; make room in the store"
	}
	return api.CodeInternal, ""
}
