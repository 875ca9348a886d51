package azure_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"drover/activities/azure"
	"drover/activities/relay"
	"drover/datapath/ident"
	"drover/tests/azurearm"
	"drover/workflows/api"
	"drover/workflows/failback"
)

const (
	vmKind  = "Microsoft.Compute/virtualMachines"
	nicKind = "Microsoft.Network/networkInterfaces"
)

// house is what a configuration server knows of relays. A machine in Azure that runs and
// has a token that was issued enrols at once, as its guest would.
type house struct {
	w       *world
	state   string
	tokens  []string // issued
	revoked []string
	dead    bool // no guest boots
}

func newHouse(w *world) *house {
	w.config.Relay = &azure.Relay{Owner: "cs-1", Image: "/subscriptions/s/images/relay", Size: "Standard_B2s", Network: "prod", Subnet: "servers"}
	return &house{w: w, state: w.t.TempDir()}
}

// activities are those of a configuration server that has just started.
func (h *house) activities() *relay.Activities {
	return relay.New(relay.Config{
		Cloud: h.w.cloud(), State: h.state, Server: "https://cs.example:443", Poll: time.Millisecond, CallHome: time.Second, Logger: slog.New(slog.DiscardHandler),
		Token: func(p ident.Peer) (string, error) {
			require.Equal(h.w.t, ident.RoleRelay, p.Role)
			h.tokens = append(h.tokens, fmt.Sprintf("token-%d-of-%s", len(h.tokens), p.Name))
			return h.tokens[len(h.tokens)-1], nil
		},
		Revoke:        func(p ident.Peer) error { h.revoked = append(h.revoked, p.Name); return nil },
		Relays:        func() ([]relay.Server, error) { return h.enrolled(), nil },
		MasterTargets: func() ([]string, error) { return []string{"mt-1.example:9443"}, nil },
	})
}

// boot is what a machine got for its first boot.
type boot struct {
	Files []struct{ Path, Content, Permissions string } `json:"write_files"`
	Run   [][]string                                    `json:"runcmd"`
}

func (h *house) boot(vm string) (config map[string]any, token string) {
	all := h.w.CustomData(vm)
	text, ok := strings.CutPrefix(all[len(all)-1], "#cloud-config\n")
	require.True(h.w.t, ok)
	var b boot
	require.NoError(h.w.t, json.Unmarshal([]byte(text), &b))
	require.NoError(h.w.t, json.Unmarshal([]byte(b.Files[0].Content), &config))
	require.Equal(h.w.t, "0600", b.Files[1].Permissions)
	require.Equal(h.w.t, [][]string{{"systemctl", "enable", "--now", "drover-process-server.service"}}, b.Run)
	return config, b.Files[1].Content
}

func (h *house) enrolled() (out []relay.Server) {
	for _, m := range h.w.Machines() {
		id := azurearm.ID(group, vmKind, m.Name)
		if !m.Running || h.dead || len(h.w.CustomData(id)) == 0 {
			continue
		}
		config, token := h.boot(id)
		if name, _ := config["name"].(string); slices.Contains(h.tokens, token) && !slices.Contains(h.revoked, name) {
			out = append(out, relay.Server{Name: name, LastSeen: time.Now()})
		}
	}
	return out
}

func need(n string) api.RelayInput { return api.RelayInput{Machine: ident.NewMachineID("vc", n)} }

func TestRelayIsSharedAndGoesWithTheLast(t *testing.T) {
	w := newWorld(t, "")
	h := newHouse(w)
	first, err := h.activities().Acquire(t.Context(), need("a"))
	require.NoError(t, err)
	second, err := h.activities().Acquire(t.Context(), need("b"))
	require.NoError(t, err)
	require.Equal(t, first, second)
	vms := w.List(vmKind)
	require.Len(t, vms, 1)
	require.Len(t, h.tokens, 1)

	config, token := h.boot(vms[0])
	require.Equal(t, map[string]any{
		"name": first.Name, "role": "relay", "state": "/var/lib/drover", "listen": ":9443", "advertise": first.Address,
		"configServer": "https://cs.example:443", "tokenFile": "/etc/drover/token", "relayTo": []any{"mt-1.example:9443"},
	}, config)
	require.Equal(t, h.tokens[0], token)
	all, err := json.Marshal(w.Get(vms[0]))
	require.NoError(t, err)
	require.NotContains(t, string(all), "token-", "nobody is shown it again")
	require.Equal(t, "relay of cs-1", w.Get(vms[0], "tags", "drover-run"))

	require.NoError(t, h.activities().Release(t.Context(), need("a")))
	require.Len(t, w.List(vmKind), 1, "b needs it")
	require.Empty(t, h.revoked)
	for range 2 { // the second time there is nothing to do
		require.NoError(t, h.activities().Release(t.Context(), need("b")))
		require.Empty(t, w.left())
		require.Equal(t, []string{first.Name}, h.revoked)
	}
	third, err := h.activities().Acquire(t.Context(), need("a"))
	require.NoError(t, err)
	require.NotEqual(t, first.Name, third.Name, "a name that was revoked does not come back")
}

