package azure_test

import (
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"

	"drover/activities/azure"
	"drover/tests/azurearm"
	"drover/workflows/api"
)

// check asks the validator, which makes nothing.
func (w *world) check(in api.CreateMachineInput) error {
	w.t.Helper()
	err := w.activities().CheckNetwork(w.t.Context(), api.CheckNetworkInput{Network: in.Network, For: &in})
	require.Empty(w.t, w.left(), "nothing was made")
	return err
}

// TestZone: the machine and its disks are in one zone, where its size is offered.
func TestZone(t *testing.T) {
	w := newWorld(t, azure.WayImport)
	in := input("failover/1")
	in.Target.Zone, in.Target.Size = "2", "Standard_D8s_v5" // in zone 1 alone
	require.ErrorContains(t, w.check(in), "zone 2, where size Standard_D8s_v5 is not offered")
	in.Target.Size, in.Firmware = "Standard_D2s_v5", "bios"
	require.NoError(t, w.check(in))
	m, err := w.create(in)
	require.NoError(t, err)
	vm := w.List("Microsoft.Compute/virtualMachines")[0]
	require.Equal(t, []any{"2"}, w.Get(vm, "zones"))
	require.Nil(t, w.Get(vm, "properties", "availabilitySet"))
	for i, d := range m.Disks {
		require.Equal(t, []any{"2"}, w.Get(d.Location, "zones"))
		require.Equal(t, []any{"V1", nil}[i], w.Get(d.Location, "properties", "hyperVGeneration"), "only of the disk that it boots from")
	}
	w.content0(m)
}

// TestAvailabilitySet: the machine is in the set, which is in its region; and in no zone.
func TestAvailabilitySet(t *testing.T) {
	const kind = "Microsoft.Compute/availabilitySets"
	w := newWorld(t, azure.WayImport)
	in := input("failover/1")
	in.Target.AvailabilitySet = "web"
	require.Equal(t, api.CodeNotFound, code(t, w.check(in)))
	w.Put(group, kind, "web", map[string]any{"location": "northeurope"})
	require.ErrorContains(t, w.check(in), "availability set web is in region northeurope")
	w.Put(group, kind, "web", map[string]any{"location": "West Europe"})
	require.NoError(t, w.check(in))
	both := in
	both.Target.Zone = "1"
	require.ErrorContains(t, w.check(both), "not both")
	_, err := w.create(in)
	require.NoError(t, err)
	vm := w.List("Microsoft.Compute/virtualMachines")[0]
	require.Equal(t, azurearm.ID(group, kind, "web"), w.Get(vm, "properties", "availabilitySet", "id"))
	require.Nil(t, w.Get(vm, "zones"))
}

// TestWhatAzureWouldRefuse is refused before anything is made: sizes that there are not, or
// that the machine does not fit, subnets, networks of other regions, tags, disks.
func TestWhatAzureWouldRefuse(t *testing.T) {
	for why, change := range map[string]func(*world, *api.CreateMachineInput){
		"no machine size Standard_E4s_v5":                func(_ *world, in *api.CreateMachineInput) { in.Target.Size = "Standard_E4s_v5" }, // not for this subscription
		"boots with bios, which size Standard_D8s_v5":    func(_ *world, in *api.CreateMachineInput) { in.Target.Size, in.Firmware = "Standard_D8s_v5", "bios" },
		"has 6 disks, size Standard_B2s takes 5":         func(_ *world, in *api.CreateMachineInput) { moreDisks(in, 6); in.Target.Size = "Standard_B2s" },
		"has 1000 CPUs, 4096 MiB and 2 disks":            func(_ *world, in *api.CreateMachineInput) { in.CPUs = 1000 },
		"no subnet web, but servers":                     func(_ *world, in *api.CreateMachineInput) { in.Target.Subnet = "web" },
		"virtual network elsewhere in resource group":    func(_ *world, in *api.CreateMachineInput) { in.Network = "elsewhere" },
		"is in region northeurope, and machines":         func(w *world, _ *api.CreateMachineInput) { w.Set(network("prod"), "northeurope", "location") },
		"Azure boots from at most":                       func(_ *world, in *api.CreateMachineInput) { in.Point.Disks[0].Size, in.Disks[0].Size = 5<<40, 5<<40 },
		"a managed disk has at most":                     func(_ *world, in *api.CreateMachineInput) { in.Point.Disks[1].Size, in.Disks[1].Size = 40<<40, 40<<40 },
		"the health check by agent is not possible here": func(w *world, in *api.CreateMachineInput) { w.config.Heard, in.Target.Health = nil, api.HealthAgent },
	} {
		t.Run(why, func(t *testing.T) {
			w := newWorld(t, azure.WayImport)
			in := input("failover/1")
			change(w, &in)
			require.ErrorContains(t, w.check(in), why)
		})
	}
}

