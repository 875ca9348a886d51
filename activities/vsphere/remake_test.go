package vsphere

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"drover/activities/activityerr"
	"drover/tests/vsim"
	"drover/workflows/api"
)

const run = "machine-1-reprotect-1/run"

// newWide is a world with two hosts and two datastores.
func newWide(t *testing.T) *world {
	return newWorldIn(t, vsim.Spec{Hosts: 1, Datastores: []string{"local-2"}, VMs: []vsim.VMSpec{
		{Name: "db-1", CPUs: 2, MemoryMB: 2048, Disks: []int64{1 << 20, 2 << 20}}, {Name: "app-1", CPUs: 1, MemoryMB: 1024, Disks: []int64{1 << 20}}}})
}

// anew is what a reprotect asks for.
func (w *world) anew(t *testing.T, name string) api.MakeVMInput {
	vm, _ := w.vm(t, name)
	return api.MakeVMInput{VM: vm, Disks: vm.Disks, Run: run, MasterTarget: "mt-1", At: &api.Location{Datastore: "local-2"}}
}

func (w *world) destroy(t *testing.T, name string) {
	t.Helper()
	vm, err := w.sim.VM(t.Context(), name)
	require.NoError(t, err)
	if task, err := vm.PowerOff(t.Context()); err == nil {
		_ = task.Wait(t.Context())
	}
	task, err := vm.Destroy(t.Context())
	require.NoError(t, err)
	require.NoError(t, task.Wait(t.Context()))
}

func (w *world) names(t *testing.T) (out []string) {
	t.Helper()
	all, err := w.Inventory(t.Context(), w.vcenter)
	require.NoError(t, err)
	for _, vm := range all.VMs {
		out = append(out, vm.Name)
	}
	return out
}

// files are those of a datastore.
func (w *world) files(t *testing.T, datastore string) (out []string) {
	t.Helper()
	require.NoError(t, filepath.Walk(filepath.Join(w.dir, datastore), func(path string, info os.FileInfo, err error) error {
		if err == nil && !info.IsDir() {
			out = append(out, filepath.Base(path))
		}
		return err
	}))
	return out
}

