package resync

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/testsuite"
	"go.temporal.io/sdk/workflow"

	"drover/datapath/ident"
	"drover/workflows/api"
	"drover/workflows/fault"
)

// site is what a window finds: machines that are marked, and what it asked of them.
type site struct {
	*testsuite.TestWorkflowEnvironment
	t       *testing.T
	mu      sync.Mutex
	marked  []api.ResyncCandidate
	others  []string // servers of resyncs that others run
	ends    time.Time
	atOnce  int
	fails   map[string]error
	began   map[string][]byte // names, with the tokens of what runs
	most    map[string]int    // at once, by server
	stopped []string
	asked   []string
	closed  string // why the window is not open
}

func newSite(t *testing.T, machines ...string) *site {
	s := &site{TestWorkflowEnvironment: new(testsuite.WorkflowTestSuite).NewTestWorkflowEnvironment(), t: t, atOnce: 2,
		fails: map[string]error{}, began: map[string][]byte{}, most: map[string]int{}}
	for _, m := range machines {
		name, server, _ := strings.Cut(m, "@")
		s.marked = append(s.marked, api.ResyncCandidate{Server: server, Member: api.VaultMember{Machine: ident.NewMachineID("v", name), Name: name, Policy: "gold"}})
	}
	s.RegisterWorkflowWithOptions(Window, workflow.RegisterOptions{Name: api.WorkflowResyncWindow})
	s.RegisterActivityWithOptions(s.work, activity.RegisterOptions{Name: api.ActResyncWork})
	s.RegisterActivityWithOptions(s.action, activity.RegisterOptions{Name: api.ActMachineAction})
	return s
}

func (s *site) work(_ context.Context, in api.ResyncWorkInput) (api.ResyncWork, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := api.ResyncWork{Open: s.closed == "" && (s.ends.IsZero() || s.Now().Before(s.ends)), Reason: s.closed, Ends: s.ends, AtOnce: s.atOnce, Others: s.others}
	for _, c := range s.marked {
		if s.began[c.Member.Name] == nil {
			w.Marked = append(w.Marked, c)
			continue
		}
		assert.Contains(s.t, in.Mine, c.Member.Machine)
	}
	return w, nil
}

func (s *site) of(m ident.MachineID) api.ResyncCandidate {
	return s.marked[slices.IndexFunc(s.marked, func(c api.ResyncCandidate) bool { return c.Member.Machine == m })]
}

func (s *site) action(ctx context.Context, in api.MachineActionInput) (api.ActionResult, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.of(in.Machine)
	name := c.Member.Name
	if in.Action == api.ActionStopResync {
		s.stopped = append(s.stopped, name)
		token := s.began[name]
		delete(s.began, name)
		return api.ActionResult{}, s.CompleteActivity(token, nil, fault.New(api.CodeResyncPaused, "stopped"))
	}
	assert.True(s.t, in.Request.OnlyIfRequired)
	s.asked = append(s.asked, name)
	if err := s.fails[name]; err != nil {
		return api.ActionResult{}, err
	}
	s.began[name] = activity.GetInfo(ctx).TaskToken
	n := 0
	for other := range s.began {
		if s.of(ident.NewMachineID("v", other)).Server == c.Server {
			n++
		}
	}
	s.most[c.Server] = max(s.most[c.Server], n)
	return api.ActionResult{}, activity.ErrResultPending
}

// ends a resync well.
func (s *site) done(name string) {
	s.mu.Lock()
	token := s.began[name]
	delete(s.began, name)
	s.marked = slices.DeleteFunc(s.marked, func(c api.ResyncCandidate) bool { return c.Member.Name == name })
	s.mu.Unlock()
	require.NotNil(s.t, token, "%s runs", name)
	require.NoError(s.t, s.CompleteActivity(token, api.ActionResult{State: api.StateProtected}, nil))
}

func (s *site) after(d time.Duration, f func()) { s.RegisterDelayedCallback(f, d) }

