package replication

import (
	"context"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/testsuite"

	"drover/agent/controlapi"
	"drover/datapath/cachestore"
	"drover/datapath/ident"
	"drover/datapath/replica"
	"drover/datapath/stream"
	"drover/workflows/api"
)

var (
	machine = ident.NewMachineID("vc", "vm-1")
	disk    = api.VMDisk{ID: ident.NewDiskID(machine, "b-1"), Label: "Hard disk 1", BackingUUID: "b-1", Size: 1 << 20}
	now     = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
)

func code(t *testing.T, err error) string {
	t.Helper()
	var app *temporal.ApplicationError
	require.ErrorAs(t, err, &app)
	return app.Type()
}

// env runs activities by the names they are registered under.
func env(t *testing.T, activities map[string]any) *testsuite.TestActivityEnvironment {
	t.Helper()
	var suite testsuite.WorkflowTestSuite
	e := suite.NewTestActivityEnvironment()
	for name, f := range activities {
		e.RegisterActivityWithOptions(f, activity.RegisterOptions{Name: name})
	}
	return e
}

func run[Out any](t *testing.T, e *testsuite.TestActivityEnvironment, name string, in any) (out Out, err error) {
	t.Helper()
	value, err := e.ExecuteActivity(name, in)
	if err == nil && value != nil && value.HasValue() {
		require.NoError(t, value.Get(&out))
	}
	return out, err
}

// fakeRegistry is a registry in memory.
type fakeRegistry struct {
	servers     []Server
	assignments map[ident.MachineID]controlapi.Assignment
	dropped     []ident.MachineID
}

func (f *fakeRegistry) Servers(ident.Role) ([]Server, error) { return f.servers, nil }
func (f *fakeRegistry) Assignment(m ident.MachineID) (controlapi.Assignment, bool) {
	a, ok := f.assignments[m]
	return a, ok
}
func (f *fakeRegistry) SetAssignment(a controlapi.Assignment) error {
	a.Version = f.assignments[a.Machine].Version + 1
	f.assignments[a.Machine] = a
	return nil
}
func (f *fakeRegistry) DropKeys(m ident.MachineID) error {
	f.dropped = append(f.dropped, m)
	return nil
}

// fakeStore is a store of one machine's points.
type fakeStore struct {
	replica.Store
	absent  bool
	points  []replica.Point
	epoch   ident.Epoch
	removed bool
	// forgotten are the documents that were removed.
	forgotten []string
	// others are further machines' points; of them nothing changes.
	others map[ident.MachineID][]replica.Point
	// lose removes the point just before it is held, as retention may.
	lose ident.Seq
}

func (f *fakeStore) Machines(context.Context) ([]ident.MachineID, error) {
	return append(slices.Collect(maps.Keys(f.others)), machine), nil
}

func (f *fakeStore) OpenReader(_ context.Context, id ident.MachineID) (replica.Reader, error) {
	if f.absent {
		return nil, replica.ErrNotFound
	}
	if other, ok := f.others[id]; ok {
		return &fakeReader{store: &fakeStore{points: other}}, nil
	}
	return &fakeReader{store: f}, nil
}
func (f *fakeStore) Fence(_ context.Context, _ ident.MachineID, e ident.Epoch) error {
	if e < f.epoch {
		return replica.ErrFenced
	}
	f.epoch = e
	return nil
}
func (f *fakeStore) RemoveDocument(_ context.Context, name string) error {
	f.forgotten = append(f.forgotten, name)
	return nil
}
func (f *fakeStore) Remove(context.Context, ident.MachineID, ident.Epoch) error {
	for _, p := range f.points {
		if len(p.Holds) > 0 {
			return replica.ErrHeld
		}
	}
	f.removed = true
	return nil
}

type fakeReader struct {
	replica.Reader
	store *fakeStore
}

