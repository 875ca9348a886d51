package azure_test

import (
	"bytes"
	"context"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/interceptor"
	"go.temporal.io/sdk/testsuite"
	"go.temporal.io/sdk/worker"

	"drover/activities/azure"
	"drover/activities/target"
	"drover/tests/azurearm"
	"drover/workflows/api"
)

func (w *world) content0(m api.TargetMachine) {
	w.t.Helper()
	for i, d := range m.Disks {
		require.True(w.t, bytes.Equal(w.content[i], w.DiskContent(d.Location)), "disk %d", i)
	}
}

func TestThrottled(t *testing.T) {
	for _, way := range []string{azure.WayImport, azure.WayUpload} {
		w := newWorld(t, way)
		for _, path := range []string{"/Microsoft.Compute/disks/", "/virtualMachines/", "/networkInterfaces/", "/operations/", "/blob/", "/disks/"} {
			w.Inject(azurearm.Fault{Path: path, Status: 429, Code: "TooManyRequests", Times: 2})
			w.Inject(azurearm.Fault{Path: path, Status: 503, Code: "ServerBusy"})
		}
		m, err := w.create(input("failover/1"))
		require.NoError(t, err)
		w.content0(m)
	}
}

func TestRepliesAreLost(t *testing.T) {
	for _, way := range []string{azure.WayImport, azure.WayUpload} {
		w := newWorld(t, way)
		w.Inject(azurearm.Fault{Method: "PUT", Path: "/Microsoft.Compute/disks/", Lost: true, Times: 2})
		w.Inject(azurearm.Fault{Method: "PUT", Path: "/networkInterfaces/", Lost: true})
		w.Inject(azurearm.Fault{Method: "PUT", Path: "/virtualMachines/", Lost: true})
		w.Inject(azurearm.Fault{Method: "PUT", Path: "/blob/", Lost: true})
		w.Inject(azurearm.Fault{Method: "POST", Path: "GetAccess", Lost: true})
		in, m, err := input("failover/1"), api.TargetMachine{}, error(nil)
		for try := 0; try == 0 || err != nil && try < 6; try++ { // as the workflow does
			m, err = w.create(in)
		}
		require.NoError(t, err)
		w.content0(m)
		require.Len(t, w.List("Microsoft.Compute/disks"), 2)
		require.Len(t, w.List("Microsoft.Network/networkInterfaces"), 1)
		require.Len(t, w.List("Microsoft.Compute/virtualMachines"), 1)
		require.Empty(t, w.Blobs(seeds, azure.DefaultCopies))
	}
}

func TestOperationsThatFailLater(t *testing.T) {
	for _, way := range []string{azure.WayImport, azure.WayUpload} {
		w := newWorld(t, way)
		in := input("failover/1")
		w.Inject(azurearm.Fault{Method: "PUT", Path: "/Microsoft.Compute/disks/", Async: "InternalServerError"})
		_, err := w.create(in)
		require.Equal(t, api.CodeTarget, code(t, err))
		require.Contains(t, err.Error(), "InternalServerError")
		w.Inject(azurearm.Fault{Method: "PUT", Path: "/virtualMachines/", Async: "OSProvisioningInternalError"})
		_, err = w.create(in)
		require.Equal(t, api.CodeTarget, code(t, err), "the disks are there now")
		m, err := w.create(in)
		require.NoError(t, err, "what failed is made anew")
		w.content0(m)
	}
}

func TestQuota(t *testing.T) {
	w := newWorld(t, azure.WayImport)
	in := input("failover/1")
	in.Target.Size = "Standard_D4s_v5"
	w.SetQuota("standardDSv5Family", 3)
	err := w.activities().CheckNetwork(t.Context(), api.CheckNetworkInput{Network: "prod", For: &in})
	require.Equal(t, api.CodeQuota, code(t, err))
	require.ErrorContains(t, err, "Standard_D4s_v5 needs 4 of standardDSv5Family, 3 are left")
	require.Empty(t, w.left(), "nothing was made")
	_, err = w.create(in)
	require.Equal(t, api.CodeQuota, code(t, err), "Azure says the same later")

	in.Run, in.Target.FallBackSizes = "failover/2", []string{"Standard_B2s"}
	require.NoError(t, w.activities().CheckNetwork(t.Context(), api.CheckNetworkInput{Network: "prod", For: &in}))
	m, err := w.create(in)
	require.NoError(t, err)
	require.Equal(t, "Standard_B2s", m.Size)
}