// TestMadeAnew: a VM that is gone is made as it was, on another host and datastore, and is
// the same machine with the same disks; what is written to them on the master target is in
// them when it is up.
func TestMadeAnew(t *testing.T) {
	w := newWide(t)
	in := w.anew(t, "db-1")
	mt, _ := w.vm(t, "mt-1")
	hosts, err := find.NewFinder(w.sim.Client().Client).HostSystemList(t.Context(), "/DC0/host/*/*")
	require.NoError(t, err)
	require.Len(t, hosts, 2)
	other := hosts[slices.IndexFunc(hosts, func(h *object.HostSystem) bool { return h.Name() != mt.Host })].Name()
	w.destroy(t, "db-1")
	in.At.Host = other
	require.NoError(t, w.CheckLocation(t.Context(), in))
	made, err := w.MakeVM(t.Context(), in)
	require.NoError(t, err)
	again, err := w.MakeVM(t.Context(), in)
	require.NoError(t, err)
	require.Equal(t, made, again, "a second try finds what the first one made")
	require.ElementsMatch(t, []string{"app-1", "db-1", "mt-1"}, w.names(t))

	vm, was := made.VM, in.VM
	require.Equal(t, was.Machine, vm.Machine, "it is the same machine")
	require.NotEqual(t, was.InstanceUUID, vm.InstanceUUID)
	require.NotEqual(t, was.BIOSUUID, vm.BIOSUUID)
	require.Equal(t, other, vm.Host)
	require.False(t, vm.PoweredOn)
	require.Equal(t, []any{was.Name, was.CPUs, was.MemoryMB, was.GuestID, was.Firmware, was.CoresPerSocket, was.NICs[0].Network, was.NICs[0].Type},
		[]any{vm.Name, vm.CPUs, vm.MemoryMB, vm.GuestID, vm.Firmware, vm.CoresPerSocket, vm.NICs[0].Network, vm.NICs[0].Type})
	for i, d := range made.Disks {
		require.Equal(t, in.Disks[i].ID, d.ID)
		require.Equal(t, in.Disks[i].Size, d.Size)
		require.Equal(t, in.Disks[i].At, d.At)
		require.NotEqual(t, in.Disks[i].BackingUUID, d.BackingUUID)
		require.Contains(t, d.File, "[local-2] db-1/")
	}
	seen, ref := w.vm(t, "db-1")
	require.Equal(t, vm, seen, "discovery sees it so, too")

	attach := api.AttachInput{Original: ref, MasterTarget: "mt-1", Disks: made.Disks}
	require.NoError(t, w.AttachDisks(t.Context(), attach))
	content := []byte("what the machine wrote in the target")
	for _, d := range made.Disks {
		link := filepath.Join(vsim.ByUUID(w.dir, "mt-1"), d.BackingUUID)
		require.Eventually(t, func() bool { info, err := os.Stat(link); return err == nil && info.Size() == d.Size }, 20*time.Second, 20*time.Millisecond)
		f, err := os.OpenFile(link, os.O_RDWR, 0)
		require.NoError(t, err)
		_, err = f.WriteAt(content, d.Size-int64(len(content)))
		require.NoError(t, err)
		require.NoError(t, f.Close())
	}
	require.NoError(t, w.DetachDisks(t.Context(), attach))
	require.Eventually(t, func() bool { return w.PowerOnVM(t.Context(), ref) == nil }, 20*time.Second, 50*time.Millisecond)
	up, err := w.VerifyVMReady(t.Context(), ref)
	require.NoError(t, err)
	require.Equal(t, was.Machine, up.Machine)
	for _, d := range up.Disks {
		got, err := os.ReadFile(filepath.Join(w.dir, "datastore-local-2", flat(d.File)))
		require.NoError(t, err)
		require.Len(t, got, int(d.Size))
		require.Equal(t, content, got[len(got)-len(content):])
	}
	err = w.UnmakeVM(t.Context(), api.UnmakeVMInput{VCenter: "vc-1", Machine: was.Machine, Run: run})
	requireCode(t, err, api.CodeSourceRunning)
	require.Contains(t, w.names(t), "db-1", "what runs is not deleted")
}

// flat is the file with the content of a disk, below its datastore.
func flat(file string) string {
	var p object.DatastorePath
	p.FromString(file)
	return p.Path[:len(p.Path)-len(".vmdk")] + "-flat.vmdk"
}

// TestMadeInAnotherVCenter, while the first one is not to be reached.
func TestMadeInAnotherVCenter(t *testing.T) {
	w := newWide(t)
	in := w.anew(t, "db-1")
	second := newWorldIn(t, vsim.Spec{Name: "2", VMs: []vsim.VMSpec{{Name: "web-1", CPUs: 1, MemoryMB: 1024, Disks: []int64{1 << 20}}}})
	second.vcenter.Name = "vc-2"
	w.config.Lookup = func(_ context.Context, name string) (api.VCenter, error) {
		if name == "vc-2" {
			return second.vcenter, nil
		}
		return api.VCenter{}, activityerr.New(api.CodeVCenterAway, "the site burns")
	}
	in.At = &api.Location{VCenter: "vc-2", Datastore: "local-1"}
	made, err := w.MakeVM(t.Context(), in)
	require.NoError(t, err)
	require.Equal(t, "vc-2", made.VM.VCenter)
	require.Equal(t, second.sim.Info().UUID, made.VM.VCenterUUID)
	require.NotEqual(t, in.VM.VCenterUUID, made.VM.VCenterUUID)
	require.Equal(t, in.VM.Machine, made.VM.Machine)
	ref := api.VMRef{VCenter: "vc-2", InstanceUUID: made.VM.InstanceUUID}
	require.NoError(t, w.AttachDisks(t.Context(), api.AttachInput{Original: ref, MasterTarget: "mt-1", Disks: made.Disks}))
	unmake := api.UnmakeVMInput{VCenter: "vc-2", Machine: in.VM.Machine, Run: run}
	requireRetried(t, w.UnmakeVM(t.Context(), unmake), api.CodeVCenter) // the master target has its disks
	require.NoError(t, w.DetachDisks(t.Context(), api.AttachInput{Original: ref, MasterTarget: "mt-1", Disks: made.Disks}))
	require.NoError(t, w.UnmakeVM(t.Context(), unmake))
	require.ElementsMatch(t, []string{"mt-1", "web-1"}, second.names(t))
}

