package vsphere

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"drover/tests/vsim"
	"drover/workflows/api"
	"go.temporal.io/sdk/temporal"
)

// world is a simulated vCenter with the activities that talk to it.
type world struct {
	*Activities
	sim     *vsim.Sim
	dir     string
	secrets string
	vcenter api.VCenter
}

func newWorld(t *testing.T) *world {
	t.Helper()
	return newWorldOf(t, vsim.VMSpec{Name: "db-1", CPUs: 2, MemoryMB: 2048, Disks: []int64{1 << 20, 2 << 20}},
		vsim.VMSpec{Name: "app-1", CPUs: 1, MemoryMB: 1024, Disks: []int64{1 << 20}})
}

func newWorldOf(t *testing.T, vms ...vsim.VMSpec) *world {
	t.Helper()
	return newWorldIn(t, vsim.Spec{VMs: vms})
}

func newWorldIn(t *testing.T, spec vsim.Spec) *world {
	t.Helper()
	w := &world{dir: t.TempDir()}
	spec.User, spec.Password, spec.MasterTarget.Name = "drover", "secret word", "mt-1"
	sim, err := vsim.Start(t.Context(), w.dir, "127.0.0.1:0", spec)
	require.NoError(t, err)
	t.Cleanup(sim.Close)
	w.sim = sim
	secrets := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(secrets, "vc"), []byte("user: drover\npassword: secret word\n"), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(secrets, "wrong"), []byte("user: drover\npassword: hunter2\n"), 0o600))
	w.secrets = secrets
	w.vcenter = api.VCenter{Name: "vc-1", URL: sim.Info().URL, Thumbprint: sim.Info().Thumbprint, Credentials: "vc"}
	w.Activities, err = New(Config{Secrets: secrets, Gather: 20 * time.Millisecond, Logger: slog.New(slog.DiscardHandler),
		Tell:   func(context.Context, string, api.WatchReport) error { return nil },
		Lookup: func(context.Context, string) (api.VCenter, error) { return w.vcenter, nil }})
	require.NoError(t, err)
	t.Cleanup(func() { w.Close(context.Background()) })
	return w
}

func (w *world) vm(t *testing.T, name string) (api.VM, api.VMRef) {
	t.Helper()
	out, err := w.Inventory(t.Context(), w.vcenter)
	require.NoError(t, err)
	for _, vm := range out.VMs {
		if vm.Name == name {
			return vm, api.VMRef{VCenter: "vc-1", InstanceUUID: vm.InstanceUUID}
		}
	}
	t.Fatalf("no VM %s in the inventory", name)
	return api.VM{}, api.VMRef{}
}

func TestInventory(t *testing.T) {
	w := newWorld(t)
	out, err := w.Inventory(t.Context(), w.vcenter)
	require.NoError(t, err)
	require.Equal(t, w.sim.Info().UUID, out.UUID)
	require.Len(t, out.VMs, 3, "two VMs and the master target")
	vm, _ := w.vm(t, "db-1")
	want := w.sim.Info().VMs[0]
	require.Equal(t, want.BIOSUUID, vm.BIOSUUID)
	require.True(t, vm.PoweredOn)
	require.Len(t, vm.Disks, 2)
	require.Equal(t, want.Disks[1].BackingUUID, vm.Disks[1].BackingUUID)
	require.Equal(t, int64(2<<20), vm.Disks[1].Size)
	require.NotEqual(t, vm.Disks[0].ID, vm.Disks[1].ID)
	require.Len(t, vm.NICs, 1)
	again, _ := w.vm(t, "db-1")
	require.Equal(t, vm, again, "ids do not change between passes")
}

func TestPower(t *testing.T) {
	w := newWorld(t)
	_, ref := w.vm(t, "db-1")
	r, err := w.ShutdownVM(t.Context(), api.ShutdownInput{VMRef: ref, Limit: api.Duration(10 * time.Second), Force: true})
	require.NoError(t, err)
	require.Equal(t, api.ShutdownResult{WasOn: true, How: "guest shutdown"}, r)
	r, err = w.ShutdownVM(t.Context(), api.ShutdownInput{VMRef: ref, Freeze: true})
	require.NoError(t, err)
	require.Equal(t, "off already", r.How)
	_, err = w.VerifyVMReady(t.Context(), ref)
	requireCode(t, err, api.CodeVCenter)
	require.NoError(t, w.PowerOnVM(t.Context(), ref))
	require.NoError(t, w.PowerOnVM(t.Context(), ref), "it is on already")
	vm, err := w.VerifyVMReady(t.Context(), ref)
	require.NoError(t, err)
	require.Equal(t, "db-1", vm.Name)
	r, err = w.ShutdownVM(t.Context(), api.ShutdownInput{VMRef: ref, Freeze: true})
	require.NoError(t, err)
	require.Equal(t, "power off", r.How)
}