func TestNoRoom(t *testing.T) {
	w := newWorld(t, azure.WayImport)
	full := func(names ...string) {
		w.SetSizes(func(s []azurearm.VMSize) []azurearm.VMSize {
			for i := range s {
				s[i].NoRoom = false
				for _, n := range names {
					s[i].NoRoom = s[i].NoRoom || s[i].Name == n
				}
			}
			return s
		})
	}
	in := input("failover/1")
	in.Target.Size, in.Target.FallBackSizes = "Standard_B2s", []string{"Standard_D2s_v5", "Standard_D4s_v5"}
	full("Standard_B2s", "Standard_D2s_v5", "Standard_D4s_v5")
	_, err := w.create(in)
	require.Equal(t, api.CodeNoCapacity, code(t, err))
	require.ErrorContains(t, err, "Standard_B2s, Standard_D2s_v5, Standard_D4s_v5")
	require.True(t, api.Retryable(api.CodeNoCapacity))
	full("Standard_B2s", "Standard_D2s_v5")
	m, err := w.create(in)
	require.NoError(t, err)
	require.Equal(t, "Standard_D4s_v5", m.Size)
	w.content0(m)
	require.Len(t, w.List("Microsoft.Compute/virtualMachines"), 1)
}

func TestAddresses(t *testing.T) {
	w := newWorld(t, azure.WayImport)
	a := w.activities()
	first, second := input("failover/1"), input("failover/2")
	first.Target.Address, second.Target.Address = "10.0.0.50", "10.0.0.50"
	_, err := w.create(first)
	require.NoError(t, err)
	require.NoError(t, a.CheckNetwork(t.Context(), api.CheckNetworkInput{Network: "prod", For: &first}), "it is its own")
	require.Equal(t, api.CodeAddressTaken, code(t, a.CheckNetwork(t.Context(), api.CheckNetworkInput{Network: "prod", For: &second})))
	_, err = w.create(second)
	require.Equal(t, api.CodeAddressTaken, code(t, err))
	second.Target.AddressPolicy = api.AddressNext
	m, err := w.create(second)
	require.NoError(t, err)
	require.Equal(t, "10.0.0.4", m.Address)

	for _, address := range []string{"10.0.0.1", "10.0.0.255", "10.7.0.9", "not one"} {
		in := input("failover/3")
		in.Target.Address = address
		require.Error(t, a.CheckNetwork(t.Context(), api.CheckNetworkInput{Network: "prod", For: &in}), address)
	}
}

func TestTwoRaceForAnAddress(t *testing.T) {
	w := newWorld(t, azure.WayImport)
	var wait sync.WaitGroup
	addresses, errs := make([]string, 4), make([]error, 4)
	for i := range addresses {
		in := input("failover/" + string(rune('a'+i)))
		in.Target.Address, in.Target.AddressPolicy = "10.0.0.50", api.AddressNext
		wait.Add(1)
		go func() {
			defer wait.Done()
			m, err := w.create(in)
			addresses[i], errs[i] = m.Address, err
		}()
	}
	wait.Wait()
	seen := map[string]bool{}
	for i, err := range errs {
		require.NoError(t, err)
		require.False(t, seen[addresses[i]], "%v", addresses)
		seen[addresses[i]] = true
	}
	require.True(t, seen["10.0.0.50"], "one has it: %v", addresses)
}

