package vsim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
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
			if err := s.link(); err != nil {
				fmt.Fprintln(os.Stderr, "vsim: link the master target's disks:", err)
			}
		}
	}
}

// link makes the master target's directory show the disks that its VM has, and
// notes which disks are in use. It looks at the VMs themselves, each with its lock.
func (s *Sim) link() error {
	all := s.model.Map()
	ctx := &simulator.Context{Context: context.Background(), Map: all}
	holders := map[string]string{}
	disks := []attached{}
	for _, e := range all.All("VirtualMachine") {
		vm, ok := e.(*simulator.VirtualMachine)
		if !ok {
			continue
		}
		ctx.WithLock(vm, func() {
			target := vm.Name == s.spec.MasterTarget.Name
			if !target && vm.Runtime.PowerState != types.VirtualMachinePowerStatePoweredOn {
				return
			}
			for _, file := range diskFiles(vm.Config) {
				holders[file] = vm.Name
			}
			if target {
				disks = disksOf(vm.Config)
			}
		})
	}
	s.mu.Lock()
	s.holders = holders
	s.mu.Unlock()
	return s.linkDisks(disks)
}

// attached is a disk of the master target's VM.
type attached struct {
	uuid, file string
	size       int64
}

func disksOf(config *types.VirtualMachineConfigInfo) (out []attached) {
	for _, d := range object.VirtualDeviceList(config.Hardware.Device).SelectByType((*types.VirtualDisk)(nil)) {
		if b, ok := d.GetVirtualDevice().Backing.(*types.VirtualDiskFlatVer2BackingInfo); ok && b.Uuid != "" {
			out = append(out, attached{b.Uuid, b.FileName, d.(*types.VirtualDisk).CapacityInBytes})
		}
	}
	return out
}

func (s *Sim) linkDisks(disks []attached) error {
	dir := ByUUID(s.dir, s.spec.MasterTarget.Name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	want := map[string]string{}
	for _, d := range disks {
		path, err := s.flatFile(d.file)
		if err != nil {
			return err
		}
		want[d.uuid] = path
		// The simulator makes disks of no size.
		if err := truncate(path, d.size); err != nil {
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
