package cli

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/stretchr/testify/mock"
	"github.com/stretchr/testify/require"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/mocks"
	"go.temporal.io/sdk/temporal"

	"drover/datapath/changeset"
	"drover/datapath/health"
	"drover/datapath/ident"
	"drover/datapath/replica"
	"drover/datapath/stream"
	"drover/datapath/waterfall"
	"drover/workflows/api"
)

// run runs the command line against nothing.
func run(t *testing.T, args ...string) (code int, out, errOut string) {
	t.Helper()
	var o, e bytes.Buffer
	code = Main(t.Context(), "test", append(args, "--address", "127.0.0.1:1"), &o, &e)
	return code, o.String(), e.String()
}

func TestEveryVerbHasHelpAndExample(t *testing.T) {
	a := &app{}
	var check func(cmd *cobra.Command)
	check = func(cmd *cobra.Command) {
		for _, sub := range cmd.Commands() {
			if sub.Name() == "help" || sub.Name() == "completion" || sub.Name() == "exit-codes" {
				continue
			}
			require.NotEmpty(t, sub.Short, sub.CommandPath())
			require.Contains(t, sub.Example, "drover ", sub.CommandPath())
			check(sub)
		}
	}
	check(a.root("test"))
}

func TestUsageIsRefusedBeforeAnythingIsStarted(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "plan.yaml")
	require.NoError(t, os.WriteFile(bad, []byte("name: shop\ngroups:\n  - name: db\n    machines: []\n"), 0o600))
	for _, args := range [][]string{
		{"nonsense"}, {"status", "a", "b"}, {"resync"}, {"--nonsense"}, {"failover", "db-1"}, {"failover", "db-1", "--planned", "--unplanned"},
		{"failover", "db-1", "--planned", "--point", "yesterday"}, {"unprotect", "db-1"}, {"unprotect", "db-1", "--yes-name", "db-2"},
		{"protect", "db-1"}, {"plan", "run", "shop"}, {"plan", "run", "shop", "--test", "--planned"}, {"plan", "apply"}, {"plan", "apply", "-f", bad},
		{"vcenter", "add", "vc-1", "--url", "http://x", "--credentials", "a"}, {"vcenter", "add", "vc-1", "--url", "https://u:hunter2@x/sdk", "--credentials", "a"},
		{"vcenter", "add", "vc-1", "--url", "https://x/sdk", "--credentials", "../a"},
		{"verify"}, {"verify", "a", "b"}, {"verify", "db-1", "--rate", "fast"}, {"verify", "db-1", "--rate", "50"}, {"verify", "db-1", "--rate", "100KiB/s"}, {"verify", "db-1", "--rate", "-1MiB/s"},
		{"verify", "db-1", "--record", "/nowhere/at/all.json"},
		{"agent", "install", "db-1"}, {"agent", "install", "db-1", "--credentials", "g", "--by", "ssh"}, {"agent", "install", "db-1", "--credentials", "g", "--by", "rsh"},
		{"agent", "remove", "db-1", "--credentials", "g", "--by", "tools", "--host-key", "SHA256:x"}, {"agent", "install", "db-1", "--credentials", "g", "--host-key", "SHA256:x"},
	} {
		code, out, errOut := run(t, args...)
		require.Equal(t, exitUsage, code, "%v: %s%s", args, out, errOut)
		require.NotContains(t, errOut, "hunter2")
	}
	_, _, errOut := run(t, "plan", "apply", "-f", bad)
	require.Contains(t, errOut, "plan.yaml:4:")
}

// TestPushWay: with an address it is ssh, else VMware Tools.
func TestPushWay(t *testing.T) {
	for address, want := range map[string]string{"10.0.0.7": api.PushBySSH, "": api.PushByTools} {
		in := api.PushInput{Credentials: "guests", Address: address}
		require.NoError(t, pushWay(&in))
		require.Equal(t, want, in.By)
	}
}

func TestNoTemporal(t *testing.T) {
	code, _, errOut := run(t, "status")
	require.Equal(t, exitNoTemporal, code)
	require.Contains(t, errOut, "127.0.0.1:1")
	require.Contains(t, errOut, "TEMPORAL_ADDRESS")
}