func TestWhatLeadsOutIsNotIsolated(t *testing.T) {
	vnet := func(w *world, properties map[string]any) {
		w.Put(group, "Microsoft.Network/virtualNetworks", "sandbox", map[string]any{"location": azurearm.Location, "properties": properties})
	}
	id := azurearm.ID(group, "Microsoft.Network/virtualNetworks", "sandbox")
	subnet := func(name string, p map[string]any) map[string]any {
		p["addressPrefix"] = "10.9.0.0/24"
		return map[string]any{"subnets": []any{map[string]any{"id": id + "/subnets/" + name, "name": name, "properties": p}}}
	}
	table := func(w *world, hop, prefix string) map[string]any {
		w.Put(group, "Microsoft.Network/routeTables", "routes", map[string]any{"location": azurearm.Location, "properties": map[string]any{
			"routes": []any{map[string]any{"name": "r", "properties": map[string]any{"nextHopType": hop, "addressPrefix": prefix}}},
		}})
		return map[string]any{"id": azurearm.ID(group, "Microsoft.Network/routeTables", "routes")}
	}
	for what, change := range map[string]func(*world){
		"peering to-prod": func(w *world) {
			p := subnet("servers", map[string]any{"defaultOutboundAccess": false})
			p["virtualNetworkPeerings"] = []any{map[string]any{"name": "to-prod", "properties": map[string]any{"peeringState": "Initiated"}}}
			vnet(w, p)
		},
		"gateway vpn": func(w *world) {
			w.Put(group, "Microsoft.Network/virtualNetworkGateways", "vpn", map[string]any{"location": azurearm.Location, "properties": map[string]any{
				"ipConfigurations": []any{map[string]any{"properties": map[string]any{"subnet": map[string]any{"id": id + "/subnets/GatewaySubnet"}}}},
			}})
		},
		"subnet GatewaySubnet for a subnet for gateways": func(w *world) { vnet(w, subnet("GatewaySubnet", map[string]any{"defaultOutboundAccess": false})) },
		"a NAT gateway": func(w *world) {
			vnet(w, subnet("servers", map[string]any{"defaultOutboundAccess": false, "natGateway": map[string]any{"id": "/n"}}))
		},
		"service endpoint Microsoft.Storage": func(w *world) {
			vnet(w, subnet("servers", map[string]any{"defaultOutboundAccess": false, "serviceEndpoints": []any{map[string]any{"service": "Microsoft.Storage"}}}))
		},
		"private endpoints in subnet servers": func(w *world) {
			vnet(w, subnet("servers", map[string]any{"defaultOutboundAccess": false, "privateEndpoints": []any{map[string]any{"id": "/p"}}}))
		},
		"default outbound access": func(w *world) { vnet(w, subnet("servers", map[string]any{})) },
		"route r (0.0.0.0/0 by VirtualAppliance)": func(w *world) {
			vnet(w, subnet("servers", map[string]any{"defaultOutboundAccess": false, "routeTable": table(w, "VirtualAppliance", "0.0.0.0/0")}))
		},
		"route r (10.1.0.0/16 by Internet)": func(w *world) {
			vnet(w, subnet("servers", map[string]any{"defaultOutboundAccess": false, "routeTable": table(w, "Internet", "10.1.0.0/16")}))
		},
		"": func(w *world) {
			vnet(w, subnet("servers", map[string]any{"routeTable": table(w, "None", "0.0.0.0/0")}))
		},
	} {
		t.Run(what, func(t *testing.T) {
			w := newWorld(t, azure.WayImport)
			change(w)
			err := w.activities().CheckNetwork(t.Context(), api.CheckNetworkInput{Network: "sandbox", Isolated: true})
			if what == "" {
				require.NoError(t, err, "a route that ends everything is isolation")
				return
			}
			require.Equal(t, api.CodeNotIsolated, code(t, err))
			require.ErrorContains(t, err, what)
		})
	}
}

func TestIsolationIsLookedAtAgainBeforeTheStart(t *testing.T) {
	w := newWorld(t, azure.WayImport)
	in := input("test/1")
	in.Test, in.Network = true, "sandbox"
	a := w.activities()
	require.NoError(t, a.CheckNetwork(t.Context(), api.CheckNetworkInput{Network: "sandbox", Isolated: true, For: &in}))
	_, err := a.CreateMachine(t.Context(), in)
	require.NoError(t, err)
	w.Set(azurearm.ID(group, "Microsoft.Network/virtualNetworks", "sandbox"), []any{map[string]any{"name": "new"}}, "properties", "virtualNetworkPeerings")
	_, err = a.StartMachine(t.Context(), ref(in))
	require.Equal(t, api.CodeNotIsolated, code(t, err))
	require.Empty(t, w.List("Microsoft.Compute/virtualMachines"))
}

// beats keeps the last heartbeat of an activity, as it was given to the SDK: the test
// environment sends one in 30 seconds.
type beats struct {
	interceptor.WorkerInterceptorBase
	mu   sync.Mutex
	last target.Progress
}

type inbound struct {
	interceptor.ActivityInboundInterceptorBase
	beats *beats
}

type outbound struct {
	interceptor.ActivityOutboundInterceptorBase
	beats *beats
}

func (b *beats) InterceptActivity(_ context.Context, next interceptor.ActivityInboundInterceptor) interceptor.ActivityInboundInterceptor {
	in := &inbound{beats: b}
	in.Next = next
	return in
}

func (i *inbound) Init(out interceptor.ActivityOutboundInterceptor) error {
	o := &outbound{beats: i.beats}
	o.Next = out
	return i.Next.Init(o)
}

func (o *outbound) RecordHeartbeat(ctx context.Context, details ...any) {
	o.beats.mu.Lock()
	o.beats.last, _ = details[0].(target.Progress)
	o.beats.mu.Unlock()
	o.Next.RecordHeartbeat(ctx, details...)
}