func network(name string) string {
	return azurearm.ID(group, "Microsoft.Network/virtualNetworks", name)
}

func moreDisks(in *api.CreateMachineInput, n int) {
	for len(in.Disks) < n {
		in.Disks = append(in.Disks, in.Disks[1])
	}
}

// TestPermissions: what Drover's identity lacks is named before anything is made, also the
// right to have Azure read the replicas.
func TestPermissions(t *testing.T) {
	w := newWorld(t, azure.WayUpload)
	w.Allow("Microsoft.Compute/*/read", "Microsoft.Compute/disks/*", "Microsoft.Network/*")
	err := w.check(input("failover/1"))
	require.Equal(t, api.CodeTargetDenied, code(t, err))
	require.ErrorContains(t, err, "Microsoft.Compute/virtualMachines/write")
	require.NotContains(t, err.Error(), "Microsoft.Compute/disks/write")
	w.Allow("*")
	w.Inject(azurearm.Fault{Method: http.MethodPost, Path: "/blob/" + seeds, Status: http.StatusForbidden, Code: "AuthorizationPermissionMismatch"})
	err = w.check(input("failover/1"))
	require.Equal(t, api.CodeTargetDenied, code(t, err))
	require.ErrorContains(t, err, "user delegation key")
	require.NoError(t, w.check(input("failover/1")))
}

// TestNoTokenIsGivenAway: nothing that fills a disk carries a token of ours, and the
// addresses that it is filled from are signed for one snapshot.
func TestNoTokenIsGivenAway(t *testing.T) {
	w := newWorld(t, azure.WayUpload)
	m, err := w.create(input("failover/1"))
	require.NoError(t, err)
	w.content0(m)
	fills := 0
	for _, r := range w.Requests(http.MethodPut, "/disks/") {
		if r.Source == "" {
			continue
		}
		fills++
		require.Contains(t, r.Source, "skoid=")
		require.Contains(t, r.Source, "sr=bs")
		require.Contains(t, r.Source, "sp=r&")
		require.Empty(t, r.SourceToken)
	}
	require.Positive(t, fills)
}

// TestCommitDeletesCopies that an earlier try has left.
func TestCommitDeletesCopies(t *testing.T) {
	w := newWorld(t, azure.WayImport)
	in := input("failover/1")
	w.Inject(azurearm.Fault{Method: http.MethodPut, Path: "/Microsoft.Compute/disks/", Status: 400, Code: "InvalidParameter"})
	_, err := w.create(in)
	require.Error(t, err)
	left := w.Blobs(seeds, azure.DefaultCopies)
	require.Len(t, left, 1)
	_, err = w.create(in)
	require.NoError(t, err)
	w.AddSnapshot(seeds, azure.DefaultCopies, left[0], []byte("a copy that was begun late"))
	require.NoError(t, w.activities().CommitMachine(t.Context(), ref(in)))
	require.Empty(t, w.Blobs(seeds, azure.DefaultCopies))
	require.Len(t, w.List("Microsoft.Compute/disks"), 2, "the machine and its disks stay")
}
