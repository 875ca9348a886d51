package push

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/types"

	"drover/activities/vsphere"
	"drover/tests/vsim"
	"drover/workflows/api"
	"drover/workflows/fault"
)

const guestPassword = "a guest's secret word"

// toolsWorld is a world whose guest is a VM's with VMware Tools, in a vCenter.
type toolsWorld struct {
	*world
	sim     *vsim.Sim
	proxy   *vsim.Proxy
	vcenter api.VCenter
}

// byTools makes one. program bounds the programs in the guest.
func byTools(t *testing.T, systemd bool, program time.Duration) *toolsWorld {
	t.Helper()
	w := &toolsWorld{world: newWorld(t)}
	spec := vsim.Spec{User: "drover", Password: "secret word", VMs: []vsim.VMSpec{{Name: "db-1", CPUs: 1, MemoryMB: 1024, Disks: []int64{1 << 20}}}}
	spec.MasterTarget.Name = "mt-1"
	var err error
	w.sim, err = vsim.Start(t.Context(), t.TempDir(), "127.0.0.1:0", spec)
	require.NoError(t, err)
	t.Cleanup(w.sim.Close)
	w.proxy, err = vsim.NewProxy(w.sim.Info().URL)
	require.NoError(t, err)
	t.Cleanup(w.proxy.Close)
	w.vcenter = api.VCenter{Name: "vc-1", URL: w.proxy.URL, Thumbprint: w.proxy.Thumbprint, Credentials: "vc"}
	require.NoError(t, os.WriteFile(filepath.Join(w.secrets(), "vc"), []byte("user: drover\npassword: secret word\n"), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(w.secrets(), "ca"), w.proxy.CA, 0o600))

	require.NoError(t, w.sim.Guest(t.Context(), "db-1", image(systemd), "root", guestPassword))
	require.Len(t, w.engine.containers(), 1)
	w.guest = w.engine.containers()[0]
	w.in.Instance = w.sim.Info().VMs[0].BIOSUUID
	w.credentials("user: root\npassword: " + guestPassword + "\n")

	a, err := vsphere.New(vsphere.Config{Secrets: w.secrets(), Logger: slog.New(slog.DiscardHandler), GuestProgram: program,
		Tell:   func(context.Context, string, api.WatchReport) error { return nil },
		Lookup: func(context.Context, string) (api.VCenter, error) { return w.vcenter, nil }})
	require.NoError(t, err)
	t.Cleanup(func() { a.Close(context.Background()) })
	w.pushes(a.InGuest)
	w.in.By, w.in.VM = api.PushByTools, api.VMRef{VCenter: "vc-1", InstanceUUID: w.sim.Info().VMs[0].InstanceUUID}
	return w
}

// nothingSecret: what was started shows no secret, and nothing of ours is left in the guest.
func (w *toolsWorld) nothingSecret() {
	w.t.Helper()
	programs := strings.Join(w.sim.Programs(), "\n")
	require.Contains(w.t, programs, "drover-agent enrol --config /etc/drover/agent.yaml")
	require.NotEmpty(w.t, w.tokens)
	for _, secret := range append([]string{guestPassword, "secret word"}, w.tokens...) {
		require.NotContains(w.t, programs, secret)
	}
	left, err := filepath.Glob(w.inside("/tmp/drover-*"))
	require.NoError(w.t, err)
	for _, dir := range left {
		// This system's own /tmp lies below the guest's.
		_, err := os.Stat(strings.TrimPrefix(dir, w.inside("")))
		require.NoError(w.t, err, dir)
	}
	for _, dir := range []string{"/etc/drover", "/usr/bin", "/etc/systemd/system"} {
		_, err := os.Stat(w.inside(dir + "/.drover-push"))
		require.ErrorIs(w.t, err, os.ErrNotExist)
	}
}

// fails pushes and gives the error, which has the code, says what to do, and no secret.
func (w *toolsWorld) fails(code string, says ...string) {
	w.t.Helper()
	_, err := w.Push(w.t.Context(), w.in)
	require.Error(w.t, err)
	require.Equal(w.t, code, fault.Code(err), "%v", err)
	for _, s := range says {
		require.ErrorContains(w.t, err, s)
	}
	for _, secret := range append([]string{guestPassword, "secret word", "token="}, w.tokens...) {
		require.NotContains(w.t, err.Error(), secret)
	}
}

