package vsim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/view"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// linkPause is how soon an attached disk appears at the master target.
const linkPause = 150 * time.Millisecond

// ByUUID is the directory of the links to disks that are attached to a VM.
func ByUUID(dir, vm string) string { return filepath.Join(dir, "by-uuid", vm) }

// watch keeps the links true until the context ends.
func (s *Sim) watch(ctx context.Context) {
	tick := time.NewTicker(linkPause)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if err := s.link(ctx); err != nil && ctx.Err() == nil {
				fmt.Fprintln(os.Stderr, "vsim: link the master target's disks:", err)
			}
		}
	}
}

// link makes the master target's directory show the disks that its VM has, and
// notes which disks are in use.
func (s *Sim) link(ctx context.Context) error {
	manager := view.NewManager(s.client.Client)
	all, err := manager.CreateContainerView(ctx, s.client.ServiceContent.RootFolder, []string{"VirtualMachine"}, true)
	if err != nil {
		return err
	}
	defer func() { _ = all.Destroy(context.WithoutCancel(ctx)) }()
	var vms []mo.VirtualMachine
	if err := all.Retrieve(ctx, []string{"VirtualMachine"}, []string{"name", "config.hardware.device", "runtime.powerState"}, &vms); err != nil {
		return err
	}
	holders := map[string]string{}
	for _, vm := range vms {
		if vm.Config == nil {
			continue
		}
		if vm.Name == s.spec.MasterTarget.Name {
			if err := s.linkDisks(vm); err != nil {
				return err
			}
		} else if vm.Runtime.PowerState != types.VirtualMachinePowerStatePoweredOn {
			continue
		}
		for _, file := range diskFiles(vm.Config) {
			holders[file] = vm.Name
		}
	}
	s.mu.Lock()
	s.holders = holders
	s.mu.Unlock()
	return nil
}

func (s *Sim) linkDisks(vm mo.VirtualMachine) error {
	dir := ByUUID(s.dir, vm.Name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	want := map[string]string{}
	for _, d := range object.VirtualDeviceList(vm.Config.Hardware.Device).SelectByType((*types.VirtualDisk)(nil)) {
		backing, ok := d.GetVirtualDevice().Backing.(*types.VirtualDiskFlatVer2BackingInfo)
		if !ok || backing.Uuid == "" {
			continue
		}
		path, err := s.flatFile(backing.FileName)
		if err != nil {
			return err
		}
		want[backing.Uuid] = path
		// The simulator makes disks of no size.
		if err := truncate(path, d.(*types.VirtualDisk).CapacityInBytes); err != nil {
			return err
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if want[e.Name()] == "" {
			err = errors.Join(err, os.Remove(filepath.Join(dir, e.Name())))
		}
		delete(want, e.Name())
	}
	for name, path := range want {
		err = errors.Join(err, os.Symlink(path, filepath.Join(dir, name)))
	}
	return err
}
