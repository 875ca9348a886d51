// Package vsim is a simulated vCenter whose disks are real files: govmomi's
// simulator behind TLS with a log-in, a datastore in a directory of ours, and VMs
// whose -flat.vmdk files have their full size. It speaks the real vSphere
// protocol on a socket, and adds what real ones do and the simulator does not: a VM
// whose disks are attached elsewhere cannot be powered on; disks attached to the
// master target's VM appear in a by-uuid directory there, as they would in
// /dev/disk/by-id; users lack privileges; tasks fail; power-offs are clean or not; guest
// operations are done in a container that is a VM's guest (tests/vsim/docker), and files
// come to it through a host with a certificate of its own.
// Tests put a Proxy before it to break the line.
package vsim

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/google/uuid"
	"github.com/vmware/govmomi"
	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

const datastoreName = "local-1"

// Sim is a running vCenter.
type Sim struct {
	dir    string
	spec   Spec
	model  *simulator.Model
	server *simulator.Server
	client *govmomi.Client
	info   Info
	thumb  string
	guests *guests
	making *making
	rest   *restDoor

	stop context.CancelFunc
	wg   sync.WaitGroup

	mu      sync.Mutex
	holders map[string]string // disk file -> VM that runs with it or is the master target
	faults  map[string]types.BaseMethodFault
	noTools map[string]bool
	hangs   map[string]bool
	denied  map[string]map[string]bool // user and privilege -> objects; none: all
}

// Start runs a vCenter at the address ("host:port"), with its files in dir.
func Start(ctx context.Context, dir, listen string, spec Spec) (*Sim, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Join(dir, "datastore"), 0o755); err != nil {
		return nil, fmt.Errorf("start the simulated vCenter: %w", err)
	}
	s := &Sim{dir: dir, spec: spec, making: newMaking(), faults: map[string]types.BaseMethodFault{}, noTools: map[string]bool{}, hangs: map[string]bool{}, denied: map[string]map[string]bool{}}
	if err := s.serve(listen); err != nil {
		return nil, fmt.Errorf("start the simulated vCenter: %w", err)
	}
	if err := s.fill(ctx); err != nil {
		s.close()
		return nil, fmt.Errorf("fill the simulated vCenter: %w", err)
	}
	if err := s.link(); err != nil {
		s.close()
		return nil, err
	}
	watch, stop := context.WithCancel(context.Background())
	s.stop = stop
	s.wg.Add(1)
	go func() { defer s.wg.Done(); s.watch(watch) }()
	return s, nil
}

// Info says how to reach it and what is in it.
func (s *Sim) Info() Info { return s.info }

// Close stops it, and ends its guests. The disks' files stay.
func (s *Sim) Close() {
	s.stop()
	s.wg.Wait()
	_ = s.client.Logout(context.Background())
	s.server.CloseClientConnections()
	s.close()
}

// close ends what is served, with the guests' containers and the simulator's own directory.
func (s *Sim) close() {
	s.server.Close()
	s.guests.server.Close()
	s.model.Remove()
}

// id derives a uuid that is the same in every run.
func id(kind, name string) string {
	return uuid.NewSHA1(uuid.NameSpaceURL, []byte("drover-vsim:"+kind+":"+name)).String()
}

func (s *Sim) serve(listen string) error {
	s.model = simulator.VPX()
	s.model.Machine, s.model.Datastore, s.model.Host = 0, 0, 0
	s.model.Cluster, s.model.ClusterHost = 1, 1+s.spec.Hosts
	s.model.ServiceContent.About.InstanceUuid = id("vcenter", cmp.Or(s.spec.Name, "1"))
	if err := s.model.Create(); err != nil {
		return err
	}
	s.model.Service.TLS = new(tls.Config)
	s.model.Service.Listen = &url.URL{Host: listen, User: url.UserPassword(s.spec.User, s.spec.Password)}
	s.model.Map().Handler = s.before
	s.model.Map().AddHandler(s.making)
	if err := s.serveGuests(); err != nil {
		return err
	}
	s.server = s.model.Service.NewServer()
	s.serveREST()
	s.thumb = fmt.Sprintf("%X", sha256.Sum256(s.server.Certificate().Raw))
	return nil
}

