package azure_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/temporal"

	"drover/activities/azure"
	"drover/activities/target"
	"drover/datapath/changeset"
	"drover/datapath/ident"
	"drover/datapath/replica"
	"drover/tests/azurearm"
	"drover/workflows/api"
)

const (
	group    = "recovery"
	seeds    = "seeds"
	diskSize = 21 << 20
)

// world is an Azure with two networks and the snapshots of a machine's disks.
type world struct {
	*azurearm.Server
	t       *testing.T
	content [][]byte // of the disks, at the point
	urls    []string
	config  azure.Config
	heard   map[string]time.Time // by hardware uuid
}

func (w *world) SnapshotURL(_ context.Context, _ ident.MachineID, p replica.Point, disk ident.DiskID) (string, int64, error) {
	for i, d := range p.Disks {
		if d.ID == disk {
			return w.urls[i], diskSize, nil
		}
	}
	return "", 0, replica.ErrNotFound
}

// vhd is a disk with data here and there, as a fixed VHD.
func vhd(seed byte) []byte {
	b := make([]byte, diskSize+512)
	for _, at := range []int{0, 5 << 20, diskSize - 4096} {
		for i := range 4096 {
			b[at+i] = byte(i)*7 + seed + 1
		}
	}
	copy(b[diskSize:], "conectix")
	return b
}

func newWorld(t *testing.T, way string) *world {
	t.Helper()
	w := &world{Server: azurearm.Start(), t: t, heard: map[string]time.Time{}}
	t.Cleanup(w.Close)
	w.VNet(group, "prod", "servers", "10.0.0.0/24")
	w.VNet(group, "sandbox", "servers", "10.9.0.0/24")
	for i := range 2 {
		b := vhd(byte(i))
		w.content = append(w.content, b[:diskSize])
		w.urls = append(w.urls, w.AddSnapshot(seeds, "disks", fmt.Sprintf("d%d", i), b))
	}
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "ca.pem"), w.CA(), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "secret"), []byte(azurearm.Secret+"\n"), 0o600))
	e := azure.Endpoints{Authority: w.URL, Manager: w.URL, CAFile: filepath.Join(dir, "ca.pem")}
	c, err := e.Configuration()
	require.NoError(t, err)
	transport, err := e.Transport()
	require.NoError(t, err)
	auth := azure.Auth{Method: azure.ClientSecret, TenantID: azurearm.Tenant, ClientID: azurearm.ClientID, SecretFile: filepath.Join(dir, "secret")}
	credential, err := auth.Credential(c, transport, true)
	require.NoError(t, err)
	w.config = azure.Config{
		Subscription: azurearm.Subscription, ResourceGroup: group, Location: azurearm.Location, Automation: "runbooks",
		Credential: credential, Cloud: c, Transport: transport, Poll: time.Millisecond, Logger: slog.New(slog.DiscardHandler),
		Heard: func(_ ident.MachineID, instance string) (time.Time, bool) { at, ok := w.heard[instance]; return at, ok },
	}
	if way != "" {
		w.config.Way, w.config.Snapshots = way, w
		w.config.Account = azure.Account{ID: azurearm.ID("storage", "Microsoft.Storage/storageAccounts", seeds), Endpoint: w.URL + "/blob/" + seeds}
	}
	return w
}

func (w *world) cloud() *azure.Cloud {
	w.t.Helper()
	c, err := azure.Open(w.config)
	require.NoError(w.t, err)
	return c
}

// activities are those of a worker that has just started.
func (w *world) activities() *target.Activities { return target.New(w.cloud(), nil) }

var machine = ident.NewMachineID("vc", "db-1")

func input(run string) api.CreateMachineInput {
	in := api.CreateMachineInput{
		Machine: machine, Name: "db 1/prod", Run: run, CPUs: 2, Memory: 4096, Firmware: "efi", GuestID: "debian12_64Guest",
		Network: "prod", Target: api.Target{Subnet: "servers", Network: "prod", TestNetwork: "sandbox", Tags: map[string]string{"owner": "shop"}},
		Tags: map[string]string{"owner": "shop"}, PlanRun: "plan-shop-1",
	}
	in.Point.ID = 7
	for i := range 2 {
		d := api.VMDisk{ID: ident.NewDiskID(machine, fmt.Sprint(i)), Label: fmt.Sprintf("Hard disk %d", i+1), Size: diskSize}
		in.Disks = append(in.Disks, d)
		in.Point.Disks = append(in.Point.Disks, replica.Disk{Disk: changeset.Disk{ID: d.ID, Size: d.Size}})
	}
	return in
}

