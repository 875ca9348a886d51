package stream

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	pipe "drover/datapath/stream"
	"drover/tests/rig"
)

// TestGrownDiskKeepsItsPoints: the same Resync that the machine's workflow starts takes a
// disk that grew under the agent. Only what is new is sent, the point from before reads as
// it did, and the agent is the same one.
func TestGrownDiskKeepsItsPoints(t *testing.T) {
	const before, after = 1000, 1600
	r := rig.New(t, before*rig.Block, 300*rig.Block)
	r.StartServer()
	r.Grant(1, 20*time.Millisecond)
	for i := range int64(before) {
		r.Write(0, i, []byte(strings.Repeat(string(rune('a'+i%26)), rig.Block)))
	}
	r.StartAgent(1)
	r.Await("complete", complete)
	point := r.AfterNow()
	digest := r.DigestAt(point)

	require.NoError(t, os.Truncate(r.Path("a"), after*rig.Block))
	for _, at := range []int64{before, after - 1} {
		r.Write(0, at, []byte(strings.Repeat("z", rig.Block)))
	}
	r.Disks[0].Size = after * rig.Block
	r.Grant(1, 20*time.Millisecond)
	require.NoError(t, r.Server.StartBase(t.Context(), r.Machine, 1, "resync: Hard disk 1 has grown", false))
	r.Assign(1)
	st := r.Await("complete again", func(st pipe.Status) bool { return st.Generation == 2 && complete(st) && !st.BaseFinished.IsZero() })
	require.Equal(t, int64(2*rig.Block), st.BaseDataBytes, "what it gained is compared, and only what is there is sent")
	require.Equal(t, r.Digest(), r.DigestAt(r.AfterNow()))
	require.Equal(t, digest, r.DigestAt(point), "the point from before reads as it did")
}
