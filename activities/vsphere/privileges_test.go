package vsphere

import (
	"testing"

	"github.com/stretchr/testify/require"

	"drover/workflows/api"
)

// TestPrivileges: what is missing is said exactly, by function, and nothing else.
func TestPrivileges(t *testing.T) {
	w := newWorld(t)
	check := func(functions ...string) []api.MissingPrivilege {
		t.Helper()
		out, err := w.CheckPrivileges(t.Context(), api.CheckVCenterInput{VCenter: "vc-1", Functions: functions})
		require.NoError(t, err)
		require.Equal(t, "drover", out.User)
		require.NotEmpty(t, out.Version)
		return out.Missing
	}
	require.Empty(t, check(api.VCenterFunctions...))
	const snapshots, off, files = "VirtualMachine.State.RemoveSnapshot", "VirtualMachine.Interact.PowerOff", "Datastore.FileManagement"
	w.sim.Deny("drover", off, "db-1")
	w.sim.Deny("drover", snapshots)
	w.sim.Deny("drover", files)
	w.sim.Deny("somebody", "System.Read")
	require.Empty(t, check(api.VCenterDiscover))
	require.Equal(t, []api.MissingPrivilege{
		{Function: api.VCenterFailover, Privilege: off, Kind: kindVM, On: []string{"db-1"}, Count: 1, Of: 3},
	}, check(api.VCenterFailover))
	require.Equal(t, []api.MissingPrivilege{
		{Function: api.VCenterFailback, Privilege: off, Kind: kindVM, On: []string{"db-1"}, Count: 1, Of: 3},
		{Function: api.VCenterFailback, Privilege: snapshots, Kind: kindVM, On: []string{"app-1", "db-1", "mt-1"}, Count: 3, Of: 3},
		{Function: api.VCenterFailback, Privilege: files, Kind: kindDatastore, On: []string{"local-1"}, Count: 1, Of: 1},
	}, check(api.VCenterFailback))
	require.Empty(t, check(api.VCenterPush))
	_, err := w.CheckPrivileges(t.Context(), api.CheckVCenterInput{VCenter: "vc-1", Functions: []string{"all"}})
	requireCode(t, err, api.CodeInvalid)
}
