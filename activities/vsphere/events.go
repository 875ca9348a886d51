package vsphere

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/vmware/govmomi/event"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"drover/workflows/api"
)

// Bounds of the events of a watch.
const (
	eventPage  = 100
	eventPages = 50               // in one go; the rest comes with the next
	eventsBack = 24 * time.Hour   // what is looked at after a watch that was away
	shutdownIn = 15 * time.Minute // from the guest's shutdown to the power-off that it leads to
	eventsHeld = 4096             // shutdowns that are remembered
)

// eventTail reads events one after the other, each once.
type eventTail struct {
	after    api.EventCursor
	shutdown map[types.ManagedObjectReference]time.Time // by their guests
}

// open makes a collector of all events after those that are known.
func (t *eventTail) open(ctx context.Context, client *vim25.Client) (*event.HistoryCollector, error) {
	now, err := methods.GetCurrentTime(ctx, client)
	if err != nil {
		return nil, err
	}
	if t.after.Time.IsZero() {
		t.after.Time = *now
	}
	if oldest := now.Add(-eventsBack); t.after.Time.Before(oldest) {
		t.after.Time = oldest
	}
	t.shutdown = map[types.ManagedObjectReference]time.Time{}
	begin := t.after.Time.Add(-shutdownIn) // a shutdown of before may lead to a power-off of now
	h, err := event.NewManager(client).CreateCollectorForEvents(ctx, types.EventFilterSpec{
		Time:               &types.EventFilterSpecByTime{BeginTime: &begin},
		DisableFullMessage: types.NewBool(true),
	})
	if err != nil {
		return nil, err
	}
	return h, h.Rewind(ctx)
}

// read gives the events since the last call.
func (t *eventTail) read(ctx context.Context, h *event.HistoryCollector) (out []types.BaseEvent, err error) {
	for range eventPages {
		page, err := h.ReadNextEvents(ctx, eventPage)
		if err != nil {
			return nil, err
		}
		out = append(out, page...)
		if len(page) < eventPage {
			break
		}
	}
	event.Sort(out)
	return out, nil
}

// judge says what the events mean for the VMs' disks, and moves the cursor.
func (t *eventTail) judge(events []types.BaseEvent, raw map[types.ManagedObjectReference]*mo.VirtualMachine, known map[types.ManagedObjectReference]api.VM) []api.VMEvent {
	var out []api.VMEvent
	for _, b := range events {
		e := b.GetEvent()
		if e.Vm == nil {
			continue
		}
		ref := e.Vm.Vm
		if _, ok := b.(*types.VmGuestShutdownEvent); ok && len(t.shutdown) < eventsHeld {
			t.shutdown[ref] = e.CreatedTime
		}
		old := e.CreatedTime.Before(t.after.Time) || e.Key <= t.after.Key && !e.CreatedTime.After(t.after.Time)
		kind := t.kind(b, raw[ref])
		if _, off := b.(*types.VmPoweredOffEvent); off {
			delete(t.shutdown, ref)
		}
		if vm, ok := known[ref]; ok && kind != "" && !old {
			out = append(out, api.VMEvent{Machine: vm.Machine, Instance: vm.InstanceUUID, Kind: kind, At: e.CreatedTime.UTC(), Text: textOf(b)})
		}
		if !old {
			t.after = api.EventCursor{Key: e.Key, Time: e.CreatedTime.UTC()}
		}
	}
	return out
}

// exEvents come as EventEx, by their ids.
var exEvents = map[string]api.VMEventKind{
	"com.vmware.vc.ha.vmrestartedbyhaevent":      api.VMHARestarted,
	"com.vmware.vc.vm.vmstaterevertedtosnapshot": api.VMReverted,
}

// kind says whether the guest was stopped without a word, and how; "" if not.
func (t *eventTail) kind(b types.BaseEvent, vm *mo.VirtualMachine) api.VMEventKind {
	switch e := b.(type) {
	case *types.VmResettingEvent:
		return api.VMReset
	case *types.VmGuestOSCrashedEvent:
		return api.VMCrashed
	case *types.VmRestartedOnAlternateHostEvent, *types.VmDasBeingResetEvent, *types.VmDasBeingResetWithScreenshotEvent:
		return api.VMHARestarted
	case *types.EventEx:
		return exEvents[strings.ToLower(e.EventTypeId)]
	case *types.VmPoweredOffEvent:
		asked, ok := t.shutdown[e.Vm.Vm]
		clean := ok && e.CreatedTime.Sub(asked) <= shutdownIn
		// vCenter's own word about the last power-off, if that is this one.
		if vm != nil && vm.Runtime.PowerState == types.VirtualMachinePowerStatePoweredOff && vm.Runtime.CleanPowerOff != nil {
			clean = *vm.Runtime.CleanPowerOff
		}
		if !clean {
			return api.VMPoweredOff
		}
	}
	return ""
}

func textOf(b types.BaseEvent) string {
	e := b.GetEvent()
	by := ""
	if e.UserName != "" {
		by = " by " + e.UserName
	}
	name := strings.TrimPrefix(fmt.Sprintf("%T", b), "*types.")
	if x, ok := b.(*types.EventEx); ok {
		name = x.EventTypeId
	}
	return fmt.Sprintf("%s%s (event %d)", name, by, e.Key)
}