func (r *fakeReader) State(context.Context) (replica.State, error) {
	return replica.State{Points: slices.Clone(r.store.points)}, nil
}
func (r *fakeReader) Hold(_ context.Context, id ident.Seq, h replica.Hold) error {
	for i, p := range r.store.points {
		if p.ID == id && id != r.store.lose {
			r.store.points[i].Holds = append(slices.Clone(p.Holds), h)
			return nil
		}
	}
	return replica.ErrNotFound
}
func (r *fakeReader) Release(_ context.Context, id ident.Seq, owner string) error {
	for i, p := range r.store.points {
		if p.ID == id {
			r.store.points[i].Holds = slices.DeleteFunc(p.Holds, func(h replica.Hold) bool { return h.Owner == owner })
		}
	}
	return nil
}
func (r *fakeReader) Close() error { return nil }

// fakeCache is a cache of names.
type fakeCache struct {
	cachestore.Store
	epoch ident.Epoch
	names []cachestore.Name
}

func (f *fakeCache) Fence(_ context.Context, _ ident.MachineID, e ident.Epoch) error {
	if e < f.epoch {
		return cachestore.ErrFenced
	}
	f.epoch = e
	return nil
}
func (f *fakeCache) List(context.Context, ident.MachineID) ([]cachestore.Name, error) {
	return slices.Clone(f.names), nil
}
func (f *fakeCache) Delete(_ context.Context, n cachestore.Name) error {
	f.names = slices.DeleteFunc(f.names, func(m cachestore.Name) bool { return m == n })
	return nil
}

// fakeStreams is a process server whose status the test sets. next, when set, is
// called at each look and changes the status.
type fakeStreams struct {
	mu      sync.Mutex
	status  *stream.Status
	grants  []stream.Grant
	bases   []string
	looks   int
	next    func(looks int, st *stream.Status)
	cutWait bool // Cut waits for its context
	verify  func(context.Context, ident.Epoch, stream.VerifyOrder) (stream.SignedRecord, error)
}

func (f *fakeStreams) Grant(_ context.Context, g stream.Grant) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.status != nil && f.status.Epoch > g.Epoch {
		return replica.ErrFenced
	}
	f.grants = append(f.grants, g)
	if f.status != nil && f.status.Epoch == g.Epoch {
		return nil
	}
	f.status = &stream.Status{Machine: g.Spec.Machine, Epoch: g.Epoch, Phase: stream.PhaseWaiting}
	return nil
}
func (f *fakeStreams) Revoke(context.Context, ident.MachineID, ident.Epoch) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.status = nil
	return nil
}
func (f *fakeStreams) StartBase(_ context.Context, _ ident.MachineID, _ ident.Epoch, cause string, _ bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.bases = append(f.bases, cause)
	f.status.Broken = nil
	if f.status.Complete || f.status.Generation == 0 {
		f.status.Generation++
	}
	f.status.Complete, f.status.Phase = false, stream.PhaseBase
	return nil
}
func (f *fakeStreams) MarkBroken(context.Context, ident.MachineID, ident.Epoch, stream.Broken) error {
	return nil
}
func (f *fakeStreams) Status(ident.MachineID) (stream.Status, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.status == nil {
		return stream.Status{}, replica.ErrNotFound
	}
	f.looks++
	if f.next != nil {
		f.next(f.looks, f.status)
	}
	if f.status == nil {
		return stream.Status{}, replica.ErrNotFound
	}
	return *f.status, nil
}
func (f *fakeStreams) Cut(ctx context.Context, _ ident.MachineID, _ ident.Epoch, final bool) (replica.Point, error) {
	if f.cutWait {
		<-ctx.Done()
		return replica.Point{}, ctx.Err()
	}
	return replica.Point{ID: 9, Final: final}, nil
}
func (f *fakeStreams) Verify(ctx context.Context, _ ident.MachineID, e ident.Epoch, o stream.VerifyOrder) (stream.SignedRecord, error) {
	return f.verify(ctx, e, o)
}
func (f *fakeStreams) Release(context.Context, ident.MachineID, ident.Epoch) error { return nil }

// fakeSignals collects signals; it fails as often as told first.
type fakeSignals struct {
	mu     sync.Mutex
	fail   int
	events []api.ReplicationEvent
}

func (f *fakeSignals) SignalWorkflow(_ context.Context, _, _, name string, arg any) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail > 0 {
		f.fail--
		return context.DeadlineExceeded
	}
	if name == api.SignalReplicationEvent {
		f.events = append(f.events, arg.(api.ReplicationEvent))
	}
	return nil
}
