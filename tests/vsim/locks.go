package vsim

import (
	"context"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// The simulator takes some locks in two orders, and hangs for good when two calls meet:
// a session's end with what the session is still at, and a VM that is made with who waits
// for updates. Both are done here without holding one lock while waiting for the other.

// filterPatience is how long an update waits for a filter that is being read.
const filterPatience = 100 * time.Millisecond

// filter is told of its view's updates while the view's lock is held; who reads it has its
// lock and wants the view's.
type filter struct{ *simulator.PropertyFilter }

// loosen lets the collector's filters be told by a filter.
func loosen(ctx *simulator.Context, pc *simulator.PropertyCollector) {
	for _, ref := range pc.Filter {
		if f, ok := ctx.Session.Get(ref).(*simulator.PropertyFilter); ok {
			ctx.Map.AddHandler(filter{f}) // in its place
		}
	}
}

// UpdateObject goes on without the filter that is being read; it is told all the same.
func (f filter) UpdateObject(ctx *simulator.Context, o mo.Reference, changes []types.PropertyChange) {
	for _, set := range f.Spec.ObjectSet {
		if set.Obj != o.Reference() || len(set.SelectSet) == 0 {
			continue
		}
		told := make(chan struct{})
		own := &simulator.Context{Context: context.Background(), Map: ctx.Map}
		go func() { // ends when whoever reads the filter has read it
			defer close(told)
			f.PropertyFilter.UpdateObject(own, o, changes)
		}()
		select {
		case <-told:
		case <-time.After(filterPatience):
		}
		return
	}
}

// logout stands for the session manager when a session ends. The simulator's own keeps the
// session's registry locked meanwhile, and waits for objects whose calls want that.
type logout struct {
	*simulator.SessionManager
	sim *Sim
}

// Lock and Unlock do nothing: others need not wait for a session's end.
func (*logout) Lock() {}

// Unlock does nothing, see Lock.
func (*logout) Unlock() {}

// Logout does what the simulator's does.
func (l *logout) Logout(ctx *simulator.Context, _ *types.Logout) soap.HasFault {
	session := ctx.Session
	other := *ctx
	other.Session = &simulator.Session{Registry: session.Registry, Map: ctx.Map}
	l.TerminateSession(&other, &types.TerminateSession{SessionId: []string{session.Key}})
	for _, o := range session.AllReference("") {
		if _, ok := o.(simulator.RegisterObject); ok && o.Reference() != l.sim.model.ServiceContent.PropertyCollector {
			ctx.Map.Remove(ctx, o.Reference())
		}
	}
	events := ctx.Map.EventManager()
	ctx.WithLock(events, func() {
		events.PostEvent(ctx, &types.PostEvent{EventToPost: &types.UserLogoutSessionEvent{
			IpAddress: session.IpAddress, UserAgent: session.UserAgent, SessionId: session.Key, LoginTime: &session.LoginTime,
		}})
	})
	return &methods.LogoutBody{Res: new(types.LogoutResponse)}
}
