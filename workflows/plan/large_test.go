package plan

import (
	"encoding/json"
	"flag"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	commonpb "go.temporal.io/api/common/v1"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/testsuite"

	"drover/datapath/ident"
	"drover/datapath/replica"
	"drover/workflows/api"
)

// Temporal's limits, as its server comes: a payload above the first ends the run; above the
// others the server warns, long before it ends it.
const (
	mostPayload, warnEvents, warnHistory = 2 << 20, 10_240, 10 << 20
	// perActivity is what one activity adds at the most: scheduled, started, completed, and
	// a workflow task of its own.
	perActivity = 6
)

// long also plays the longest run (`make steps`).
var long = flag.Bool("long", false, "play the longest run of the largest plan, too")

// measured adds up what goes through a converter.
type measured struct {
	converter.DataConverter
	mu             sync.Mutex
	bytes, largest int
}

func (m *measured) ToPayloads(v ...any) (*commonpb.Payloads, error) {
	p, err := m.DataConverter.ToPayloads(v...)
	m.mu.Lock()
	defer m.mu.Unlock()
	size := 0
	for _, one := range p.GetPayloads() {
		size += len(one.GetData())
	}
	m.bytes, m.largest = m.bytes+size, max(m.largest, size)
	return p, err
}

// large is the largest plan that is allowed, of machines with many disks.
func large() (p api.Plan) {
	p.Name = "large"
	const groups = 50
	for i := range api.MaxPlanMachines {
		if i < groups {
			p.Groups = append(p.Groups, api.PlanGroup{Name: fmt.Sprintf("group-%d", i),
				Before: []api.PlanAction{script("before"), script("before too")}, After: []api.PlanAction{script("after"), script("after too"), script("at last")}})
		}
		g := &p.Groups[i%groups]
		g.Machines = append(g.Machines, api.PlanMachine{Name: fmt.Sprintf("application-server-%03d.site-a.example", i)})
	}
	return p
}

// outcome is what an action of a machine with 32 disks comes to.
func outcome(in api.MachineActionInput) api.ActionResult {
	const disks = 32
	target := &api.TargetMachine{Name: in.Machine.String(), Instance: in.Machine.String(), Network: "production", Address: "10.1.2.3", Running: true,
		Tags: map[string]string{"drover-run": api.MachineWorkflowID(in.Machine) + "-failover-107", "drover-machine": in.Machine.String(), "drover-plan": in.Request.PlanRun}}
	point := &replica.Point{ID: 123456, Time: time.Now(), Position: ident.Position{Epoch: 9, Seq: 123456}}
	for i := range disks {
		id := ident.NewDiskID(in.Machine, fmt.Sprint(i))
		target.Disks = append(target.Disks, api.TargetDisk{ID: id, Name: fmt.Sprintf("disk-%d", i), BackingUUID: id.String(), Size: 1 << 40, Location: strings.Repeat("x", 100)})
		point.Disks = append(point.Disks, replica.Disk{Name: fmt.Sprintf("Hard disk %d", i), BackingUUID: id.String(), Path: strings.Repeat("x", 100)})
	}
	return api.ActionResult{Machine: in.Machine, Name: in.Machine.String(), Action: in.Action, State: api.StateFailedOver, Message: "failed over", Point: point, Target: target}
}

// TestLargestPlan: a run of the largest plan stays under what Temporal warns of in the number
// of its events and the size of its history, and far from the largest payload.
func TestLargestPlan(t *testing.T) {
	for kind, phases := range map[api.PlanKind]int{api.PlanPlanned: 1, api.PlanReturn: 3} {
		if phases > 1 && !*long {
			continue
		}
		t.Run(string(kind), func(t *testing.T) { playLargest(t, kind, phases) })
	}
}

func playLargest(t *testing.T, kind api.PlanKind, phases int) {
	p := large()
	env := new(testsuite.WorkflowTestSuite).NewTestWorkflowEnvironment()
	m := &measured{DataConverter: converter.GetDefaultDataConverter()}
	env.SetDataConverter(m)
	env.SetTestTimeout(time.Minute)
	var mu sync.Mutex
	activities, atOnce, most := 0, 0, 0
	count := func(by int) {
		mu.Lock()
		defer mu.Unlock()
		atOnce += by
		if by > 0 {
			activities++
		}
		most = max(most, atOnce)
	}
	reg := func(name string, f any) { env.RegisterActivityWithOptions(f, activity.RegisterOptions{Name: name}) }
	reg(api.ActLookupPlan, func(string) (api.Plan, error) { count(1); defer count(-1); return p, nil })
	reg(api.ActFindMachine, func(name string) (api.VaultMember, error) {
		count(1)
		defer count(-1)
		return api.VaultMember{Machine: ident.NewMachineID("v", name), Name: name}, nil
	})
	reg(api.ActCheckActions, func([]api.LocatedAction) ([]api.FieldError, error) { return nil, nil })
	reg(api.ActScript, func(api.ScriptInput) (api.ActionOutput, error) {
		count(1)
		defer count(-1)
		return api.ActionOutput{Output: strings.Repeat("o", 4<<10)}, nil
	})
	reg(api.ActMachineAction, func(in api.MachineActionInput) (api.ActionResult, error) {
		count(1)
		defer count(-1)
		return outcome(in).Brief(), nil // as the activity does
	})
	env.ExecuteWorkflow(Workflow, api.PlanRunInput{Plan: "large", Kind: kind, By: "anna"})
	require.NoError(t, env.GetWorkflowError())
	var s api.PlanStatus
	require.NoError(t, env.GetWorkflowResult(&s))
	require.Len(t, s.Steps, phases*api.MaxPlanMachines+250)
	status, err := json.Marshal(s)
	require.NoError(t, err)
	t.Logf("%d machines in %d groups: %d activities, at most %d at once, at most %d events; status %d KiB, largest payload %d KiB, all payloads %d KiB",
		api.MaxPlanMachines, len(p.Groups), activities, most, activities*perActivity, len(status)>>10, m.largest>>10, m.bytes>>10)
	require.Less(t, activities*perActivity, phases*warnEvents, "a return is warned of, its end is at five times as many")
	require.Less(t, len(status), mostPayload*3/4)
	require.Less(t, m.largest, mostPayload*3/4)
	require.Less(t, m.bytes, warnHistory)
}