func ref(in api.CreateMachineInput) api.TargetRef { return api.TargetRef{Name: in.Name, Run: in.Run} }

func code(t *testing.T, err error) string {
	t.Helper()
	var app *temporal.ApplicationError
	require.ErrorAs(t, err, &app, "%v", err)
	return app.Type()
}

// create makes the machine of the input and starts it.
func (w *world) create(in api.CreateMachineInput) (api.TargetMachine, error) {
	w.t.Helper()
	a := w.activities()
	if _, err := a.CreateMachine(w.t.Context(), in); err != nil {
		return api.TargetMachine{}, err
	}
	return a.StartMachine(w.t.Context(), ref(in))
}

func (w *world) left() []string {
	var out []string
	for _, kind := range []string{"Microsoft.Compute/disks", "Microsoft.Compute/virtualMachines", "Microsoft.Network/networkInterfaces"} {
		out = append(out, w.List(kind)...)
	}
	return append(out, w.Blobs(seeds, azure.DefaultCopies)...)
}

func TestLifeOfAMachine(t *testing.T) {
	for _, way := range []string{azure.WayImport, azure.WayUpload} {
		t.Run(way, func(t *testing.T) {
			w := newWorld(t, way)
			in := input("failover/1")
			in.Target.Address = "10.0.0.77"
			require.NoError(t, w.activities().CheckNetwork(t.Context(), api.CheckNetworkInput{Network: "prod", For: &in}))
			m, err := w.create(in)
			require.NoError(t, err)
			require.Equal(t, in.Name, m.Name)
			require.Equal(t, "Standard_B2s", m.Size)
			require.Equal(t, "10.0.0.77", m.Address)
			require.True(t, m.Running)
			require.NotEmpty(t, m.Instance)
			require.Equal(t, "azure-root", m.Disks[0].BackingUUID)
			require.Equal(t, "azure-lun-0", m.Disks[1].BackingUUID)
			for i, d := range m.Disks {
				require.Equal(t, in.Disks[i].ID, d.ID)
				require.True(t, bytes.Equal(w.content[i], w.DiskContent(d.Location)), "disk %d is what it was at the point", i)
				require.Equal(t, "plan-shop-1", w.Get(d.Location, "tags", target.TagPlan))
				require.Equal(t, fmt.Sprintf("disk-%d", i), w.Get(d.Location, "tags", "drover-step"))
				require.Equal(t, machine.String(), w.Get(d.Location, "tags", target.TagMachine))
			}
			vm := w.List("Microsoft.Compute/virtualMachines")[0]
			require.Equal(t, true, w.Get(vm, "properties", "diagnosticsProfile", "bootDiagnostics", "enabled"))
			require.Equal(t, "shop", w.Get(vm, "tags", "owner"))
			for id, step := range map[string]string{vm: "vm", w.List("Microsoft.Network/networkInterfaces")[0]: "nic"} {
				require.Equal(t, step, w.Get(id, "tags", "drover-step"))
				require.Equal(t, in.Run, w.Get(id, "tags", target.TagRun))
				require.Equal(t, "plan-shop-1", w.Get(id, "tags", target.TagPlan))
				require.Equal(t, machine.String(), w.Get(id, "tags", target.TagMachine))
			}
			require.Empty(t, w.Blobs(seeds, azure.DefaultCopies), "a copy goes when it is imported")

			a := w.activities()
			again, err := w.create(in)
			require.NoError(t, err)
			require.Equal(t, m, again)
			require.Len(t, w.Requests("PUT", "/disks/db-1-prod"), 2, "a second try makes nothing")
			require.Len(t, w.Requests("PUT", "/virtualMachines/"), 1)

			check, err := a.CheckMachine(t.Context(), ref(in))
			require.NoError(t, err)
			require.True(t, check.Ready, check.Evidence)
			require.NoError(t, a.CommitMachine(t.Context(), ref(in)))
			require.NoError(t, a.CommitMachine(t.Context(), ref(in)))
			require.Equal(t, "true", w.Get(vm, "tags", "drover-committed"))
			require.NoError(t, a.StopMachine(t.Context(), ref(in)))
			require.NoError(t, a.StopMachine(t.Context(), ref(in)))
			require.Equal(t, "deallocated", w.Get(vm, "properties", "powerOfTheTest"))
			m, err = a.StartMachine(t.Context(), ref(in))
			require.NoError(t, err)
			require.True(t, m.Running)
			require.NoError(t, a.DeleteMachine(t.Context(), ref(in)))
			require.NoError(t, a.DeleteMachine(t.Context(), ref(in)))
			require.Empty(t, w.left())
			_, err = a.StartMachine(t.Context(), ref(in))
			require.Equal(t, api.CodeNotFound, code(t, err))
		})
	}
}

