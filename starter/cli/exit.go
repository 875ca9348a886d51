package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/temporal"

	"drover/starter/spec"
	"drover/workflows/api"
)

// Exit codes. They never change their meaning.
const (
	exitOK         = 0
	exitFailed     = 1
	exitUsage      = 2
	exitNotNow     = 3
	exitNotFound   = 4
	exitNoTemporal = 5
	exitWaits      = 6
	exitDiffers    = 7
)

const exitCodesText = `0  done
1  it was tried and failed
2  wrong usage, or a file that was refused; nothing was started
3  refused: not possible in the machine's present state, or another action is running
4  what was named does not exist
5  Temporal does not answer
6  the plan run waits for a person
7  source and replica differ, and what differs could not be mended`

func exitCodesTopic() *cobra.Command {
	return &cobra.Command{Use: "exit-codes", Short: "The exit codes and what they mean", Long: exitCodesText}
}

// usageError is a wrong command line.
type usageError struct{ error }

func (e *usageError) Unwrap() error { return e.error }

// noTemporalError says that Temporal does not answer.
type noTemporalError struct {
	address string
	error
}

func (e *noTemporalError) Unwrap() error { return e.error }

// waitsError ends a wait for a plan run that waits for a person.
type waitsError struct{ run, step string }

func (e *waitsError) Error() string {
	if e.step == "" {
		return fmt.Sprintf("the plan run is paused; go on with: drover plan resume %s", e.run)
	}
	return fmt.Sprintf("the plan run waits for a person at step %s; go on with: drover plan approve (or retry, when it failed) %s", e.step, e.run)
}

// differsError says that a comparison found what could not be mended.
type differsError struct{ name string }

func (e *differsError) Error() string {
	return fmt.Sprintf("the replica of %[1]s is not what the source is, and could not be mended: it is marked for resync; go on with: drover resync %[1]s", e.name)
}

// notFoundError names what is not there.
type notFoundError struct{ error }

func (e *notFoundError) Unwrap() error { return e.error }

func exitCode(err error) int {
	var usage *usageError
	var file *spec.Error
	var lost *noTemporalError
	var waits *waitsError
	var missing *notFoundError
	var differs *differsError
	var absent *serviceerror.NotFound
	switch {
	case errors.As(err, &usage), errors.As(err, &file):
		return exitUsage
	case errors.As(err, &waits):
		return exitWaits
	case errors.As(err, &differs):
		return exitDiffers
	case errors.As(err, &lost), unavailable(err):
		return exitNoTemporal
	case errors.As(err, &missing), errors.As(err, &absent):
		return exitNotFound
	}
	switch codeOf(err) {
	case api.CodeNotInState, api.CodeBusy:
		return exitNotNow
	case api.CodeNotFound:
		return exitNotFound
	case api.CodeInvalid:
		return exitUsage
	}
	return exitFailed
}

// codeOf gives our code of an error that came from a workflow.
func codeOf(err error) string {
	var app *temporal.ApplicationError
	for e := err; errors.As(e, &app); e = errors.Unwrap(app) {
		for _, code := range api.Codes() {
			if app.Type() == code {
				return code
			}
		}
	}
	return ""
}

func unavailable(err error) bool {
	var u *serviceerror.Unavailable
	return errors.As(err, &u)
}

// explain gives the error without the wrapping of the layers it came through.
func explain(err error) string {
	var lost *noTemporalError
	if errors.As(err, &lost) {
		return fmt.Sprintf("Temporal does not answer at %s: %v\nIs it running? Set TEMPORAL_ADDRESS or --address.", lost.address, lost.error)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return "no answer in time: is the configuration server running? (" + err.Error() + ")"
	}
	var app *temporal.ApplicationError
	if code := codeOf(err); code != "" && errors.As(err, &app) {
		return code + ": " + app.Message()
	}
	return err.Error()
}
