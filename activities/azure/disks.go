package azure

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/compute/armcompute/v7"

	"drover/activities/target"
	"drover/datapath/replica/pageblob/vhd"
	"drover/workflows/api"
)

// States of resources and disks, as Azure calls them.
const (
	succeeded = "Succeeded"
	failed    = "Failed"
	deleting  = "Deleting"

	aboutDisk = "disk "

	// Bounds of a managed disk's size; an upload wants 20 MiB at least.
	minDisk = 20 << 20
	maxDisk = 32 << 40

	maxSettle = 6 * time.Hour // for what another try began
	// accessFor is how long a disk may be written to by its signed address.
	accessFor = 12 * time.Hour
)

// rounded is the size of a managed disk for so many bytes.
func rounded(size int64) int64 { return max(vhd.Size(size), minDisk) }

// CreateDisk makes an empty disk that is to be filled through its signed address.
func (c *Cloud) CreateDisk(ctx context.Context, ref target.Ref, spec target.DiskSpec) (target.Disk, error) {
	d, err := c.emptyDisk(ctx, ref, spec)
	if err != nil {
		return target.Disk{}, err
	}
	return describe(d, spec), nil
}

func (c *Cloud) emptyDisk(ctx context.Context, ref target.Ref, spec target.DiskSpec) (armcompute.Disk, error) {
	return c.disk(ctx, ref, spec, &armcompute.CreationData{
		CreateOption: to.Ptr(armcompute.DiskCreateOptionUpload), UploadSizeBytes: to.Ptr(rounded(spec.Size) + vhd.FooterSize),
	})
}

// describe gives a disk as target has it.
func describe(d armcompute.Disk, spec target.DiskSpec) target.Disk {
	return target.Disk{
		ID: spec.ID, Name: value(d.Name), BackingUUID: backing(spec.Number), Size: spec.Size, Location: value(d.ID), Filled: filled(d),
	}
}

// backing is how the agent in the guest finds a disk. Azure shows a guest no uuid of
// its disks, but udev's rules there link them by place.
func backing(number int) string {
	if number == 0 {
		return "azure-root"
	}
	return fmt.Sprintf("azure-lun-%d", number-1)
}

func value[T any](p *T) T {
	if p == nil {
		var none T
		return none
	}
	return *p
}

// filled says whether a disk has its content: an import has it when it is there.
func filled(d armcompute.Disk) bool {
	if d.Properties == nil {
		return false
	}
	if uploaded(d) {
		return tag(d.Tags, tagFilled) != ""
	}
	return value(d.Properties.ProvisioningState) == succeeded
}

func uploaded(d armcompute.Disk) bool {
	return d.Properties.CreationData != nil && value(d.Properties.CreationData.CreateOption) == armcompute.DiskCreateOptionUpload
}

// disk finds the disk that an earlier try made, or makes it.
func (c *Cloud) disk(ctx context.Context, ref target.Ref, spec target.DiskSpec, from *armcompute.CreationData) (armcompute.Disk, error) {
	n := diskName(ref, spec.Number)
	if target.JournalOf(ctx).Operation(aboutDisk+n) != "" {
		return c.makeDisk(ctx, n, spec, from) // goes on where the last try was
	}
	have, err := c.settledDisk(ctx, n)
	switch {
	case errors.Is(err, target.ErrNotFound):
		return c.makeDisk(ctx, n, spec, from)
	case err != nil:
		return have, err
	case !ours(have.Tags, ref):
		return have, notOurs("disk", n)
	case !usable(have, from):
		if err := c.deleteDisk(ctx, n); err != nil {
			return have, err
		}
		return c.makeDisk(ctx, n, spec, from)
	}
	return have, nil
}

// usable says whether a disk is what was wanted, or can still become it.
func usable(d armcompute.Disk, from *armcompute.CreationData) bool {
	p := d.Properties
	switch {
	case value(d.ManagedBy) != "":
		return true // its machine runs: never to be deleted here
	case value(p.ProvisioningState) != succeeded, p.CreationData == nil:
		return false
	case value(p.CreationData.CreateOption) != value(from.CreateOption):
		return false
	case !uploaded(d):
		return true
	case value(p.CreationData.UploadSizeBytes) != value(from.UploadSizeBytes):
		return false
	case filled(d):
		return true
	}
	// One whose access ended before its content was complete cannot be opened again.
	return writable(d)
}

func writable(d armcompute.Disk) bool {
	state := value(d.Properties.DiskState)
	return state == armcompute.DiskStateReadyToUpload || state == armcompute.DiskStateActiveUpload
}

// settledDisk gives a disk that nothing is done to just now.
func (c *Cloud) settledDisk(ctx context.Context, n string) (armcompute.Disk, error) {
	var d armcompute.Disk
	err := c.settle(ctx, func() (string, error) {
		r, err := c.disks.Get(ctx, c.ResourceGroup, n, nil)
		d = r.Disk
		if err != nil {
			return "", fault(err, "look at disk %s", n)
		}
		return value(d.Properties.ProvisioningState), nil
	})
	return d, err
}