// TestGuestThatDoesNotShutDown has its whole time; then it is switched off only if that
// was asked for.
func TestGuestThatDoesNotShutDown(t *testing.T) {
	const limit = 600 * time.Millisecond
	w := newWorld(t)
	down := func(name string, force bool) (api.ShutdownResult, time.Duration, error) {
		_, ref := w.vm(t, name)
		begun := time.Now()
		r, err := w.ShutdownVM(t.Context(), api.ShutdownInput{VMRef: ref, Limit: api.Duration(limit), Force: force})
		return r, time.Since(begun), err
	}
	w.sim.Hang("db-1")
	_, took, err := down("db-1", false)
	requireCode(t, err, api.CodeSourceRunning)
	require.ErrorContains(t, err, "did not shut down within 600ms")
	require.GreaterOrEqual(t, took, limit)
	vm, _ := w.vm(t, "db-1")
	require.True(t, vm.PoweredOn, "nobody asked for its power")
	r, took, err := down("db-1", true)
	require.NoError(t, err)
	require.Equal(t, api.ShutdownResult{WasOn: true, How: "power off"}, r)
	require.GreaterOrEqual(t, took, limit, "the guest had all of its time")

	w.sim.NoTools("app-1")
	_, _, err = down("app-1", false)
	requireCode(t, err, api.CodeSourceRunning)
	require.ErrorContains(t, err, "cannot be shut down")
	r, _, err = down("app-1", true)
	require.NoError(t, err)
	require.Equal(t, "power off", r.How)
}

func TestAttachAndDetach(t *testing.T) {
	w := newWorld(t)
	vm, ref := w.vm(t, "db-1")
	in := api.AttachInput{Original: ref, MasterTarget: "mt-1", Disks: vm.Disks}
	requireCode(t, w.AttachDisks(t.Context(), in), api.CodeSourceRunning)
	_, err := w.ShutdownVM(t.Context(), api.ShutdownInput{VMRef: ref, Freeze: true})
	require.NoError(t, err)
	require.NoError(t, w.AttachDisks(t.Context(), in))
	require.NoError(t, w.AttachDisks(t.Context(), in), "attached already")
	link := filepath.Join(vsim.ByUUID(w.dir, "mt-1"), vm.Disks[1].BackingUUID)
	require.Eventually(t, func() bool { info, err := os.Stat(link); return err == nil && info.Size() == 2<<20 }, 20*time.Second, 20*time.Millisecond)
	err = w.PowerOnVM(t.Context(), ref)
	requireCode(t, err, api.CodeVCenter)
	require.ErrorContains(t, err, "db-1.vmdk is in use by VM mt-1", "who holds it is said")
	require.NoError(t, w.DetachDisks(t.Context(), in))
	require.NoError(t, w.DetachDisks(t.Context(), in), "detached already")
	require.Eventually(t, func() bool { _, err := os.Lstat(link); return os.IsNotExist(err) }, 20*time.Second, 20*time.Millisecond)
	after, _ := w.vm(t, "db-1")
	require.Equal(t, vm.Disks, after.Disks, "the original still has its disks")
	require.NoError(t, w.PowerOnVM(t.Context(), ref))

	in.Disks = []api.VMDisk{{BackingUUID: "00000000-0000-0000-0000-000000000000", Label: "Hard disk 9"}}
	_, err = w.ShutdownVM(t.Context(), api.ShutdownInput{VMRef: ref, Freeze: true})
	require.NoError(t, err)
	requireCode(t, w.AttachDisks(t.Context(), in), api.CodeDiskChanged)
}

func TestLoginIsRefused(t *testing.T) {
	w := newWorld(t)
	for name, change := range map[string]func(*api.VCenter){
		"wrong password":      func(v *api.VCenter) { v.Credentials = "wrong" },
		"wrong thumbprint":    func(v *api.VCenter) { v.Thumbprint = "00" + v.Thumbprint[2:] },
		"unknown authority":   func(v *api.VCenter) { v.Thumbprint = "" },
		"no such credentials": func(v *api.VCenter) { v.Credentials = "nothing" },
		"path as credentials": func(v *api.VCenter) { v.Credentials = "../vc" },
		"password in the URL": func(v *api.VCenter) { v.URL = "https://user:hunter2@127.0.0.1/sdk" },
	} {
		t.Run(name, func(t *testing.T) {
			v := w.vcenter
			change(&v)
			_, err := w.Inventory(t.Context(), v)
			require.Error(t, err)
			require.NotContains(t, err.Error(), "hunter2")
			require.NotContains(t, err.Error(), "secret word")
		})
	}
	_, err := w.VerifyVMReady(t.Context(), api.VMRef{VCenter: "vc-1", InstanceUUID: "00000000-0000-0000-0000-000000000000"})
	requireCode(t, err, api.CodeNotFound)
}

func requireCode(t *testing.T, err error, code string) {
	t.Helper()
	var app *temporal.ApplicationError
	require.ErrorAs(t, err, &app)
	require.Equal(t, code, app.Type(), app.Error())
}