// diskFiles lists the datastore paths of a VM's disks.
func diskFiles(config *types.VirtualMachineConfigInfo) []string {
	var files []string
	if config == nil {
		return nil
	}
	for _, d := range object.VirtualDeviceList(config.Hardware.Device).SelectByType((*types.VirtualDisk)(nil)) {
		if b, ok := d.GetVirtualDevice().Backing.(*types.VirtualDiskFlatVer2BackingInfo); ok {
			files = append(files, b.FileName)
		}
	}
	return files
}

func (s *Sim) fill(ctx context.Context) error {
	u := *s.server.URL
	u.User = url.UserPassword(s.spec.User, s.spec.Password)
	// Its own certificate, in its own process.
	client, err := govmomi.NewClient(ctx, &u, true)
	if err != nil {
		return err
	}
	s.client = client
	finder := find.NewFinder(client.Client)
	dc, err := finder.DefaultDatacenter(ctx)
	if err != nil {
		return err
	}
	finder.SetDatacenter(dc)
	hosts, err := finder.HostSystemList(ctx, "*/*")
	if err != nil {
		return err
	}
	host := hosts[0]
	for _, h := range hosts {
		if err := s.mount(ctx, h); err != nil {
			return fmt.Errorf("host %s: %w", h.Name(), err)
		}
	}
	mt := VMSpec{Name: s.spec.MasterTarget.Name, CPUs: 2, MemoryMB: 2048}
	address := *s.server.URL
	address.User = nil
	s.info = Info{URL: address.String(), Thumbprint: s.thumb, UUID: s.model.ServiceContent.About.InstanceUuid}
	for _, vm := range append([]VMSpec{mt}, s.spec.VMs...) {
		info, err := s.create(ctx, finder, dc, host, vm)
		if err != nil {
			return fmt.Errorf("VM %s: %w", vm.Name, err)
		}
		if vm.Name != mt.Name {
			s.info.VMs = append(s.info.VMs, info)
		}
		for _, tag := range vm.Tags {
			if err := s.Tag(ctx, vm.Name, tag); err != nil {
				return fmt.Errorf("tag %s of VM %s: %w", tag, vm.Name, err)
			}
		}
	}
	return nil
}