// TestOriginalIsNotTouched where another location is asked for; only if it is gone, it is
// taken.
func TestOriginalIsNotTouched(t *testing.T) {
	w := newWide(t)
	in := w.anew(t, "db-1")
	files := w.files(t, "datastore")
	requireCode(t, w.CheckLocation(t.Context(), in), api.CodeInvalid) // its name is taken
	_, err := w.MakeVM(t.Context(), in)
	require.ErrorContains(t, err, "has something named db-1 already: give the VM another name or folder")
	in.At.Name = "db-1-back"
	made, err := w.MakeVM(t.Context(), in)
	require.NoError(t, err)
	require.Equal(t, "db-1-back", made.VM.Name)
	was, _ := w.vm(t, "db-1")
	require.Equal(t, in.VM, was)
	require.Equal(t, files, w.files(t, "datastore"))
	require.NoError(t, w.UnmakeVM(t.Context(), api.UnmakeVMInput{VCenter: "vc-1", Machine: in.VM.Machine, Run: run}))
	was, _ = w.vm(t, "db-1")
	require.Equal(t, in.VM, was, "the undo has not touched it, either")

	in.At = &api.Location{Datastore: "none", OnlyIfGone: true}
	require.NoError(t, w.CheckLocation(t.Context(), in), "the original is there")
	in.At = nil
	require.NoError(t, w.CheckLocation(t.Context(), in))
	w.destroy(t, "db-1")
	err = w.CheckLocation(t.Context(), in)
	requireCode(t, err, api.CodeVMGone)
	require.ErrorContains(t, err, "drover reprotect db-1 --datastore NAME")
	in.At = &api.Location{Datastore: "none", OnlyIfGone: true}
	requireCode(t, w.CheckLocation(t.Context(), in), api.CodeInvalid)
}

// TestLostReplyOfMaking: nothing is made twice, and the undo finds what nobody heard of.
func TestLostReplyOfMaking(t *testing.T) {
	w := newWide(t)
	p := w.through(t)
	in := w.anew(t, "db-1")
	w.destroy(t, "db-1")
	unmake := api.UnmakeVMInput{VCenter: "vc-1", Machine: in.VM.Machine, Run: run}
	p.Trouble("CreateVM_Task", vsim.LostReply)
	_, err := w.MakeVM(t.Context(), in)
	requireRetried(t, err, api.CodeVCenterAway)
	require.Eventually(t, func() bool { _, err = w.MakeVM(t.Context(), in); return err == nil }, 20*time.Second, 50*time.Millisecond)
	require.Equal(t, 1, p.Calls("CreateVM_Task"), "the second try made nothing")
	require.ElementsMatch(t, []string{"app-1", "db-1", "mt-1"}, w.names(t))
	require.NoError(t, w.UnmakeVM(t.Context(), unmake))
	require.ElementsMatch(t, []string{"app-1", "mt-1"}, w.names(t))
	require.Empty(t, w.files(t, "datastore-local-2"))

	p.Trouble("CreateVM_Task", vsim.LostReply)
	_, err = w.MakeVM(t.Context(), in)
	requireRetried(t, err, api.CodeVCenterAway)
	require.Eventually(t, func() bool { return w.UnmakeVM(t.Context(), unmake) == nil && len(w.names(t)) == 2 }, 20*time.Second, 50*time.Millisecond)
	p.Trouble("Destroy_Task", vsim.LostReply)
	_, err = w.MakeVM(t.Context(), in)
	require.NoError(t, err)
	requireRetried(t, w.UnmakeVM(t.Context(), unmake), api.CodeVCenterAway)
	require.Eventually(t, func() bool {
		return w.UnmakeVM(t.Context(), unmake) == nil && len(w.files(t, "datastore-local-2")) == 0
	}, 20*time.Second, 50*time.Millisecond)
}

