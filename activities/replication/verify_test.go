package replication

import (
	"context"
	"encoding/json"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/converter"

	"drover/datapath/ident"
	"drover/datapath/replica"
	"drover/datapath/stream"
	"drover/workflows/api"
)

func verifyInput() api.VerifyInput {
	return api.VerifyInput{Machine: machine, Name: "app-1", Epoch: 3, Server: "ps-1", Deep: true, Rate: 50 << 20}
}

func recordOf(v stream.Verdict, differed int64) stream.SignedRecord {
	b, err := json.Marshal(stream.Record{Version: stream.RecordVersion, Machine: machine, Verdict: v, Point: 41, Finished: now,
		Disks: []stream.VerifiedDisk{{Differed: differed, Mended: differed}}})
	if err != nil {
		panic(err)
	}
	return stream.SignedRecord{Record: b, Chain: [][]byte{{1}}, Signature: []byte{2}}
}

// TestVerify: the record comes as it was signed, and the entity learns of what differed.
func TestVerify(t *testing.T) {
	for verdict, events := range map[stream.Verdict][]api.ReplicationEvent{
		stream.VerdictEqual:     {{Problem: api.Problem{Code: api.CodeMended}, Cleared: true}},
		stream.VerdictUnsettled: nil,
		stream.VerdictDifferent: nil, // its watch tells
		stream.VerdictMended: {{Problem: api.Problem{Code: api.CodeMended, Component: "process server ps-1", Health: api.Warning, Since: now,
			Cause:    "a comparison with the source found 8192 bytes in the replica that differed though nothing was under way; they were sent again",
			Evidence: "the signed record of recovery point 41",
			Action:   "older recovery points may have the difference; look for its cause (the tracker, the storage under the replica) and compare again, with --deep"}}},
	} {
		want := recordOf(verdict, 8192)
		f, s := &fakeStreams{verify: func(_ context.Context, e ident.Epoch, o stream.VerifyOrder) (stream.SignedRecord, error) {
			require.Equal(t, ident.Epoch(3), e)
			require.Equal(t, stream.VerifyOrder{Deep: true, Rate: 50 << 20}, o)
			return want, nil
		}}, &fakeSignals{}
		got, err := run[stream.SignedRecord](t, env(t, newHost(f, s).Activities()), api.ActVerify, verifyInput())
		require.NoError(t, err)
		require.Equal(t, want, got)
		require.Equal(t, events, s.events, "%s", verdict)
	}
}

// TestVerifyWithoutTheEntity: that it cannot be told takes nothing from the record.
func TestVerifyWithoutTheEntity(t *testing.T) {
	f := &fakeStreams{verify: func(context.Context, ident.Epoch, stream.VerifyOrder) (stream.SignedRecord, error) {
		return recordOf(stream.VerdictMended, 4096), nil
	}}
	_, err := run[stream.SignedRecord](t, env(t, newHost(f, &fakeSignals{fail: 1}).Activities()), api.ActVerify, verifyInput())
	require.NoError(t, err)
}

func TestVerifyErrors(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{stream.ErrNotComplete, api.CodeNotInState}, {stream.ErrOtherDepth, api.CodeBusy}, {stream.ErrNotCompared, api.CodeNotCompared},
		{replica.ErrFenced, api.CodeFenced}, {replica.ErrGap, api.CodeReplicaDamaged}, {errors.New("EIO"), api.CodeInternal},
	} {
		f := &fakeStreams{verify: func(context.Context, ident.Epoch, stream.VerifyOrder) (stream.SignedRecord, error) {
			return stream.SignedRecord{}, c.err
		}}
		_, err := run[stream.SignedRecord](t, env(t, newHost(f, &fakeSignals{}).Activities()), api.ActVerify, verifyInput())
		require.Equal(t, c.want, code(t, err), "%v", c.err)
		require.ErrorContains(t, err, "compare app-1 with its replica on ps-1")
	}
	in := verifyInput()
	in.Server = "ps-2"
	_, err := run[stream.SignedRecord](t, env(t, newHost(&fakeStreams{}, nil).Activities()), api.ActVerify, in)
	require.Equal(t, api.CodeInvalid, code(t, err))
}

// TestVerifyBeatsAndEndsWithItsWorker: its progress goes out, and a worker that stops
// ends it, to be tried again.
func TestVerifyBeatsAndEndsWithItsWorker(t *testing.T) {
	stop, beats := make(chan struct{}), make(chan stream.Status, 1)
	f := &fakeStreams{
		status: &stream.Status{Machine: machine, Epoch: 3, Verify: &stream.VerifyProgress{Deep: true, Done: 5, Total: 9}},
		verify: func(ctx context.Context, _ ident.Epoch, _ stream.VerifyOrder) (stream.SignedRecord, error) {
			require.Equal(t, int64(5), (<-beats).Verify.Done)
			close(stop)
			<-ctx.Done()
			return stream.SignedRecord{}, context.Cause(ctx)
		}}
	e := env(t, newHost(f, nil).Activities())
	e.SetWorkerStopChannel(stop)
	e.SetOnActivityHeartbeatListener(func(_ *activity.Info, details converter.EncodedValues) {
		var st stream.Status
		if details.Get(&st) == nil && st.Verify != nil {
			select {
			case beats <- st:
			default:
			}
		}
	})
	_, err := run[stream.SignedRecord](t, e, api.ActVerify, verifyInput())
	require.Equal(t, api.CodeServerLost, code(t, err))
}
