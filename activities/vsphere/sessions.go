package vsphere

import (
	"context"
	"sync"

	"github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/vim25/types"

	"drover/workflows/api"
)

// maxVCenters bounds the sessions that are kept.
const maxVCenters = 64

// sessions keeps one session per vCenter.
type sessions struct {
	mu     sync.Mutex
	by     map[string]*place
	closed bool
}

// place of a vCenter's session. Who holds the lock may log in; a vCenter that does not
// answer delays its own calls alone.
type place struct {
	lock    chan struct{}
	current *session
}

func (s *sessions) place(vcenter string) (*place, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, failed(api.CodeInternal, nil, "vCenter %s is not asked any more: the configuration server stops", vcenter)
	}
	p := s.by[vcenter]
	if p == nil {
		if len(s.by) >= maxVCenters {
			return nil, failed(api.CodeInvalid, nil, "vCenter %s: at most %d vCenters can be handled", vcenter, maxVCenters)
		}
		p = &place{lock: make(chan struct{}, 1)}
		s.by[vcenter] = p
	}
	return p, nil
}

// Close ends all sessions. Calls that are under way fail.
func (a *Activities) Close(ctx context.Context) {
	a.sessions.mu.Lock()
	defer a.sessions.mu.Unlock()
	a.sessions.closed = true
	for _, p := range a.sessions.by {
		p.lock <- struct{}{} // bounded by a log-in
		if p.current != nil {
			p.current.logout(ctx)
			p.current = nil
		}
		<-p.lock
	}
}

// session gives the vCenter's session and opens one if there is none, or if what it was
// opened with has changed. stale is one that vCenter does not know any more; nil: none.
func (a *Activities) session(ctx context.Context, v api.VCenter, stale *session) (*session, error) {
	x, err := a.access(v)
	if err != nil {
		return nil, err
	}
	p, err := a.sessions.place(v.Name)
	if err != nil {
		return nil, err
	}
	select {
	case p.lock <- struct{}{}:
	case <-ctx.Done():
		return nil, failed(api.CodeVCenter, ctx.Err(), "log in to vCenter %s", v.Name)
	}
	defer func() { <-p.lock }()
	old := p.current
	if old != nil && old != stale && old.key == x.key() {
		return old, nil
	}
	fresh, err := a.login(ctx, x)
	if err != nil {
		return nil, err // an old session with other credentials may still serve who has it
	}
	p.current = fresh
	if old != nil {
		old.logout(ctx)
	}
	return fresh, nil
}

// on calls f with the vCenter's session, and once more with a new one if vCenter does
// not know the first any more. What f does may be done twice.
func (a *Activities) on(ctx context.Context, v api.VCenter, f func(*session) error) error {
	s, err := a.session(ctx, v, nil)
	if err != nil {
		return err
	}
	err = f(s)
	if err == nil || !fault.Is(err, &types.NotAuthenticated{}) {
		return err
	}
	a.config.Logger.Info("vCenter ended the session; a new one is opened", "vcenter", v.Name)
	if s, err = a.session(ctx, v, s); err != nil {
		return err
	}
	return f(s)
}
