package stream

import (
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	pipe "drover/datapath/stream"
	"drover/tests/rig"
)

// TestGrantsWhileSetsAreApplied: a policy that changes brings other documents while the
// pipeline applies. Neither change of the replica may lose the other: the position never
// goes back, and the last documents are there.
func TestGrantsWhileSetsAreApplied(t *testing.T) {
	const cut = 20 * time.Millisecond
	r := rig.New(t, 4<<20)
	noise(r, 0)
	r.StartServer()
	r.Grant(1, cut)
	r.StartAgent(1)
	last := r.Await("complete", complete).Applied.Seq
	for i := range 300 {
		r.Documents = map[string]string{"policy": strconv.Itoa(i)}
		r.Write(0, int64(i), []byte(strconv.Itoa(i)))
		r.Grant(1, cut)
		st := r.Status()
		require.GreaterOrEqual(t, st.Applied.Seq, last)
		require.Nil(t, st.Broken)
		last = st.Applied.Seq
	}
	p := r.AfterNow()
	require.Equal(t, r.Digest(), r.DigestAt(p))
	r.StopAgent()
	r.Await("all is applied", func(st pipe.Status) bool { return st.Applied == st.Spooled && st.BacklogSets == 0 })
	st, err := r.Reader().State(t.Context())
	require.NoError(t, err)
	require.Equal(t, r.Documents, st.Spec.Documents)
	require.GreaterOrEqual(t, st.Position.Seq, last)
}