// TestToolsRefused: what cannot work is refused with what to do, and changes nothing.
func TestToolsRefused(t *testing.T) {
	w := byTools(t, false, 0)
	untouched := func() {
		t.Helper()
		_, err := os.Stat(w.inside("/usr/bin/drover-agent"))
		require.ErrorIs(t, err, os.ErrNotExist)
	}
	w.credentials("user: root\npassword: wrong\n")
	w.fails(api.CodeInvalid, "log in to the guest of VM db-1", "credentials guests")
	w.credentials("user: root\nkey: id\n")
	w.fails(api.CodeInvalid, "VMware Tools take user: and password:")
	w.credentials("user: root\npassword: " + guestPassword + "\n")

	for _, privilege := range []string{"Query", "Modify", "Execute"} {
		w.sim.Deny("drover", "VirtualMachine.GuestOperations."+privilege, "db-1")
		w.fails(api.CodeVCenterDenied, "VirtualMachine.GuestOperations."+privilege, "drover vcenter check")
		w.sim.Deny("drover", "VirtualMachine.GuestOperations."+privilege, "nothing")
	}
	require.NoError(t, w.sim.ToolsStatus(t.Context(), "db-1", types.VirtualMachineToolsRunningStatusGuestToolsNotRunning))
	w.fails(api.CodePush, "VMware Tools do not run in VM db-1", "open-vm-tools")
	require.NoError(t, w.sim.ToolsStatus(t.Context(), "db-1", types.VirtualMachineToolsRunningStatusGuestToolsRunning))
	w.sim.NoTools("db-1") // vCenter does not know it yet
	w.fails(api.CodePush, "VMware Tools do not answer")
	w.sim.Tools("db-1")

	w.sim.NameHostCertificate("AA:BB", nil)
	w.fails(api.CodePush, "certificate is not the one that vCenter knows")
	w.sim.NameHostCertificate("", nil)
	w.fails(api.CodePush, "certificate is not the one that vCenter knows")
	w.vcenter.Thumbprint, w.vcenter.CA = "", "ca" // the host is not of that authority
	w.fails(api.CodePush, "certificate is not the one that vCenter knows")
	w.sim.NameHostCertificate(w.sim.HostThumbprint(), w.proxy.CA) // the whole one counts
	w.fails(api.CodePush, "certificate is not the one that vCenter knows")
	untouched()
	w.in.Credentials = ""
	w.fails(api.CodeInvalid, "credentials")
	w.in.Credentials, w.in.HostKey = "guests", "SHA256:x"
	w.fails(api.CodeInvalid, "by tools: neither an address nor a host key")
	w.in.HostKey, w.in.By = "", "rsh"
	w.fails(api.CodeInvalid, `by "rsh": want ssh or tools`)
	w.in.By = api.PushByTools

	vm, err := w.sim.VM(t.Context(), "db-1")
	require.NoError(t, err)
	await(t)(vm.PowerOff(t.Context()))
	w.fails(api.CodePush, "VM db-1 is poweredOff", "power it on")
	await(t)(vm.PowerOn(t.Context()))
	untouched()
	require.Empty(t, w.tokens)
}

// TestToolsLostReply: vCenter does something and its answer is lost; it is said that this is
// not known, and the next push finds what was done. A session that ended is opened again, and
// the push begun anew.
func TestToolsLostReply(t *testing.T) {
	w := byTools(t, false, 0)
	for _, method := range []string{"StartProgramInGuest", "MoveFileInGuest", "InitiateFileTransferToGuest", "ListProcessesInGuest", "MakeDirectoryInGuest"} {
		w.proxy.Trouble(method, vsim.LostReply)
		w.fails(api.CodeVCenterAway, "whether it was done is not known; run the command again")
	}
	w.sim.NameHostCertificate("", w.sim.HostCertificate())
	n, err := w.sim.EndSessions(t.Context())
	require.NoError(t, err)
	require.NotZero(t, n)
	steps := w.push()
	require.Equal(t, 1, strings.Count(steps["connect"], "VMware Tools"), "steps of a try that was cut short are not told")
	require.Contains(t, steps["start"], "systemd does not run")
	w.nothingSecret()
}

// TestToolsProgramThatDoesNotEnd: it is ended, and said.
func TestToolsProgramThatDoesNotEnd(t *testing.T) {
	w := byTools(t, true, 2*time.Second)
	slow := w.inside("/usr/bin/systemctl")
	systemctl, err := os.ReadFile(slow)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(slow, []byte("#!/bin/sh\necho $$ > /slow.pid\nexec sleep 1000\n"), 0o755)) //nolint:gosec // a program
	w.fails(api.CodePush, "systemctl daemon-reload", "did not end within 2s; it was ended")
	pid, err := os.ReadFile(w.inside("/slow.pid"))
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		_, err := os.Stat(w.inside("/proc/" + strings.TrimSpace(string(pid))))
		return err != nil
	}, limit, look)
	require.NoError(t, os.WriteFile(slow, systemctl, 0o755)) //nolint:gosec // a program
	require.Contains(t, w.push()["start"], "is enabled and runs")
}

func await(t *testing.T) func(*object.Task, error) {
	return func(task *object.Task, err error) {
		t.Helper()
		require.NoError(t, err)
		require.NoError(t, task.Wait(t.Context()))
	}
}

// TestToolsAfterPowerCycle: what was installed is on the VM's disk, and a push after it starts the agent.
func TestToolsAfterPowerCycle(t *testing.T) {
	w := byTools(t, true, 0)
	w.push()
	w.heard()
	vm, err := w.sim.VM(t.Context(), "db-1")
	require.NoError(t, err)
	await(t)(vm.PowerOff(t.Context()))
	await(t)(vm.PowerOn(t.Context()))
	_, err = os.Stat(w.inside("/run/drover-agent.service.pid"))
	require.ErrorIs(t, err, os.ErrNotExist, "nothing runs in the double after a boot")
	steps := w.push()
	require.Contains(t, steps["copy"], "already")
	require.Contains(t, steps["enrol"], "already")
	require.Len(t, w.tokens, 1)
	w.heard()
}