func (b *beats) environment(ctx context.Context, a *target.Activities) *testsuite.TestActivityEnvironment {
	env := new(testsuite.WorkflowTestSuite).NewTestActivityEnvironment()
	env.SetWorkerOptions(worker.Options{BackgroundActivityContext: ctx, Interceptors: []interceptor.WorkerInterceptor{b}})
	for name, f := range a.Activities() {
		env.RegisterActivityWithOptions(f, activity.RegisterOptions{Name: name})
	}
	return env
}

func (b *beats) get() target.Progress {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.last
}

// TestWorkerDies: a worker dies while Azure works, another goes on, by the heartbeat
// or without it, and nothing is made twice.
func TestWorkerDies(t *testing.T) {
	for _, c := range []struct {
		name, hold, path string
		step             func(*world, *testsuite.TestActivityEnvironment, api.CreateMachineInput) error
	}{
		{"disk", "/disks/", "/Microsoft.Compute/disks/", func(_ *world, env *testsuite.TestActivityEnvironment, in api.CreateMachineInput) error {
			_, err := env.ExecuteActivity(api.ActCreateMachine, in)
			return err
		}},
		{"card", "/networkinterfaces/", "/networkInterfaces/", func(_ *world, env *testsuite.TestActivityEnvironment, in api.CreateMachineInput) error {
			_, err := env.ExecuteActivity(api.ActCreateMachine, in)
			return err
		}},
		{"machine", "/virtualmachines/", "/virtualMachines/", func(w *world, env *testsuite.TestActivityEnvironment, in api.CreateMachineInput) error {
			_, err := w.activities().CreateMachine(context.Background(), in)
			require.NoError(w.t, err)
			_, err = env.ExecuteActivity(api.ActStartMachine, ref(in))
			return err
		}},
	} {
		for _, heartbeat := range []bool{true, false} {
			t.Run(c.name, func(t *testing.T) {
				w := newWorld(t, azure.WayUpload)
				in := input("failover/1")
				w.Hold(c.hold)
				var b beats
				ctx, die := context.WithCancel(t.Context())
				first, ended := b.environment(ctx, w.activities()), make(chan error, 1)
				go func() { ended <- c.step(w, first, in) }()
				require.Eventually(t, func() bool { return len(b.get().Operations) > 0 }, 10*time.Second, time.Millisecond)
				puts := len(w.Requests("PUT", c.path))
				die()
				require.Error(t, <-ended)
				last := b.get()
				require.Len(t, last.Operations, 1, "the operation stands in the last heartbeat")
				w.Release()

				polls := len(w.Requests("GET", "/operations/"))
				second := b.environment(t.Context(), w.activities())
				if heartbeat {
					second.SetHeartbeatDetails(last)
				}
				require.NoError(t, c.step(w, second, in))
				if heartbeat {
					require.Greater(t, len(w.Requests("GET", "/operations/")), polls, "it went on with the operation")
				}
				made := map[string]int{"disk": 2, "card": 1, "machine": 1}[c.name]
				require.Len(t, w.Requests("PUT", c.path), max(made, puts))
				m, err := w.create(in)
				require.NoError(t, err)
				w.content0(m)
				require.Empty(t, b.get().Operations, "none is under way at the end")
			})
		}
	}
}

func TestHealth(t *testing.T) {
	w := newWorld(t, azure.WayImport)
	a := w.activities()
	check := func(in api.CreateMachineInput) api.CheckResult {
		r, err := a.CheckMachine(t.Context(), ref(in))
		require.NoError(t, err)
		return r
	}
	agent := input("failover/1")
	agent.Target.Health = api.HealthAgent
	m, err := w.create(agent)
	require.NoError(t, err)
	require.False(t, check(agent).Ready)
	w.heard[m.Instance] = time.Now()
	require.True(t, check(agent).Ready)

	command := input("failover/2")
	command.Target.Health = api.HealthCommand
	_, err = w.create(command)
	require.NoError(t, err)
	w.Inject(azurearm.Fault{Path: "/runCommand", Status: 409, Code: "VMAgentStatusCommunicationError"})
	require.False(t, check(command).Ready, "its agent is not up yet")
	require.True(t, check(command).Ready)

	l, err := net.Listen("tcp", "127.0.0.4:0")
	require.NoError(t, err)
	defer func() { _ = l.Close() }()
	_, port, err := net.SplitHostPort(l.Addr().String())
	require.NoError(t, err)
	w.VNet(group, "loop", "servers", "127.0.0.0/24")
	tcp := input("failover/3")
	tcp.Network, tcp.Target.Health = "loop", api.HealthTCP+":"+port
	_, err = w.create(tcp)
	require.NoError(t, err)
	r := check(tcp)
	require.Contains(t, r.Evidence, "127.0.0.4:"+port)
	require.True(t, r.Ready, r.Evidence)
}