// TestFaultsOfMaking: a task that fails leaves nothing, or what the next try goes on with.
func TestFaultsOfMaking(t *testing.T) {
	w := newWide(t)
	in := w.anew(t, "db-1")
	w.destroy(t, "db-1")
	unmake := api.UnmakeVMInput{VCenter: "vc-1", Machine: in.VM.Machine, Run: run}
	w.sim.FailTask("CreateVM_Task", &types.InvalidState{})
	_, err := w.MakeVM(t.Context(), in)
	requireRetried(t, err, api.CodeVCenter)
	require.ElementsMatch(t, []string{"app-1", "mt-1"}, w.names(t))
	require.NoError(t, w.UnmakeVM(t.Context(), unmake), "it made nothing")

	w.sim.FailTask("ReconfigVM_Task", &types.TaskInProgress{})
	_, err = w.MakeVM(t.Context(), in)
	requireRetried(t, err, api.CodeVCenter)
	half, _ := w.vm(t, "db-1")
	require.Equal(t, in.VM.Machine, half.Machine, "it is ours from its first moment on")
	made, err := w.MakeVM(t.Context(), in)
	require.NoError(t, err)
	require.Equal(t, half.InstanceUUID, made.VM.InstanceUUID)
	require.Equal(t, in.Disks[1].ID, made.Disks[1].ID)

	w.sim.FailTask("Destroy_Task", &types.TaskInProgress{})
	requireRetried(t, w.UnmakeVM(t.Context(), unmake), api.CodeVCenter)
	require.NoError(t, w.UnmakeVM(t.Context(), unmake))
	require.Empty(t, w.files(t, "datastore-local-2"))
	require.NoError(t, w.UnmakeVM(t.Context(), unmake), "it is gone already")
}

// TestOnlyWhatTheRunMadeIsDeleted: neither another run's VM, nor one that merely has the
// uuid; and a copy of a VM is not its machine.
func TestOnlyWhatTheRunMadeIsDeleted(t *testing.T) {
	w := newWide(t)
	in := w.anew(t, "db-1")
	w.destroy(t, "db-1")
	made, err := w.MakeVM(t.Context(), in)
	require.NoError(t, err)
	require.NoError(t, w.UnmakeVM(t.Context(), api.UnmakeVMInput{VCenter: "vc-1", Machine: in.VM.Machine, Run: "another"}))
	require.Contains(t, w.names(t), "db-1")

	admin, err := w.sim.VM(t.Context(), "app-1")
	require.NoError(t, err)
	app, _ := w.vm(t, "app-1")
	w.set(t, admin, types.VirtualMachineConfigSpec{ExtraConfig: []types.BaseOptionValue{
		&types.OptionValue{Key: keyMachine, Value: made.VM.Machine.String() + " " + made.VM.InstanceUUID}, &types.OptionValue{Key: keyRun, Value: run}}})
	copied, _ := w.vm(t, "app-1")
	require.Equal(t, app, copied, "it says that it is another VM's machine")
	w.destroy(t, "db-1")
	err = w.UnmakeVM(t.Context(), api.UnmakeVMInput{VCenter: "vc-1", Machine: in.VM.Machine, Run: run})
	requireCode(t, err, api.CodeNotOurs)
	require.ErrorContains(t, err, "VM app-1 in vCenter vc-1 says that")
	require.Contains(t, w.names(t), "app-1", "a copy is not deleted")
	w.set(t, admin, types.VirtualMachineConfigSpec{InstanceUuid: instanceOf(in.VM.Machine, "third", "instance")})
	err = w.UnmakeVM(t.Context(), api.UnmakeVMInput{VCenter: "vc-1", Machine: in.VM.Machine, Run: "third"})
	requireCode(t, err, api.CodeNotOurs)
	require.Contains(t, w.names(t), "app-1")
}