func TestExitCodes(t *testing.T) {
	app := func(code string) error { return temporal.NewApplicationError("x", code) }
	for want, errs := range map[int][]error{
		exitFailed:     {errors.New("x"), app(api.CodeTarget), app("Other")},
		exitNotNow:     {app(api.CodeNotInState), app(api.CodeBusy), temporal.NewApplicationErrorWithCause("outer", "Other", app(api.CodeBusy))},
		exitNotFound:   {app(api.CodeNotFound), serviceerror.NewNotFound("x"), &notFoundError{errors.New("x")}},
		exitNoTemporal: {serviceerror.NewUnavailable("x"), &noTemporalError{"a", errors.New("x")}},
		exitUsage:      {app(api.CodeInvalid), &usageError{errors.New("x")}},
		exitWaits:      {&waitsError{"run", "step"}},
		exitDiffers:    {&differsError{"db-1"}},
	} {
		for _, err := range errs {
			require.Equal(t, want, exitCode(err), "%v", err)
		}
	}
}

// value is an encoded value that a mock client gives.
type value struct{ fill func(any) }

func (value) HasValue() bool { return true }
func (v value) Get(p any) error {
	v.fill(p)
	return nil
}

func TestMemberByNameAndID(t *testing.T) {
	one, two := ident.NewMachineID("v", "1"), ident.NewMachineID("v", "2")
	c := &mocks.Client{}
	c.On("QueryWorkflow", mock.Anything, api.VaultID, "", api.QueryStatus).Return(value{func(p any) {
		p.(*api.VaultStatus).Machines = []api.VaultMember{{Machine: one, Name: "twin"}, {Machine: two, Name: "twin"}, {Machine: ident.NewMachineID("v", "3"), Name: "db-1"}}
	}}, nil)
	a := &app{client: c}
	m, err := a.member(t.Context(), "db-1")
	require.NoError(t, err)
	require.Equal(t, "db-1", m.Name)
	m, err = a.member(t.Context(), two.String())
	require.NoError(t, err)
	require.Equal(t, two, m.Machine)
	_, err = a.member(t.Context(), "twin")
	require.Equal(t, exitUsage, exitCode(err))
	require.ErrorContains(t, err, one.String())
	_, err = a.member(t.Context(), "db-9")
	require.Equal(t, exitNotFound, exitCode(err))
}

func TestStatusTable(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	lines := []machineLine{
		{Machine: api.MachineStatus{Name: "db-1", State: api.StateInitialReplication, Health: api.Healthy, Assignment: api.Assignment{Server: "ps-1"}},
			Stream: &stream.Status{Disks: []stream.DiskProgress{{Name: "Hard disk 1", Size: 1 << 30, Done: 1 << 29, Bytes: 1 << 20}}}},
		{Machine: api.MachineStatus{Name: "app-1", State: api.StateResyncRequired, Health: api.Critical,
			Problems: []api.Problem{{Code: api.CodeSessionLost, Component: "agent", Cause: "no session for 5s", Action: "resync",
				Health: api.Critical, Evidence: "the log", Failover: true, Since: now}}}},
		{Machine: api.MachineStatus{Name: "app-2", State: api.StateProtected}, Stream: &stream.Status{Complete: true, StoredTime: now.Add(-7 * time.Second), Points: 12}},
	}
	var out bytes.Buffer
	printStatus(&out, lines, now)
	for _, want := range []string{"Hard disk 1 50 % of 1.0 GiB, 1.0 MiB sent", "ResyncRequired", "app-1: DRV-3001 Critical, agent: no session for 5s (since ", "failover possible)",
		"evidence: the log", "do: resync", "| 7s ", "| 12 "} {
		require.Contains(t, out.String(), want)
	}
}