// TestRelayInBadTimes: replies that are lost, operations that fail later, a busy Azure, a
// worker that dies. It is there once, and goes as a whole.
func TestRelayInBadTimes(t *testing.T) {
	const vms, cards = "/virtualMachines/", "/networkInterfaces/"
	for name, faults := range map[string][]azurearm.Fault{
		"card made, reply lost":    {{Method: "PUT", Path: cards, Lost: true}},
		"machine made, reply lost": {{Method: "PUT", Path: vms, Lost: true}},
		"card fails later":         {{Method: "PUT", Path: cards, Async: "InternalServerError"}},
		"no room, later":           {{Method: "PUT", Path: vms, Async: "AllocationFailed"}},
		"busy":                     {{Path: "/", Status: 429, Code: "TooManyRequests", RetryAfter: "0", Times: 5}},
		"all of it": {
			{Method: "PUT", Path: cards, Lost: true}, {Method: "PUT", Path: vms, Async: "AllocationFailed"}, {Method: "PUT", Path: vms, Lost: true},
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "")
			h := newHouse(w)
			for _, f := range faults {
				w.Inject(f)
			}
			var got api.Relay
			for try := 0; ; try++ {
				var err error
				if got, err = h.activities().Acquire(t.Context(), need("a")); err == nil {
					break
				}
				require.NotContains(t, err.Error(), "token-")
				require.Less(t, try, 5, "%v", err)
			}
			require.Len(t, w.List(vmKind), 1)
			require.Len(t, w.List(nicKind), 1)
			require.NotEmpty(t, got.Address)
			w.Inject(azurearm.Fault{Method: "DELETE", Path: vms, Lost: true})
			w.Inject(azurearm.Fault{Method: "DELETE", Path: cards, Async: "InternalServerError"})
			for try := 0; h.activities().Release(t.Context(), need("a")) != nil; try++ {
				require.Less(t, try, 5)
			}
			require.Empty(t, w.left())
		})
	}
}

// TestRelayThatNeverCalls is told, and is deleted when it is let go of.
func TestRelayThatNeverCalls(t *testing.T) {
	w := newWorld(t, "")
	h := newHouse(w)
	h.dead = true
	_, err := h.activities().Acquire(t.Context(), need("a"))
	require.Equal(t, api.CodeTarget, code(t, err))
	require.ErrorContains(t, err, "has not called home")
	require.NoError(t, h.activities().Release(t.Context(), need("a")))
	require.Empty(t, w.left())
}

func TestRelayNameTakenByAnother(t *testing.T) {
	w := newWorld(t, "")
	h := newHouse(w)
	_, err := h.activities().Acquire(t.Context(), need("a"))
	require.NoError(t, err)
	vm := w.List(vmKind)[0]
	w.Set(vm, map[string]any{}, "tags")
	_, err = h.activities().Acquire(t.Context(), need("b"))
	require.Equal(t, api.CodeNotOurs, code(t, err))

	none := relay.New(relay.Config{State: t.TempDir(), Logger: slog.New(slog.DiscardHandler)})
	_, err = none.Acquire(t.Context(), need("a"))
	require.Equal(t, api.CodeInvalid, code(t, err))
	require.NoError(t, none.Release(t.Context(), need("a")))
}

// TestTheWayBackByARelay plays a failover and the way back of a machine that does not
// reach the master target: the relay is made in Azure before the machine streams and is
// gone after the failback; a reprotect that fails leaves none.
func TestTheWayBackByARelay(t *testing.T) {
	w := newWorld(t, azure.WayImport)
	h := newHouse(w)
	e := newEntity(w)
	e.RegisterWorkflowWithOptions(failback.Reprotect, workflow.RegisterOptions{Name: api.WorkflowReprotect})
	e.RegisterWorkflowWithOptions(failback.Workflow, workflow.RegisterOptions{Name: api.WorkflowFailback})
	var assigned []api.Assignment
	var baseFails bool
	for name, f := range h.activities().Activities() {
		e.RegisterActivityWithOptions(f, activity.RegisterOptions{Name: name})
	}
	answer(e, api.ActAttachDisks, func(api.AttachInput) none { return none{} })
	answer(e, api.ActDetachDisks, func(api.AttachInput) none { return none{} })
	answer(e, api.ActVerifyVMReady, func(api.VMRef) api.VM { return api.VM{Name: "db-1", BIOSUUID: "b"} })
	e.assign = func(in api.AssignInput) { assigned = append(assigned, in.Assignment) }
	e.base = func(context.Context) error {
		if baseFails {
			return temporal.NewNonRetryableApplicationError("the disks are not there", api.CodeInvalid, nil)
		}
		return nil
	}
	relays := func() int { return len(w.List(nicKind)) - 1 } // beside the failed-over machine's

	over := e.ask(api.ActionFailover, api.ActionRequest{Planned: true})
	commit := e.ask(api.ActionCommit, api.ActionRequest{})
	e.then(func() {
		baseFails = true
		w.Inject(azurearm.Fault{Method: "PUT", Path: "/virtualMachines/", Lost: true})
	})
	refused := e.ask(api.ActionReprotect, api.ActionRequest{})
	e.then(func() {
		require.Zero(t, relays(), "a reprotect that failed leaves none")
		require.Len(t, h.revoked, 1)
		baseFails = false
		w.Inject(azurearm.Fault{Method: "PUT", Path: "/virtualMachines/", Async: "AllocationFailed"})
	})
	back := e.ask(api.ActionReprotect, api.ActionRequest{})
	e.then(func() {
		require.Equal(t, 1, relays())
		last := assigned[len(assigned)-1]
		require.Equal(t, ident.RoleMasterTarget, last.Role)
		require.Equal(t, "ps-1:9443", last.Address)
		require.Regexp(t, `^10\.0\.0\.\d+:9443$`, last.Via)
	})
	home := e.ask(api.ActionFailback, api.ActionRequest{})
	e.then(func() {
		require.Zero(t, relays())
		require.Len(t, h.revoked, 2)
	})
	e.relay = true
	e.play(t)
	for _, r := range []*reply{over, commit, back, home} {
		require.NoError(t, r.err)
	}
	require.ErrorContains(t, refused.err, api.CodeInvalid)
}