func (w *world) set(t *testing.T, vm *object.VirtualMachine, spec types.VirtualMachineConfigSpec) {
	t.Helper()
	task, err := vm.Reconfigure(t.Context(), spec)
	require.NoError(t, err)
	require.NoError(t, task.Wait(t.Context()))
}

// TestLocationsThatAreRefused, each before anything is made, with what would do.
func TestLocationsThatAreRefused(t *testing.T) {
	w := newWide(t)
	base := w.anew(t, "db-1")
	w.destroy(t, "db-1")
	for name, c := range map[string]struct {
		change func(*api.MakeVMInput)
		code   string
		want   string
	}{
		"no such datastore": {func(in *api.MakeVMInput) { in.At.Datastore = "ssd" }, api.CodeInvalid, `no datastore named "ssd"; there is local-1, local-2`},
		"no such host":      {func(in *api.MakeVMInput) { in.At.Host = "esx-9" }, api.CodeInvalid, `no host named "esx-9"; there is DC0_`},
		"no such pool":      {func(in *api.MakeVMInput) { in.At.Pool = "gold" }, api.CodeInvalid, `no resource pool named "gold"; there is Resources`},
		"no such folder":    {func(in *api.MakeVMInput) { in.At.Folder = "servers/linux" }, api.CodeInvalid, `no folder named "servers"; there is nothing`},
		"no such network":   {func(in *api.MakeVMInput) { in.VM.NICs[0].Network = "vlan 7" }, api.CodeInvalid, `name the network to take instead (networks: {"vlan 7": NAME})`},
		"no such card":      {func(in *api.MakeVMInput) { in.At.Networks = map[string]string{"vlan 8": "VM Network"} }, api.CodeInvalid, `no network card in "vlan 8"`},
		"no room":           {func(in *api.MakeVMInput) { in.Disks[1].Size = 1 << 50 }, api.CodeInvalid, "make room or name another"},
		"no datastore":      {func(in *api.MakeVMInput) { in.At.Datastore = "" }, api.CodeInvalid, "location.datastore"},
		"no master target":  {func(in *api.MakeVMInput) { in.MasterTarget = "mt-9" }, api.CodeNotFound, "no VM named mt-9"},
		"a name as a path":  {func(in *api.MakeVMInput) { in.At.Name = "../db-1" }, api.CodeInvalid, "location.name"},
	} {
		in := base
		at := *base.At
		in.At, in.Disks, in.VM.NICs = &at, slices.Clone(base.Disks), slices.Clone(base.VM.NICs)
		c.change(&in)
		err := w.CheckLocation(t.Context(), in)
		requireCode(t, err, c.code)
		require.ErrorContains(t, err, c.want, name)
		_, err = w.MakeVM(t.Context(), in)
		requireCode(t, err, c.code)
	}
	for privilege, on := range map[string]string{
		"VirtualMachine.Inventory.Create": "the folder of the VM", "Resource.AssignVMToPool": "the resource pool",
		"Datastore.AllocateSpace": "local-2", "Network.Assign": "the network of card 1",
	} {
		w.sim.Deny("drover", privilege)
		err := w.CheckLocation(t.Context(), base)
		requireCode(t, err, api.CodeVCenterDenied)
		require.ErrorContains(t, err, privilege+" on "+on)
	}
	require.ElementsMatch(t, []string{"app-1", "mt-1"}, w.names(t))
	require.Empty(t, w.files(t, "datastore-local-2"))
}