func TestGroupsTable(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	machine := func(name, server string, s *stream.GroupStatus) machineLine {
		l := machineLine{Machine: api.MachineStatus{Name: name, Assignment: api.Assignment{Server: server}}, Stream: &stream.Status{Group: s}}
		l.Machine.PolicySpec.ConsistencyGroup = &api.ConsistencyGroup{Name: "shop"}
		return l
	}
	missed := []stream.Missing{{Name: "db-1", Why: "its agent is not connected"}}
	lines := []machineLine{
		machine("web-1", "ps-1", &stream.GroupStatus{Name: "shop", Round: 0xab, Time: now.Add(-7 * time.Second), Missed: missed, Others: 2}),
		machine("db-1", "ps-1", nil), machine("app-1", "ps-2", nil),
		{Machine: api.MachineStatus{Name: "alone"}, Stream: &stream.Status{}},
	}
	groups := groupsOf(lines)
	require.Len(t, groups, 2)
	require.Equal(t, []string{"db-1", "web-1"}, groups[0].Machines)
	var out bytes.Buffer
	printGroups(&out, groups, now)
	for _, want := range []string{"7s ago (00000000000000ab)", "db-1: its agent is not connected", "and 2 more", "group shop is on several servers"} {
		require.Contains(t, out.String(), want)
	}
	require.NotContains(t, out.String(), "alone ")
	out.Reset()
	printDetails(&out, lines[0])
	require.Contains(t, out.String(), "consistency group shop")
	require.Contains(t, out.String(), "missed the last round: db-1")
	out.Reset()
	printPoints(&out, []replica.Point{{ID: 4, Group: &changeset.Group{Name: "shop", Round: 0xab, Members: 3}}})
	require.Contains(t, out.String(), "shop 00000000000000ab (3 machines)")
}

func TestWaterfall(t *testing.T) {
	id := ident.NewDiskID(ident.NewMachineID("v", "1"), "a")
	line := func(chunks int64, apply time.Duration) []machineLine {
		times := waterfall.Times{Chunks: chunks}
		times.Spent[waterfall.Net], times.Spent[waterfall.Apply] = 30*time.Millisecond, apply
		return []machineLine{{Machine: api.MachineStatus{Name: "db-1"}, Stream: &stream.Status{Disks: []stream.DiskProgress{{ID: id, Name: "Hard disk 1", Times: times}}}},
			{Machine: api.MachineStatus{Name: "app-1"}}}
	}
	before := pictures{}
	var out bytes.Buffer
	printWaterfall(&out, line(10, 10*time.Millisecond), before)
	require.Contains(t, out.String(), "| net 75 % |")
	require.Contains(t, out.String(), "| 3ms ")
	out.Reset()
	printWaterfall(&out, line(14, 12*time.Second), before)
	require.Contains(t, out.String(), "| apply 100 % |")
	require.Contains(t, out.String(), "|      4 |", "only what came since")
	require.Contains(t, out.String(), "| 3s ")
	require.NotContains(t, out.String(), "app-1")
	out.Reset()
	printWaterfall(&out, line(2, 10*time.Millisecond), before)
	require.Contains(t, out.String(), "|      2 |", "the stream has begun anew")
}

func TestPlanTable(t *testing.T) {
	start := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	var out bytes.Buffer
	printPlan(&out, "plan-shop-1", api.PlanStatus{Plan: "shop", Kind: api.PlanTest, State: "done", RTO: api.Duration(90 * time.Second), Steps: []api.PlanStep{
		{ID: "1/db-1", Kind: "machine", State: api.StepDone, Started: start, Finished: start.Add(1500 * time.Millisecond), Message: "fine\nmore"},
	}})
	require.Contains(t, out.String(), "1.5s")
	require.Contains(t, out.String(), "RTO of the whole: 1m30s")
	require.False(t, strings.Contains(out.String(), "more"))
}

func TestSize(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 384 << 20: "384.0 MiB", 5 << 40: "5.0 TiB"} {
		require.Equal(t, want, size(n))
	}
}

func TestServersShowWhatIsWrong(t *testing.T) {
	now := time.Now()
	var out bytes.Buffer
	printServers(&out, []api.ServerStatus{
		{Name: "ps-1", Role: ident.RoleProcessServer, LastSeen: now.Add(-3 * time.Second), Assigned: 7, Health: health.Evaluate(health.Sample{CPU: 97, Memory: 10, DiskFree: -1, SpoolLimit: 1})},
		{Name: "ps-2", Role: ident.RoleProcessServer},
	}, now)
	require.Regexp(t, `ps-1 .*Critical .*3s ago .* 7 `, out.String())
	require.Regexp(t, `ps-2 .* - .*never`, out.String())
	require.Contains(t, out.String(), "ps-1: Critical DRV-5001 processors: the processors are 97 % busy\n    Move machines")
}