func TestNothingSecretInErrors(t *testing.T) {
	w := newWorld(t, azure.WayUpload)
	w.Inject(azurearm.Fault{Method: "PUT", Path: "/disks/", Status: 403, Code: "AuthenticationFailed", Times: 100})
	_, err := w.create(input("failover/1"))
	require.Error(t, err)
	for e := err; e != nil; {
		require.NotContains(t, e.Error(), "sig=")
		require.NotContains(t, e.Error(), azurearm.Secret)
		require.NotContains(t, e.Error(), azurearm.Token)
		u, ok := e.(interface{ Unwrap() error })
		if !ok {
			break
		}
		e = u.Unwrap()
	}
	w = newWorld(t, azure.WayUpload)
	wrong := azure.Auth{Method: azure.ClientSecret, TenantID: azurearm.Tenant, ClientID: azurearm.ClientID, SecretFile: filepath.Join(t.TempDir(), "wrong")}
	require.NoError(t, os.WriteFile(wrong.SecretFile, []byte("another"), 0o600))
	w.config.Credential, err = wrong.Credential(w.config.Cloud, w.config.Transport, true)
	require.NoError(t, err)
	err = w.activities().CheckNetwork(t.Context(), api.CheckNetworkInput{Network: "prod"})
	require.Equal(t, api.CodeTargetDenied, code(t, err))
	require.Contains(t, err.Error(), "gave no token")
	require.NotContains(t, err.Error(), "another")
}

func TestCleanUpLeavesOthersAlone(t *testing.T) {
	w := newWorld(t, azure.WayImport)
	mine, other := input("failover/1"), input("failover/2")
	_, err := w.create(other)
	require.NoError(t, err)
	before := w.left()
	foreign := w.Put(group, "Microsoft.Compute/disks", "db-1-prod-archive", map[string]any{
		"location": azurearm.Location, "tags": map[string]any{target.TagRun: mine.Run, target.TagName: "another"}, "properties": map[string]any{"diskState": "Unattached"},
	})
	_, err = w.create(mine)
	require.NoError(t, err)
	require.NoError(t, w.activities().DeleteMachine(t.Context(), ref(mine)))
	require.ElementsMatch(t, append(before, foreign), w.left())

	third := input("failover/3")
	w.Inject(azurearm.Fault{Method: "PUT", Path: "/Microsoft.Compute/disks/", Status: 400, Code: "InvalidParameter"})
	_, err = w.create(third)
	require.Error(t, err)
	require.Len(t, w.Blobs(seeds, azure.DefaultCopies), 1, "a copy was left")
	require.NoError(t, w.activities().DeleteMachine(t.Context(), ref(third)))
	require.ElementsMatch(t, append(before, foreign), w.left())
}

func TestNameTakenByAnother(t *testing.T) {
	w := newWorld(t, azure.WayImport)
	in := input("failover/1")
	m, err := w.activities().CreateMachine(t.Context(), in)
	require.NoError(t, err)
	vm := strings.TrimSuffix(filepath.Base(m.Disks[0].Location), "-disk-0")
	w.Put(group, "Microsoft.Compute/virtualMachines", vm, map[string]any{"location": azurearm.Location})
	_, err = w.activities().StartMachine(t.Context(), ref(in))
	require.Equal(t, api.CodeNotOurs, code(t, err))
	require.Equal(t, api.CodeNotOurs, code(t, w.activities().CheckNetwork(t.Context(), api.CheckNetworkInput{Network: "prod", For: &in})))
	require.Equal(t, api.CodeNotOurs, code(t, w.activities().StopMachine(t.Context(), ref(in))))
	require.NoError(t, w.activities().DeleteMachine(t.Context(), ref(in)))
	require.NotNil(t, w.Get(azurearm.ID(group, "Microsoft.Compute/virtualMachines", vm), "id"))
}
