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