// guest is a machine whose agent has a lot to say.
func guest() (api.MachineStatus, api.AgentReport) {
	m := ident.NewMachineID("v", "db-1")
	disk := func(n string) api.VMDisk {
		return api.VMDisk{ID: ident.NewDiskID(m, n), Label: "Hard disk " + n, BackingUUID: n, Size: 1 << 30}
	}
	r := api.AgentReport{Machine: m, Version: "1.4.0", State: "streaming", Hostname: "db", OS: "Debian GNU/Linux 12", Kernel: "6.1.0-27-amd64", Tracker: "trace (ebpf: the kernel has no BTF)",
		Disks: []api.AgentDisk{
			{BackingUUID: "1", Path: "/dev/sda", Size: 2 << 30, Protected: true, Why: "it has 2147483648 bytes", Parts: []api.AgentPart{
				{Name: "sda1", Kind: "partition", FileSystem: "ext2", Mounts: []string{"/boot"}, On: []string{"sda"}},
				{Name: "vg-root", Kind: "lvm", FileSystem: "ext4", Mounts: []string{"/", "/srv"}, On: []string{"sda2"}}, {Name: "vg-swap", Kind: "lvm", Swap: true, On: []string{"sda2"}}}},
			{BackingUUID: "2", Path: "/dev/mapper/mpatha", Paths: []string{"/dev/sdb", "/dev/sdc"}, Size: 1 << 30},
			{BackingUUID: "3", Path: "/dev/sdd", Size: 1 << 30, Why: "excluded, or added after protection began"},
		},
		Preflight: []api.Finding{{Check: "network", Level: api.LevelOK, What: "DHCP"}, {Check: "console", Level: api.LevelWarn, What: "no serial console", Advice: "add console=ttyS0"},
			{Check: "initramfs", Level: api.LevelFail, What: "hv_storvsc is not in it", Advice: "run dracut"}}}
	return api.MachineStatus{Machine: m, Name: "db-1", State: api.StateProtected, VM: api.VM{Machine: m, Name: "db-1", Disks: []api.VMDisk{disk("1"), disk("2"), disk("3")}},
		Protected: []api.VMDisk{disk("1")}, Excluded: []string{"Hard disk 2"}, Agent: &r}, r
}

func TestStatusShowsTheGuest(t *testing.T) {
	s, _ := guest()
	line := machineLine{Machine: s, Disks: s.GuestDisks()}
	var out bytes.Buffer
	printStatus(&out, []machineLine{line, {Machine: api.MachineStatus{Name: "app-1"}}}, time.Now())
	require.Regexp(t, `db-1 .* 1 fail, 1 warn `, out.String())
	require.Regexp(t, `app-1 .* - `, out.String())
	out.Reset()
	printDetails(&out, line)
	for _, want := range []string{
		`agent 1.4.0 on db \(Debian GNU/Linux 12, kernel 6.1.0-27-amd64\)`, `changes are found by: trace \(ebpf: the kernel has no BTF\)`,
		`Hard disk 1 .*/dev/sda .*2.0 GiB .*grown \(1.0 GiB are protected\) .*sda1 ext2 /boot`, `vg-root lvm on sda2 ext4 / /srv`, `vg-swap lvm on sda2 swap`,
		`Hard disk 2 .*mpatha .*excluded`, `Hard disk 3 .*new `, `Hard disk 3: excluded, or added`,
		`(?s)1 fail, 1 warn of 3 checks.*FAIL initramfs: hv_storvsc is not in it\n +run dracut\n.*WARN console`,
	} {
		require.Regexp(t, want, out.String())
	}
	require.NotContains(t, out.String(), "DHCP", "what is right is not told")
	out.Reset()
	printDetails(&out, machineLine{Machine: api.MachineStatus{Protected: s.Protected}})
	require.Contains(t, out.String(), "has not reported yet")
	require.Contains(t, out.String(), "disk Hard disk 1")
	s.Agent.Preflight = s.Agent.Preflight[:1]
	out.Reset()
	printDetails(&out, machineLine{Machine: s})
	require.Contains(t, out.String(), "nothing speaks against it (1 checks)")
}

