package fault

import (
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"drover/agent/controlapi"
	"drover/agent/status"
	"drover/datapath/ident"
	"drover/tests/rig"
)

// TestDisksGrowComeAndGoUnderTheAgent: the agent says what it sees, and takes the disks of a
// resync without a restart; older points stay as they are.
func TestDisksGrowComeAndGoUnderTheAgent(t *testing.T) {
	t.Parallel()
	s := newSite(t, time.Hour)
	s.config.Disks["b"] = s.Path("b") // attached later
	s.Write(0, 3, []byte(strings.Repeat("a", rig.Block)))
	s.token()
	s.startAgent()
	s.Await("complete", complete)
	before := s.AfterNow()
	digest := s.DigestAt(before)
	disk := func(uuid string, protected bool, why string) {
		t.Helper()
		s.shows(uuid+": "+why, func(st status.Status) bool {
			i := slices.IndexFunc(st.Disks, func(d controlapi.InventoryDisk) bool { return d.BackingUUID == uuid })
			return i >= 0 && st.Disks[i].Protected == protected && strings.Contains(st.Disks[i].Why, why) && (why != "") == (st.Disks[i].Why != "")
		})
	}
	disk("a", true, "")

	// It grows: nothing is guessed, the stream stops with the reason.
	require.NoError(t, os.Truncate(s.Path("a"), 2*mib))
	s.shows("a refusal", func(st status.Status) bool { return strings.Contains(st.Detail, "disk") && st.State == "refused" })
	disk("a", true, "it has 2097152 bytes, 1048576 are protected")
	s.Disks[0].Size = 2 * mib
	s.Write(0, 400, []byte(strings.Repeat("b", rig.Block)))
	s.resync()
	s.right()

	// Another one is attached.
	require.NoError(t, os.WriteFile(s.Path("b"), []byte(strings.Repeat("c", mib)), 0o600))
	s.Disks = append(s.Disks, controlapi.Disk{ID: ident.NewDiskID(s.Machine, "b"), BackingUUID: "b", Size: mib})
	s.resync()
	s.right()

	disk("b", true, "")

	// It vanishes while it is protected, then it is taken out.
	require.NoError(t, os.Remove(s.Path("b")))
	s.StopServer()
	s.StartServer() // what is open stays readable; a new session opens it anew
	disk("b", true, "no such file")
	s.Disks = s.Disks[:1]
	s.resync()
	s.right()
	require.Equal(t, digest, s.DigestAt(before), "the point from before reads as it did")
}

// resync does what the machine's workflow does: a grant and an assignment of the disks as
// they are, and a new generation.
func (s *site) resync() {
	s.T.Helper()
	s.Grant(1, cut)
	s.assign()
	require.NoError(s.T, s.Server.StartBase(s.T.Context(), s.Machine, 1, "DRV-3003", false))
	s.Await("the resync", complete)
}