func (s *site) play(in api.ResyncWindowInput) (out api.ResyncWindowResult) {
	s.ExecuteWorkflow(api.WorkflowResyncWindow, in)
	require.True(s.t, s.IsWorkflowCompleted())
	require.NoError(s.t, s.GetWorkflowError())
	require.NoError(s.t, s.GetWorkflowResult(&out))
	return out
}

func names(members []api.VaultMember) (out []string) {
	for _, m := range members {
		out = append(out, m.Name)
	}
	return out
}

// TestSoManyAtOncePerServer, whoever runs the others; one that ends makes room.
func TestSoManyAtOncePerServer(t *testing.T) {
	s := newSite(t, "a@ps-1", "b@ps-1", "c@ps-1", "d@ps-2", "e@ps-2")
	s.others = []string{"ps-2"}
	s.after(time.Minute, func() {
		require.ElementsMatch(t, []string{"a", "b", "d"}, s.asked)
		s.done("a")
	})
	s.after(2*time.Minute, func() {
		require.ElementsMatch(t, []string{"a", "b", "d", "c"}, s.asked)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.others = nil
	})
	s.after(10*time.Minute, func() {
		require.Len(t, s.asked, 5, "it looks again by itself")
		for _, m := range []string{"b", "c", "d", "e"} {
			s.done(m)
		}
	})
	out := s.play(api.ResyncWindowInput{Policy: "gold"})
	require.ElementsMatch(t, []string{"a", "b", "c", "d", "e"}, names(out.Resynced))
	require.Empty(t, out.Paused)
	require.Equal(t, map[string]int{"ps-1": 2, "ps-2": 2}, s.most)
}

// TestWindowEnds: what runs is stopped and goes on in the next one; nothing is begun.
func TestWindowEnds(t *testing.T) {
	s := newSite(t, "a@ps-1", "b@ps-1", "c@ps-1")
	s.ends = s.Now().Add(time.Hour)
	s.after(59*time.Minute, func() { require.Empty(t, s.stopped); s.done("a") })
	s.after(59*time.Minute+30*time.Second, func() { require.Len(t, s.asked, 3) })
	out := s.play(api.ResyncWindowInput{Policy: "gold"})
	require.Equal(t, []string{"a"}, names(out.Resynced))
	require.ElementsMatch(t, []string{"b", "c"}, names(out.Paused))
	require.ElementsMatch(t, []string{"b", "c"}, s.stopped)
	require.False(t, s.Now().Before(s.ends), "it ends at the end")

	next := newSite(t, "b@ps-1", "c@ps-1")
	next.after(time.Minute, func() { next.done("b"); next.done("c") })
	require.Len(t, next.play(api.ResyncWindowInput{Policy: "gold"}).Resynced, 2)
}

// TestOneFails: the others go on; it is not tried again before the next opening.
func TestOneFails(t *testing.T) {
	s := newSite(t, "a@ps-1", "b@ps-1")
	s.fails["a"] = fault.New(api.CodeReplicaDamaged, "it broke again")
	s.after(20*time.Minute, func() { s.done("b") })
	out := s.play(api.ResyncWindowInput{Policy: "gold"})
	require.Equal(t, []string{"a"}, names(out.Failed))
	require.Equal(t, []string{"b"}, names(out.Resynced))
	require.Equal(t, "policy gold: 1 resynchronised, 1 failed, 0 paused", out.Message)
	require.ElementsMatch(t, []string{"a", "b"}, s.asked)
}

func TestWindowThatIsNotOpen(t *testing.T) {
	s := newSite(t, "a@ps-1")
	s.closed = "outside the window"
	require.Contains(t, s.play(api.ResyncWindowInput{Policy: "gold"}).Message, "outside the window")
	require.Empty(t, s.asked)
}

// TestCancelledWindowStopsWhatRuns: nothing is left running that nobody watches.
func TestCancelledWindowStopsWhatRuns(t *testing.T) {
	s := newSite(t, "a@ps-1")
	s.after(time.Minute, s.CancelWorkflow)
	s.ExecuteWorkflow(api.WorkflowResyncWindow, api.ResyncWindowInput{Policy: "gold"})
	require.True(t, fault.Cancelled(s.GetWorkflowError()))
	require.Equal(t, []string{"a"}, s.stopped)
}