// settle looks until a resource is in a state that lasts.
func (c *Cloud) settle(ctx context.Context, look func() (string, error)) error {
	ctx, cancel := context.WithTimeout(ctx, maxSettle)
	defer cancel()
	for {
		state, err := look()
		if err != nil || state == succeeded || state == failed || state == "Canceled" {
			return err
		}
		if err := pause(ctx, c.Poll); err != nil {
			return err
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *Cloud) makeDisk(ctx context.Context, n string, spec target.DiskSpec, from *armcompute.CreationData) (armcompute.Disk, error) {
	kind := spec.Kind
	if kind == "" {
		kind = c.DiskType
	}
	d := armcompute.Disk{
		Location: &c.Location, Tags: tags(spec.Tags, diskStep(spec.Number)),
		SKU:        &armcompute.DiskSKU{Name: to.Ptr(armcompute.DiskStorageAccountTypes(kind))},
		Properties: &armcompute.DiskProperties{CreationData: from},
	}
	d.Tags[tagDisk], d.Tags[tagSize] = to.Ptr(spec.ID.String()), to.Ptr(strconv.FormatInt(spec.Size, 10))
	if spec.Zone != "" {
		d.Zones = []*string{&spec.Zone}
	}
	if spec.Number == 0 { // the machine boots from it
		d.Properties.HyperVGeneration = to.Ptr(generation(spec.Firmware))
		d.Properties.OSType = to.Ptr(armcompute.OperatingSystemTypes(system(spec.Windows)))
	}
	r, err := await(ctx, c, aboutDisk+n, func(token string) (*runtime.Poller[armcompute.DisksClientCreateOrUpdateResponse], error) {
		return c.disks.BeginCreateOrUpdate(ctx, c.ResourceGroup, n, d, &armcompute.DisksClientBeginCreateOrUpdateOptions{ResumeToken: token})
	})
	if err != nil {
		return r.Disk, fault(err, "make disk %s", n)
	}
	return c.settledDisk(ctx, n)
}

func (c *Cloud) deleteDisk(ctx context.Context, n string) error {
	_, err := await(ctx, c, "delete disk "+n, func(token string) (*runtime.Poller[armcompute.DisksClientDeleteResponse], error) {
		return c.disks.BeginDelete(ctx, c.ResourceGroup, n, &armcompute.DisksClientBeginDeleteOptions{ResumeToken: token})
	})
	if notFound(err) {
		return nil
	}
	return fault(err, "delete disk %s", n)
}

// generation is Hyper-V's word for the firmware.
func generation(firmware string) armcompute.HyperVGeneration {
	if firmware == "efi" {
		return armcompute.HyperVGenerationV2
	}
	return armcompute.HyperVGenerationV1
}

func system(windows bool) string {
	if windows {
		return string(armcompute.OperatingSystemTypesWindows)
	}
	return string(armcompute.OperatingSystemTypesLinux)
}

// grant gives the signed address that a disk is written to by. It is a secret: it
// stays in this process.
func (c *Cloud) grant(ctx context.Context, n string) (string, error) {
	p, err := c.disks.BeginGrantAccess(ctx, c.ResourceGroup, n, armcompute.GrantAccessData{
		Access: to.Ptr(armcompute.AccessLevelWrite), DurationInSeconds: to.Ptr(int32(accessFor / time.Second)),
	}, nil)
	if err != nil {
		return "", fault(err, "open disk %s for writing", n)
	}
	r, err := p.PollUntilDone(ctx, &runtime.PollUntilDoneOptions{Frequency: c.Poll})
	if err != nil {
		return "", fault(err, "open disk %s for writing", n)
	}
	if value(r.AccessSAS) == "" {
		return "", &target.Fault{Code: api.CodeTarget, Text: fmt.Sprintf("open disk %s for writing: Azure gave no address", n)}
	}
	return *r.AccessSAS, nil
}

// seal ends the writing to a disk, and notes that it has all its content.
func (c *Cloud) seal(ctx context.Context, n string) error {
	_, err := await(ctx, c, "seal disk "+n, func(token string) (*runtime.Poller[armcompute.DisksClientRevokeAccessResponse], error) {
		return c.disks.BeginRevokeAccess(ctx, c.ResourceGroup, n, &armcompute.DisksClientBeginRevokeAccessOptions{ResumeToken: token})
	})
	if err != nil {
		return fault(err, "close disk %s", n)
	}
	d, err := c.settledDisk(ctx, n)
	if err != nil {
		return err
	}
	if writable(d) {
		return &target.Fault{Code: api.CodeTarget, Text: fmt.Sprintf("close disk %s: it is in state %s still", n, value(d.Properties.DiskState))}
	}
	d.Tags[tagFilled] = to.Ptr("true")
	_, err = await(ctx, c, "tag disk "+n, func(token string) (*runtime.Poller[armcompute.DisksClientUpdateResponse], error) {
		return c.disks.BeginUpdate(ctx, c.ResourceGroup, n, armcompute.DiskUpdate{Tags: d.Tags}, &armcompute.DisksClientBeginUpdateOptions{ResumeToken: token})
	})
	return fault(err, "note that disk %s is complete", n)
}
