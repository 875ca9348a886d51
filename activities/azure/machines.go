package azure

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/compute/armcompute/v7"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/network/armnetwork/v9"
	"github.com/google/uuid"

	"drover/activities/target"
	"drover/datapath/ident"
	"drover/workflows/api"
)

const (
	powerRunning = "running"
	aboutMachine = "machine "
)

// Start makes the machine from its disks and its card, which starts it; one that is
// there is started if it does not run. A test's network is looked at again: hours
// may have passed.
func (c *Cloud) Start(ctx context.Context, ref target.Ref) (target.Machine, error) {
	card, err := c.settledCard(ctx, ref)
	if err != nil {
		return target.Machine{}, err
	}
	if !ours(card.Tags, ref) {
		return target.Machine{}, notOurs("network card", cardName(ref))
	}
	if err := c.stillIsolated(ctx, card); err != nil {
		return target.Machine{}, err
	}
	vm, err := c.running(ctx, ref, card)
	if err != nil {
		return target.Machine{}, err
	}
	return c.describe(ctx, ref, vm, card)
}

func (c *Cloud) stillIsolated(ctx context.Context, card armnetwork.Interface) error {
	if tag(card.Tags, target.TagTest) != "true" {
		return nil
	}
	n, err := c.Network(ctx, networkOf(card))
	if err != nil {
		return err
	}
	if len(n.WaysOut) > 0 {
		return target.NotIsolated(n)
	}
	return nil
}

// running finds the machine, or makes it, and has it run.
func (c *Cloud) running(ctx context.Context, ref target.Ref, card armnetwork.Interface) (armcompute.VirtualMachine, error) {
	if target.JournalOf(ctx).UnderWay(abouts(card)...) != "" {
		return c.makeMachine(ctx, ref, card) // goes on where the last try was
	}
	vm, err := c.settledMachine(ctx, ref)
	switch {
	case errors.Is(err, target.ErrNotFound):
		return c.makeMachine(ctx, ref, card)
	case err != nil:
		return vm, err
	case !ours(vm.Tags, ref):
		return vm, notOurs("virtual machine", name(ref))
	}
	power, _, err := c.power(ctx, ref)
	switch {
	case err != nil:
		return vm, err
	case power == powerRunning:
		return vm, nil
	case value(vm.Properties.ProvisioningState) == failed && power == "":
		// It never ran: there was no room for it. Its disks stay.
		if err := c.deleteMachine(ctx, name(ref)); err != nil {
			return vm, err
		}
		return c.makeMachine(ctx, ref, card)
	}
	_, err = await(ctx, c, "start", func(token string) (*runtime.Poller[armcompute.VirtualMachinesClientStartResponse], error) {
		return c.machines.BeginStart(ctx, c.ResourceGroup, name(ref), &armcompute.VirtualMachinesClientBeginStartOptions{ResumeToken: token})
	})
	if err != nil {
		return vm, fault(err, "start virtual machine %s", name(ref))
	}
	return c.settledMachine(ctx, ref)
}

// sizes are those to take, in order.
func sizes(card armnetwork.Interface) []string { return strings.Split(tag(card.Tags, tagSizes), ",") }

// abouts are the names that the making of the machine has in the journal.
func abouts(card armnetwork.Interface) []string {
	out := sizes(card)
	for i, size := range out {
		out[i] = aboutMachine + size
	}
	return out
}

// makeMachine tries the sizes in order until there is room for one.
func (c *Cloud) makeMachine(ctx context.Context, ref target.Ref, card armnetwork.Interface) (armcompute.VirtualMachine, error) {
	var none armcompute.VirtualMachine
	n, err := strconv.Atoi(tag(card.Tags, tagDisks))
	if err != nil || n < 1 {
		return none, invalid("network card %s does not say how many disks the machine has: delete the machine and begin again", cardName(ref))
	}
	disks, err := c.disksOf(ctx, ref, n)
	if err != nil {
		return none, err
	}
	var tried []string
	var last error
	underWay := strings.TrimPrefix(target.JournalOf(ctx).UnderWay(abouts(card)...), aboutMachine)
	for _, size := range sizes(card) {
		if underWay != "" && size != underWay {
			continue // an earlier try came past it
		}
		underWay = ""
		vm, err := c.putMachine(ctx, ref, card, disks, size)
		if err == nil {
			return vm, nil
		}
		if !hasCode(err, api.CodeNoCapacity) && !hasCode(err, api.CodeQuota) {
			return none, err
		}
		c.Logger.Warn("no room for a size", "machine", ref.Name, "size", size, "error", err)
		tried, last = append(tried, size), err
		if err := c.deleteMachine(ctx, name(ref)); err != nil {
			return none, err
		}
	}
	code := api.CodeNoCapacity
	if hasCode(last, api.CodeQuota) {
		code = api.CodeQuota
	}
	return none, &target.Fault{Code: code, Text: fmt.Sprintf("no room for sizes %s, at last: %s", strings.Join(tried, ", "), last)}
}