// TestDiscoverAsksForAllAgents: in as many questions as it takes.
func TestDiscoverAsksForAllAgents(t *testing.T) {
	s, r := guest()
	other := ident.NewMachineID("v", "app-1")
	c := &mocks.Client{}
	for _, answer := range []api.ListAgentsResult{{Looked: 1}, {Looked: 1, Reports: []api.AgentReport{r}}} {
		run := &mocks.WorkflowRun{}
		run.On("Get", mock.Anything, mock.Anything).Run(func(args mock.Arguments) { *args.Get(1).(*api.ListAgentsResult) = answer }).Return(nil)
		c.On("ExecuteWorkflow", mock.Anything, mock.Anything, api.WorkflowListAgents, mock.Anything).Return(run, nil).Once()
	}
	a := &app{client: c}
	got, err := a.withAgents(t.Context(), api.DiscoveryStatus{VMs: []api.VM{{Machine: other, Name: "app-1"}, s.VM}})
	require.NoError(t, err)
	require.Equal(t, []api.AgentReport{r}, got.Agents)
	var out bytes.Buffer
	printVMs(&out, got)
	require.Regexp(t, `db-1 .*1.4.0 streaming .*1 fail, 1 warn`, out.String())
	require.Regexp(t, `app-1 .* - .* - `, out.String())
	require.NotContains(t, out.String(), "TAGS")
	require.NotContains(t, out.String(), "warning")
	out.Reset()
	got.VMs[1].Tags = []api.VMTag{{Category: "app", Name: "erp"}, {Category: "tier", Name: "gold"}}
	got.TagsError = "vCenter is busy"
	printVMs(&out, got)
	require.Contains(t, out.String(), "TAGS")
	require.Regexp(t, `(?s)db-1 .* app/erp .* tier/gold `, out.String())
	require.Contains(t, out.String(), "warning: the tags may not be up to date: vCenter is busy")
	out.Reset()
	printGuests(&out, got)
	require.Regexp(t, `(?s)db-1: agent 1.4.0 on db.*trace.*/dev/sda .* yes .*/dev/sdd .* no .*added after.*FAIL initramfs`, out.String())
}

// TestFailoverTellsOfTheGuestFirst: what speaks against its boot in the target is told
// before, and keeps nothing from being done; neither does an entity that does not say.
func TestFailoverTellsOfTheGuestFirst(t *testing.T) {
	s, _ := guest()
	for name, silent := range map[string]error{"told": nil, "not told": errors.New("worker is busy")} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			handle, c := &mocks.WorkflowUpdateHandle{}, &mocks.Client{}
			c.On("QueryWorkflow", mock.Anything, api.VaultID, "", api.QueryStatus).Return(value{func(p any) {
				p.(*api.VaultStatus).Machines = []api.VaultMember{{Machine: s.Machine, Name: "db-1"}}
			}}, nil)
			c.On("QueryWorkflow", mock.Anything, api.MachineWorkflowID(s.Machine), "", api.QueryStatus).Return(value{func(p any) { *p.(*api.MachineStatus) = s }}, silent)
			var before string
			c.On("UpdateWorkflow", mock.Anything, mock.MatchedBy(func(o client.UpdateWorkflowOptions) bool { return o.UpdateName == api.ActionFailover })).
				Run(func(mock.Arguments) { before = out.String() }).Return(handle, nil).Once()
			handle.On("Get", mock.Anything, mock.Anything).Return(nil)
			a := &app{client: c, out: &out, err: &out}
			require.NoError(t, a.act(t.Context(), "db-1", api.ActionFailover, api.ActionRequest{}))
			c.AssertExpectations(t)
			if silent == nil {
				require.Equal(t, "db-1 may not boot in the target: FAIL initramfs: hv_storvsc is not in it; run dracut\n"+
					"db-1 may not boot in the target: WARN console: no serial console; add console=ttyS0\n", before)
			} else {
				require.Empty(t, before)
			}
		})
	}
	d := &dryRun{}
	c := &mocks.Client{}
	c.On("QueryWorkflow", mock.Anything, mock.Anything, "", api.QueryStatus).Return(value{func(p any) { *p.(*api.MachineStatus) = s }}, nil)
	c.On("DescribeWorkflowExecution", mock.Anything, mock.Anything, "").Return(nil, serviceerror.NewNotFound("x"))
	s.Possible = []string{api.ActionTestFailover}
	_, problem, err := (&app{client: c}).dryMachine(t.Context(), api.PlanRunInput{Kind: api.PlanTest}, d,
		api.VaultStatus{Machines: []api.VaultMember{{Machine: s.Machine, Name: "db-1"}}}, "db-1")
	require.NoError(t, err)
	require.Empty(t, problem, "it blocks nothing")
	require.Len(t, d.Guests, 2)
	var out bytes.Buffer
	d.show(&out)
	require.Contains(t, out.String(), "may not boot in the target: db-1: FAIL initramfs: hv_storvsc is not in it; run dracut")
	require.NotContains(t, out.String(), "would fail")
}
