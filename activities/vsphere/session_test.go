package vsphere

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/types"
	"go.temporal.io/sdk/temporal"

	"drover/tests/vsim"
	"drover/workflows/api"
)

// through puts a proxy between the activities and the vCenter.
func (w *world) through(t *testing.T) *vsim.Proxy {
	t.Helper()
	p, err := vsim.NewProxy(w.sim.Info().URL)
	require.NoError(t, err)
	t.Cleanup(p.Close)
	w.vcenter.URL, w.vcenter.Thumbprint = p.URL, p.Thumbprint
	return p
}

func (w *world) rotate(t *testing.T, user, password string) {
	t.Helper()
	require.NoError(t, os.WriteFile(filepath.Join(w.secrets, "vc"), []byte("user: "+user+"\npassword: "+password+"\n"), 0o600))
}

// TestOneSession: calls share a session, also at once; one that vCenter ended is opened
// again, once per call.
func TestOneSession(t *testing.T) {
	w := newWorld(t)
	p := w.through(t)
	_, ref := w.vm(t, "db-1")
	done := make(chan error, 8)
	for range cap(done) {
		go func() { _, err := w.VerifyVMReady(t.Context(), ref); done <- err }()
	}
	for range cap(done) {
		require.NoError(t, <-done)
	}
	require.Equal(t, 1, p.Calls("Login"))

	n, err := w.sim.EndSessions(t.Context())
	require.NoError(t, err)
	require.Equal(t, 1, n, "no session is left lying about")
	_, err = w.VerifyVMReady(t.Context(), ref)
	require.NoError(t, err)
	require.Equal(t, 2, p.Calls("Login"))

	w.Close(t.Context())
	_, err = w.VerifyVMReady(t.Context(), ref)
	require.ErrorContains(t, err, "stops")
	n, err = w.sim.EndSessions(t.Context())
	require.NoError(t, err)
	require.Zero(t, n, "the session was ended")
}

// TestSessionEndsInAWait: it is noticed after the task, which was done already.
func TestSessionEndsInAWait(t *testing.T) {
	w := newWorld(t)
	w.through(t)
	_, ref := w.vm(t, "db-1")
	w.sim.NoTools("db-1")
	go func() { time.Sleep(2 * powerPoll); _, _ = w.sim.EndSessions(context.Background()) }()
	r, err := w.ShutdownVM(t.Context(), api.ShutdownInput{VMRef: ref, Limit: api.Duration(6 * powerPoll), Force: true})
	require.NoError(t, err)
	require.Equal(t, "power off", r.How)
}

// TestIdleSession: a sign of life keeps it; without one it ends, and is opened again.
func TestIdleSession(t *testing.T) {
	for name, every := range map[string]time.Duration{"kept": 300 * time.Millisecond, "opened again": time.Hour} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			p := w.through(t)
			w.config.KeepAlive = every
			options := object.NewOptionManager(w.sim.Client().Client, *w.sim.Client().ServiceContent.Setting)
			require.NoError(t, options.Update(t.Context(), []types.BaseOptionValue{&types.OptionValue{Key: "config.vmacore.soap.sessionTimeout", Value: "1s"}}))
			_, ref := w.vm(t, "db-1")
			if every == time.Hour {
				require.Eventually(t, func() bool { n, err := w.sim.Sessions(t.Context()); return err == nil && n == 0 }, 20*time.Second, 50*time.Millisecond)
			} else {
				time.Sleep(3 * time.Second)
			}
			_, err := w.VerifyVMReady(t.Context(), ref)
			require.NoError(t, err)
			want := 1
			if every == time.Hour {
				want = 2
			}
			require.Equal(t, want, p.Calls("Login"))
		})
	}
}

// TestRotation: a password that is changed counts with the next call.
func TestRotation(t *testing.T) {
	w := newWorld(t)
	_, ref := w.vm(t, "db-1")
	w.sim.Logins(func(user, password string) bool { return user == "rotated" && password == "new word" })
	w.rotate(t, "rotated", "new word")
	_, err := w.VerifyVMReady(t.Context(), ref)
	require.NoError(t, err)
	n, err := w.sim.EndSessions(t.Context())
	require.NoError(t, err)
	require.Equal(t, 1, n, "the old session was ended")

	w.rotate(t, "rotated", "wrong word")
	_, err = w.VerifyVMReady(t.Context(), ref)
	requireCode(t, err, api.CodeVCenterDenied)
	require.NotContains(t, err.Error(), "wrong word")
}

// TestCredentialsOfTheEnvironment: a variable stands for the file.
func TestCredentialsOfTheEnvironment(t *testing.T) {
	w := newWorld(t)
	w.vcenter.Credentials = "env:DROVER_SECRET_TEST"
	_, err := w.Inventory(t.Context(), w.vcenter)
	requireCode(t, err, api.CodeNotFound)
	t.Setenv("DROVER_SECRET_TEST", "user: drover\npassword: secret word\n")
	out, err := w.Inventory(t.Context(), w.vcenter)
	require.NoError(t, err)
	require.Empty(t, out.TagsError)
	t.Setenv("DROVER_SECRET_TEST", "user: drover\npassword: hunter2\n")
	_, err = w.Inventory(t.Context(), w.vcenter)
	requireCode(t, err, api.CodeVCenterDenied)
	require.NotContains(t, err.Error(), "hunter2")
}