// mount gives a host all datastores.
func (s *Sim) mount(ctx context.Context, host *object.HostSystem) error {
	system, err := host.ConfigManager().DatastoreSystem(ctx)
	if err != nil {
		return err
	}
	for _, name := range append([]string{datastoreName}, s.spec.Datastores...) {
		if err := os.MkdirAll(datastore(s.dir, name), 0o755); err != nil {
			return err
		}
		if _, err := system.CreateLocalDatastore(ctx, name, datastore(s.dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// datastore is the directory of a datastore.
func datastore(dir, name string) string {
	if name == datastoreName {
		return filepath.Join(dir, "datastore")
	}
	return filepath.Join(dir, "datastore-"+name)
}

// create makes a VM with disks of full size, and powers it on.
func (s *Sim) create(ctx context.Context, finder *find.Finder, dc *object.Datacenter, host *object.HostSystem, spec VMSpec) (VMInfo, error) {
	folders, err := dc.Folders(ctx)
	if err != nil {
		return VMInfo{}, err
	}
	pool, err := finder.DefaultResourcePool(ctx)
	if err != nil {
		return VMInfo{}, err
	}
	devices, err := s.devices(ctx, finder, spec)
	if err != nil {
		return VMInfo{}, err
	}
	config := types.VirtualMachineConfigSpec{
		Name: spec.Name, GuestId: string(types.VirtualMachineGuestOsIdentifierUbuntu64Guest), Firmware: string(types.GuestOsDescriptorFirmwareTypeEfi),
		Uuid: id("bios", spec.Name), InstanceUuid: id("instance", spec.Name), NumCPUs: spec.CPUs, MemoryMB: spec.MemoryMB,
		Files: &types.VirtualMachineFileInfo{VmPathName: "[" + datastoreName + "]"}, DeviceChange: devices,
	}
	task, err := folders.VmFolder.CreateVM(ctx, config, pool, host)
	if err != nil {
		return VMInfo{}, err
	}
	result, err := task.WaitForResult(ctx)
	if err != nil {
		return VMInfo{}, err
	}
	vm := object.NewVirtualMachine(s.client.Client, result.Result.(types.ManagedObjectReference))
	info, err := s.inspect(ctx, vm, spec)
	if err != nil {
		return info, err
	}
	task, err = vm.PowerOn(ctx)
	if err != nil {
		return info, err
	}
	return info, task.Wait(ctx)
}

func (s *Sim) devices(ctx context.Context, finder *find.Finder, spec VMSpec) ([]types.BaseVirtualDeviceConfigSpec, error) {
	var devices object.VirtualDeviceList
	scsi, err := devices.CreateSCSIController("lsilogic")
	if err != nil {
		return nil, err
	}
	devices = append(devices, scsi)
	network, err := finder.Network(ctx, "VM Network")
	if err != nil {
		return nil, err
	}
	backing, err := network.EthernetCardBackingInfo(ctx)
	if err != nil {
		return nil, err
	}
	nic, err := devices.CreateEthernetCard("vmxnet3", backing)
	if err != nil {
		return nil, err
	}
	devices = append(devices, nic)
	for i, size := range spec.Disks {
		unit := int32(i)
		devices = append(devices, &types.VirtualDisk{
			VirtualDevice: types.VirtualDevice{
				Key: int32(-200 - i), DeviceInfo: &types.Description{Label: fmt.Sprintf("Hard disk %d", i+1)}, ControllerKey: scsi.GetVirtualDevice().Key, UnitNumber: &unit,
				Backing: &types.VirtualDiskFlatVer2BackingInfo{
					DiskMode: string(types.VirtualDiskModePersistent), ThinProvisioned: types.NewBool(true),
					VirtualDeviceFileBackingInfo: types.VirtualDeviceFileBackingInfo{FileName: "[" + datastoreName + "]"},
				},
			},
			CapacityInBytes: size, CapacityInKB: size / 1024,
		})
	}
	return devices.ConfigSpec(types.VirtualDeviceConfigSpecOperationAdd)
}

// inspect gives what became of the VM and lets its disk files have their size.
func (s *Sim) inspect(ctx context.Context, vm *object.VirtualMachine, spec VMSpec) (VMInfo, error) {
	var props mo.VirtualMachine
	if err := vm.Properties(ctx, vm.Reference(), []string{"config"}, &props); err != nil {
		return VMInfo{}, err
	}
	info := VMInfo{Name: spec.Name, InstanceUUID: props.Config.InstanceUuid, BIOSUUID: props.Config.Uuid}
	for _, d := range object.VirtualDeviceList(props.Config.Hardware.Device).SelectByType((*types.VirtualDisk)(nil)) {
		disk := d.(*types.VirtualDisk)
		backing, ok := disk.Backing.(*types.VirtualDiskFlatVer2BackingInfo)
		if !ok {
			return info, errors.New("a disk without a flat backing")
		}
		path, err := s.flatFile(backing.FileName)
		if err != nil {
			return info, err
		}
		if err := truncate(path, disk.CapacityInBytes); err != nil {
			return info, err
		}
		info.Disks = append(info.Disks, DiskInfo{
			Label: disk.DeviceInfo.GetDescription().Label, BackingUUID: backing.Uuid, Size: disk.CapacityInBytes, Path: path,
		})
	}
	if len(info.Disks) != len(spec.Disks) {
		return info, fmt.Errorf("%d disks were made, want %d", len(info.Disks), len(spec.Disks))
	}
	return info, nil
}

// truncate gives a new file its size and leaves one that has it alone.
func truncate(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err == nil && info.Size() != size {
		err = f.Truncate(size)
	}
	return errors.Join(err, f.Close())
}

// flatFile is the file with the content of the disk "[datastore] dir/name.vmdk".
func (s *Sim) flatFile(name string) (string, error) {
	var p object.DatastorePath
	if !p.FromString(name) || !filepath.IsLocal(p.Datastore) || !filepath.IsLocal(p.Path) || !strings.HasSuffix(p.Path, ".vmdk") {
		return "", fmt.Errorf("disk backing %q is on no datastore of ours", name)
	}
	return FlatFile(s.dir, name), nil
}

// FlatFile is where that file is, below the vCenter's directory.
func FlatFile(dir, name string) string {
	var p object.DatastorePath
	p.FromString(name)
	return filepath.Join(datastore(dir, p.Datastore), strings.TrimSuffix(p.Path, ".vmdk")+"-flat.vmdk")
}