func (c *Cloud) putMachine(ctx context.Context, ref target.Ref, card armnetwork.Interface, disks []target.Disk, size string) (armcompute.VirtualMachine, error) {
	detach := to.Ptr(armcompute.DiskDeleteOptionTypesDetach)
	vm := armcompute.VirtualMachine{
		Location: &c.Location, Tags: tags(plain(card.Tags), "vm"),
		Properties: &armcompute.VirtualMachineProperties{
			HardwareProfile: &armcompute.HardwareProfile{VMSize: to.Ptr(armcompute.VirtualMachineSizeTypes(size))},
			StorageProfile: &armcompute.StorageProfile{OSDisk: &armcompute.OSDisk{
				CreateOption: to.Ptr(armcompute.DiskCreateOptionTypesAttach), DeleteOption: detach,
				OSType:      to.Ptr(armcompute.OperatingSystemTypes(tag(card.Tags, tagSystem))),
				ManagedDisk: &armcompute.ManagedDiskParameters{ID: &disks[0].Location},
			}},
			NetworkProfile: &armcompute.NetworkProfile{NetworkInterfaces: []*armcompute.NetworkInterfaceReference{{ID: card.ID}}},
			DiagnosticsProfile: &armcompute.DiagnosticsProfile{
				BootDiagnostics: &armcompute.BootDiagnostics{Enabled: to.Ptr(true)}, // kept by Azure
			},
		},
	}
	for i, d := range disks[1:] {
		vm.Properties.StorageProfile.DataDisks = append(vm.Properties.StorageProfile.DataDisks, &armcompute.DataDisk{
			CreateOption: to.Ptr(armcompute.DiskCreateOptionTypesAttach), DeleteOption: detach,
			Lun: to.Ptr(int32(i)), ManagedDisk: &armcompute.ManagedDiskParameters{ID: &d.Location}, //nolint:gosec // at most 64
		})
	}
	if zone := tag(card.Tags, tagZone); zone != "" {
		vm.Zones = []*string{&zone}
	}
	if set := tag(card.Tags, tagSet); set != "" {
		vm.Properties.AvailabilitySet = &armcompute.SubResource{ID: to.Ptr(c.id("Microsoft.Compute/availabilitySets", set))}
	}
	_, err := await(ctx, c, aboutMachine+size, func(token string) (*runtime.Poller[armcompute.VirtualMachinesClientCreateOrUpdateResponse], error) {
		return c.machines.BeginCreateOrUpdate(ctx, c.ResourceGroup, name(ref), vm, &armcompute.VirtualMachinesClientBeginCreateOrUpdateOptions{ResumeToken: token})
	})
	if err != nil {
		return vm, fault(err, "make virtual machine %s of size %s", name(ref), size)
	}
	return c.settledMachine(ctx, ref)
}

// id is the resource id of what we name in our own resource group.
func (c *Cloud) id(kind, n string) string {
	if strings.HasPrefix(n, "/") {
		return n // it is one already
	}
	return fmt.Sprintf("/subscriptions/%s/resourceGroups/%s/providers/%s/%s", c.Subscription, c.ResourceGroup, kind, n)
}

func (c *Cloud) settledMachine(ctx context.Context, ref target.Ref) (armcompute.VirtualMachine, error) {
	var vm armcompute.VirtualMachine
	err := c.settle(ctx, func() (string, error) {
		r, err := c.machines.Get(ctx, c.ResourceGroup, name(ref), nil)
		vm = r.VirtualMachine
		if err != nil {
			return "", fault(err, "look at virtual machine %s", name(ref))
		}
		return value(vm.Properties.ProvisioningState), nil
	})
	return vm, err
}

