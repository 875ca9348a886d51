package call

import (
	"time"

	"go.temporal.io/sdk/workflow"

	"drover/workflows/api"
)

// vcenter: a call that makes vCenter do something. A vCenter that restarts is
// away for minutes.
func vcenter() workflow.ActivityOptions {
	o := control()
	o.StartToCloseTimeout, o.HeartbeatTimeout = vcenterTimeout, controlBeat
	o.RetryPolicy = retry(vcenterBackOff, vcenterAttempts)
	return o
}

// Inventory makes a full pass over a vCenter. One try: the next pass comes anyway.
func Inventory(ctx workflow.Context, in api.VCenter) (api.InventoryResult, error) {
	o := vcenter()
	o.StartToCloseTimeout = inventoryLimit
	o.RetryPolicy = retry(backOffMost, 1)
	return run[api.InventoryResult](ctx, api.ActInventory, o, in)
}

// CheckPrivileges says what the vCenter's user lacks. One try: somebody waits.
func CheckPrivileges(ctx workflow.Context, in api.CheckVCenterInput) (api.VCenterCheck, error) {
	o := vcenter()
	o.RetryPolicy = retry(backOffMost, 1)
	return run[api.VCenterCheck](ctx, api.ActCheckVCenter, o, in)
}

// Watch watches a vCenter until the input's time is over. One try: the discovery shows
// why it failed, and begins another.
func Watch(ctx workflow.Context, in api.WatchInput) error {
	o := vcenter()
	o.StartToCloseTimeout = in.For.D() + inventoryLimit
	o.RetryPolicy = retry(backOffMost, 1)
	return do(ctx, api.ActWatch, o, in)
}

// ShutdownVM shuts a VM down. All tries together end within the limit, after
// which the caller goes on or gives up.
func ShutdownVM(ctx workflow.Context, in api.ShutdownInput, limit time.Duration) (api.ShutdownResult, error) {
	o := vcenter()
	o.StartToCloseTimeout = limit
	o.ScheduleToCloseTimeout = limit
	return run[api.ShutdownResult](ctx, api.ActShutdownVM, o, in)
}

// PowerOnVM powers a VM on.
func PowerOnVM(ctx workflow.Context, in api.VMRef) error {
	return do(ctx, api.ActPowerOnVM, vcenter(), in)
}

// AttachDisks attaches the original VM's disks to a master target.
func AttachDisks(ctx workflow.Context, in api.AttachInput) error {
	return do(ctx, api.ActAttachDisks, vcenter(), in)
}

// DetachDisks detaches them and keeps the files.
func DetachDisks(ctx workflow.Context, in api.AttachInput) error {
	return do(ctx, api.ActDetachDisks, vcenter(), in)
}

// VerifyVMReady checks that a VM is powered on and has what it had.
func VerifyVMReady(ctx workflow.Context, in api.VMRef) (api.VM, error) {
	return run[api.VM](ctx, api.ActVerifyVMReady, vcenter(), in)
}

// CheckLocation asks what would keep a machine's VM from being made anew, or from being
// used where it is.
func CheckLocation(ctx workflow.Context, in api.MakeVMInput) error {
	return do(ctx, api.ActCheckLocation, vcenter(), in)
}

// MakeVM makes a machine's VM anew.
func MakeVM(ctx workflow.Context, in api.MakeVMInput) (api.MadeVM, error) {
	return run[api.MadeVM](ctx, api.ActMakeVM, vcenter(), in)
}

// UnmakeVM deletes the VM that a run made; when it made none that is fine.
func UnmakeVM(ctx workflow.Context, in api.UnmakeVMInput) error {
	return do(ctx, api.ActUnmakeVM, vcenter(), in)
}

// PrecheckReturn asks vCenter what it would refuse of a machine's reprotect, and makes nothing.
func PrecheckReturn(ctx workflow.Context, in api.PrecheckInput) error {
	o := vcenter()
	o.StartToCloseTimeout, o.WaitForCancellation = quickTimeout, false
	o.RetryPolicy = retry(backOffMost, precheckAttempts)
	wanted, err := run[api.MakeVMInput](ctx, api.ActReturnOf, o, in)
	if err != nil {
		return err
	}
	return do(ctx, api.ActCheckLocation, o, wanted)
}