func TestAuthorityInAFile(t *testing.T) {
	w := newWorld(t)
	p := w.through(t)
	w.vcenter.Thumbprint, w.vcenter.CA = "", "ca.pem"
	_, err := w.Inventory(t.Context(), w.vcenter)
	requireCode(t, err, api.CodeNotFound)
	require.NoError(t, os.WriteFile(filepath.Join(w.secrets, "ca.pem"), []byte("nothing"), 0o600))
	_, err = w.Inventory(t.Context(), w.vcenter)
	requireCode(t, err, api.CodeInvalid)
	require.NoError(t, os.WriteFile(filepath.Join(w.secrets, "ca.pem"), p.CA, 0o600))
	_, err = w.Inventory(t.Context(), w.vcenter)
	require.NoError(t, err)
	w.vcenter.URL = w.sim.Info().URL // which another one signed
	_, err = w.Inventory(t.Context(), w.vcenter)
	requireCode(t, err, api.CodeVCenter)
	require.ErrorContains(t, err, "certificate")
}

// TestTroubleOnTheLine: each ends as an error that is tried again, or as done; and the
// next try finds what the first one did.
func TestTroubleOnTheLine(t *testing.T) {
	w := newWorld(t)
	p := w.through(t)
	_, ref := w.vm(t, "db-1")
	off := func() (api.ShutdownResult, error) {
		return w.ShutdownVM(t.Context(), api.ShutdownInput{VMRef: ref, Freeze: true})
	}
	p.Trouble("FindByUuid", vsim.Unavailable)
	_, err := off()
	requireRetried(t, err, api.CodeVCenterAway)
	p.Trouble("FindByUuid", vsim.Slow)
	p.Trouble("PowerOffVM_Task", vsim.LostReply)
	r, err := off()
	if err != nil { // it was asked while the task was under way
		requireRetried(t, err, api.CodeVCenterAway)
		require.Eventually(t, func() bool { r, err = off(); return err == nil }, 10*time.Second, 50*time.Millisecond)
		require.Equal(t, "off already", r.How)
	}
	p.Trouble("PowerOnVM_Task", vsim.LostReply)
	err = w.PowerOnVM(t.Context(), ref)
	requireRetried(t, err, api.CodeVCenterAway)
	require.Eventually(t, func() bool { return w.PowerOnVM(t.Context(), ref) == nil }, 10*time.Second, 50*time.Millisecond)
	p.Down(true)
	_, err = off()
	requireRetried(t, err, api.CodeVCenterAway)
	p.Down(false)
	_, err = off()
	require.NoError(t, err)
}

func TestWhatVCenterRefuses(t *testing.T) {
	w := newWorld(t)
	vm, ref := w.vm(t, "db-1")
	w.sim.FailTask("PowerOffVM_Task", &types.InvalidState{})
	_, err := w.ShutdownVM(t.Context(), api.ShutdownInput{VMRef: ref, Freeze: true})
	requireRetried(t, err, api.CodeVCenter)

	w.sim.Deny("drover", "VirtualMachine.Interact.PowerOff", "db-1")
	_, err = w.ShutdownVM(t.Context(), api.ShutdownInput{VMRef: ref, Freeze: true})
	requireCode(t, err, api.CodeVCenterDenied)
	require.ErrorContains(t, err, "VirtualMachine.Interact.PowerOff")
	_, app := w.vm(t, "app-1")
	_, err = w.ShutdownVM(t.Context(), api.ShutdownInput{VMRef: app, Freeze: true})
	require.NoError(t, err)

	// Deleted under our feet: by the next call, and in the middle of one.
	admin, err := w.sim.VM(t.Context(), "app-1")
	require.NoError(t, err)
	task, err := admin.Destroy(t.Context())
	require.NoError(t, err)
	require.NoError(t, task.Wait(t.Context()))
	requireCode(t, w.PowerOnVM(t.Context(), app), api.CodeNotFound)
	requireCode(t, w.AttachDisks(t.Context(), api.AttachInput{Original: app, MasterTarget: "mt-1", Disks: vm.Disks}), api.CodeNotFound)
	err = w.on(t.Context(), w.vcenter, func(s *session) error {
		_, err := s.properties(t.Context(), object.NewVirtualMachine(s.client.Client, admin.Reference()), "name")
		return err
	})
	requireCode(t, err, api.CodeNotFound)
}

// requireRetried: the error has the code and is worth another try.
func requireRetried(t *testing.T, err error, code string) {
	t.Helper()
	requireCode(t, err, code)
	var app *temporal.ApplicationError
	require.ErrorAs(t, err, &app)
	require.False(t, app.NonRetryable())
}