// power gives the machine's power state, and what its agent of Azure says.
func (c *Cloud) power(ctx context.Context, ref target.Ref) (state, agent string, err error) {
	view, err := c.machines.InstanceView(ctx, c.ResourceGroup, name(ref), nil)
	if err != nil {
		return "", "", fault(err, "look at virtual machine %s", name(ref))
	}
	for _, s := range view.Statuses {
		if p, ok := strings.CutPrefix(value(s.Code), "PowerState/"); ok {
			state = p
		}
	}
	if view.VMAgent != nil && len(view.VMAgent.Statuses) > 0 {
		agent = value(view.VMAgent.Statuses[0].DisplayStatus)
	}
	return state, agent, nil
}

// Stop stops the machine, so that nothing is paid for but its disks.
func (c *Cloud) Stop(ctx context.Context, ref target.Ref) error {
	vm, err := c.settledMachine(ctx, ref)
	if err != nil {
		return err
	}
	if !ours(vm.Tags, ref) {
		return notOurs("virtual machine", name(ref))
	}
	power, _, err := c.power(ctx, ref)
	if err != nil || power == "deallocated" {
		return err
	}
	_, err = await(ctx, c, "stop", func(token string) (*runtime.Poller[armcompute.VirtualMachinesClientDeallocateResponse], error) {
		return c.machines.BeginDeallocate(ctx, c.ResourceGroup, name(ref), &armcompute.VirtualMachinesClientBeginDeallocateOptions{ResumeToken: token})
	})
	return fault(err, "stop virtual machine %s", name(ref))
}

// describe gives the machine as target has it.
func (c *Cloud) describe(ctx context.Context, ref target.Ref, vm armcompute.VirtualMachine, card armnetwork.Interface) (target.Machine, error) {
	n, err := strconv.Atoi(tag(card.Tags, tagDisks))
	if err != nil {
		return target.Machine{}, invalid("network card %s does not say how many disks the machine has", cardName(ref))
	}
	power, _, err := c.power(ctx, ref)
	if err != nil {
		return target.Machine{}, err
	}
	m := target.Machine{
		Name: ref.Name, Instance: guestUUID(value(vm.Properties.VMID), tag(card.Tags, tagGeneration)),
		Network: networkOf(card), Address: addressOf(card), Running: power == powerRunning, Tags: plain(vm.Tags),
	}
	if vm.Properties.HardwareProfile != nil {
		m.Size = string(value(vm.Properties.HardwareProfile.VMSize))
	}
	m.Disks, err = c.disksOf(ctx, ref, n)
	return m, err
}

// guestUUID is what a guest sees of a machine's id as its hardware uuid. The SMBIOS of
// generation 1 is older than the rule that the first fields are little-endian, so
// that guests show them the other way round.
func guestUUID(id, generation string) string {
	u, err := uuid.Parse(id)
	if err != nil || generation != string(armcompute.HyperVGenerationV1) {
		return id
	}
	u[0], u[1], u[2], u[3] = u[3], u[2], u[1], u[0]
	u[4], u[5], u[6], u[7] = u[5], u[4], u[7], u[6]
	return u.String()
}

// disksOf gives the machine's disks, in order; all must be there.
func (c *Cloud) disksOf(ctx context.Context, ref target.Ref, n int) ([]target.Disk, error) {
	out := make([]target.Disk, 0, n)
	for i := range n {
		d, err := c.settledDisk(ctx, diskName(ref, i))
		if err != nil {
			return nil, err
		}
		if !ours(d.Tags, ref) {
			return nil, notOurs("disk", diskName(ref, i))
		}
		id, err := ident.ParseDiskID(tag(d.Tags, tagDisk))
		if err != nil {
			return nil, invalid("disk %s does not say which disk of the source it is: %s", diskName(ref, i), err)
		}
		size, err := strconv.ParseInt(tag(d.Tags, tagSize), 10, 64)
		if err != nil {
			return nil, invalid("disk %s does not say how large the source's was", diskName(ref, i))
		}
		out = append(out, describe(d, target.DiskSpec{ID: id, Number: i, Size: size}))
	}
	return out, nil
}
