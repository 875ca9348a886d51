package activityerr

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/temporal"

	"drover/datapath/cachestore"
	"drover/datapath/replica"
	"drover/workflows/api"
)

func TestOf(t *testing.T) {
	for err, want := range map[error]string{
		replica.ErrFenced: api.CodeFenced, cachestore.ErrFenced: api.CodeFenced,
		replica.ErrGap: api.CodeReplicaDamaged, replica.ErrCorrupt: api.CodeReplicaDamaged,
		replica.ErrNotFound: api.CodeNotFound, cachestore.ErrNotFound: api.CodeNotFound,
		replica.ErrHeld: api.CodeBusy, replica.ErrNoSpace: api.CodeInternal, errors.New("other"): api.CodeInternal,
	} {
		got := Of(fmt.Errorf("deep: %w", err), "do %s", "it")
		var app *temporal.ApplicationError
		require.ErrorAs(t, got, &app)
		require.Equal(t, want, app.Type(), err)
		require.Equal(t, !api.Retryable(want), app.NonRetryable(), err)
		require.Contains(t, app.Message(), "do it: deep: "+err.Error())
		require.ErrorIs(t, got, err)
	}
}

func TestOfLeavesAlone(t *testing.T) {
	require.NoError(t, Of(nil, "do"))
	require.Equal(t, context.Canceled, Of(context.Canceled, "do"))
	coded := New(api.CodeNoPoint, "none of %d", 3)
	require.Equal(t, coded, Of(errors.Join(coded, errors.New("close")), "do"), "the coded error comes out on top")
}
