package replication

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"drover/datapath/health"
	"drover/datapath/ident"
)

func TestListServers(t *testing.T) {
	w := newWorld()
	said := health.Report{Status: health.Warning, Findings: []health.Finding{{Code: health.CodeCPU, Status: health.Warning}}}
	w.registry.servers = []Server{
		{Name: "ps-a", Address: "a:9443", Version: "1", LastSeen: now.Add(-time.Second), Assigned: 2, Health: &said},
		{Name: "ps-new"},
		{Name: "ps-old", LastSeen: now.Add(-15 * time.Minute)},
		{Name: "ps-silent", LastSeen: now.Add(-15*time.Minute - time.Second), Health: &said},
	}
	got, err := w.ListServers(t.Context())
	require.NoError(t, err)
	require.Len(t, got, 8, "of both roles")
	require.Equal(t, ident.RoleProcessServer, got[0].Role)
	require.Equal(t, ident.RoleMasterTarget, got[4].Role)
	require.Equal(t, "a:9443", got[0].Address)
	require.Equal(t, 2, got[0].Assigned)
	require.Equal(t, said, got[0].Health)
	require.Empty(t, got[1].Health.Status, "nothing is known of it")
	require.Equal(t, health.OK, got[2].Health.Status)
	require.Equal(t, health.Critical, got[3].Health.Status)
	require.Len(t, got[3].Health.Findings, 2)
	require.Equal(t, health.CodeServerSilent, got[3].Health.Findings[1].Code)
	require.Contains(t, got[3].Health.Findings[1].Cause, "ps-silent was not heard for 15m1s")
	require.Len(t, said.Findings, 1, "the registry's own is as it was")
}