// TestNetworksAndFolders are those that the location names; a host in maintenance is none.
func TestNetworksAndFolders(t *testing.T) {
	w := newWide(t)
	in := w.anew(t, "db-1")
	finder := find.NewFinder(w.sim.Client().Client)
	root, err := finder.Folder(t.Context(), "/DC0/vm")
	require.NoError(t, err)
	servers, err := root.CreateFolder(t.Context(), "servers")
	require.NoError(t, err)
	_, err = servers.CreateFolder(t.Context(), "linux")
	require.NoError(t, err)
	in.At.Folder, in.At.Pool = "servers/linux", "Resources"
	in.At.Networks = map[string]string{in.VM.NICs[0].Network: "DC0_DVPG0"}
	made, err := w.MakeVM(t.Context(), in) // the original is in another folder
	require.NoError(t, err)
	require.Equal(t, "DC0_DVPG0", made.VM.NICs[0].Network, "a port group has its name, not its key")
	require.Equal(t, "linux", made.VM.Folder)

	host, err := finder.HostSystem(t.Context(), "*/"+made.VM.Host)
	require.NoError(t, err)
	task, err := host.EnterMaintenanceMode(t.Context(), 0, false, nil)
	require.NoError(t, err)
	require.NoError(t, task.Wait(t.Context()))
	in.Run, in.At.Host, in.At.Name = "second", made.VM.Host, "db-2"
	_, err = w.MakeVM(t.Context(), in)
	requireCode(t, err, api.CodeInvalid)
	require.ErrorContains(t, err, "in maintenance mode")
	in.MasterTarget, in.At.Host = "", ""
	require.NoError(t, w.CheckLocation(t.Context(), in), "another host would do")
}

// TestControllers are those that the machine had, and LSI Logic where that is not known.
func TestControllers(t *testing.T) {
	w := newWide(t)
	in := w.anew(t, "db-1")
	in.At.Name = "db-2"
	in.Disks = slices.Clone(in.Disks)
	in.Disks[0].At, in.Disks[1].At = api.Place{Controller: pvscsi, Bus: 1, Unit: 3}, api.Place{Controller: nvme, Unit: 2}
	made, err := w.MakeVM(t.Context(), in)
	require.NoError(t, err)
	require.Equal(t, in.Disks[0].At, made.Disks[0].At)
	require.Equal(t, in.Disks[1].At, made.Disks[1].At)
	noted := api.MakeVMInput{VM: api.VM{Disks: in.Disks}, Disks: []api.VMDisk{{ID: in.Disks[1].ID}}}
	require.Equal(t, in.Disks[1].At, placesOf(noted)[0], "as the VM says, where the protected disk does not")
	places := placesOf(api.MakeVMInput{Disks: make([]api.VMDisk, 16)})
	require.Equal(t, api.Place{Controller: lsilogic, Unit: 8}, places[7], "unit 7 is the controller's own")
	require.Equal(t, api.Place{Controller: lsilogic, Bus: 1}, places[15])
}

// TestWatchSeesWhoseVMItIs: the machine, and no word of changes that are nothing of ours.
func TestWatchSeesWhoseVMItIs(t *testing.T) {
	w := newWide(t)
	in := w.anew(t, "db-1")
	w.destroy(t, "db-1")
	// The simulator shows a VM while it is still making it: it is made before the watch, and
	// is told whose it is by the next try.
	w.sim.FailTask("ReconfigVM_Task", &types.TaskInProgress{})
	_, err := w.MakeVM(t.Context(), in)
	require.Error(t, err)
	reports := make(chan api.WatchReport, 100)
	w.config.Tell = func(_ context.Context, _ string, r api.WatchReport) error { reports <- r; return nil }
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Watch(ctx, api.WatchInput{VCenter: w.vcenter, For: api.Duration(time.Minute)}) }()
	require.True(t, (<-reports).Full)
	made, err := w.MakeVM(t.Context(), in)
	require.NoError(t, err)
	var last api.VM
	for end := time.After(30 * time.Second); last.InstanceUUID != made.VM.InstanceUUID || len(last.Disks) != 2 || last.Disks[1].ID != in.Disks[1].ID; {
		select {
		case r := <-reports:
			for _, vm := range r.VMs {
				if vm.InstanceUUID == made.VM.InstanceUUID {
					last = vm
				}
			}
		case <-end:
			t.Fatalf("the watch did not tell of the VM as it is: %+v", last)
		}
	}
	require.Equal(t, made.VM, last)
	stop()
	<-done
	var raw mo.VirtualMachine
	raw.Config = &types.VirtualMachineConfigInfo{ExtraConfig: []types.BaseOptionValue{&types.OptionValue{Key: "guestinfo.x", Value: "y"}}}
	require.Empty(t, ours(raw.Config.ExtraConfig), "nothing else is kept")
}
