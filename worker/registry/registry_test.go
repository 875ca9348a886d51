package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"

	"drover/agent/controlapi"
	"drover/datapath/health"
	"drover/datapath/ident"
)

var (
	machine = ident.NewMachineID("vc", "vm")
	agent   = ident.Peer{Role: ident.RoleAgent, Name: machine.String()}
	ps1     = ident.Peer{Role: ident.RoleProcessServer, Name: "ps-1"}
)

func open(t *testing.T, dir string) *Registry {
	t.Helper()
	r, err := Open(dir)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, r.Close()) })
	return r
}

func TestKeysSurviveAndAreNotInClear(t *testing.T) {
	dir := t.TempDir()
	r := open(t, dir)
	id, err := r.CurrentKey(machine)
	require.NoError(t, err)
	old, err := r.Key(machine, id)
	require.NoError(t, err)
	require.Len(t, old.Secret, controlapi.KeySize)
	next, err := r.RotateKey(machine)
	require.NoError(t, err)
	require.NotEqual(t, id, next)
	require.NoError(t, r.Close())

	file, err := os.ReadFile(filepath.Join(dir, dbFile))
	require.NoError(t, err)
	require.False(t, bytes.Contains(file, old.Secret))
	for _, name := range []string{dbFile, masterFile} {
		st, err := os.Stat(filepath.Join(dir, name))
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o600), st.Mode().Perm(), name)
	}

	r = open(t, dir)
	current, err := r.CurrentKey(machine)
	require.NoError(t, err)
	require.Equal(t, next, current)
	again, err := r.Key(machine, id)
	require.NoError(t, err)
	require.Equal(t, old, again)

	other := ident.NewMachineID("vc", "other")
	theirs, err := r.Key(other, "")
	require.NoError(t, err)
	_, err = r.Key(other, id)
	require.ErrorIs(t, err, ErrUnknown)
	require.NoError(t, r.DropKeys(machine))
	_, err = r.Key(machine, id)
	require.ErrorIs(t, err, ErrUnknown)
	kept, err := r.Key(other, "")
	require.NoError(t, err)
	require.Equal(t, theirs, kept)
}

// A wrapped key moved to another machine's place does not open.
func TestWrappedKeysCannotBeSwapped(t *testing.T) {
	r := open(t, t.TempDir())
	id, err := r.CurrentKey(machine)
	require.NoError(t, err)
	other := ident.NewMachineID("vc", "other")
	require.NoError(t, r.db.Update(func(tx *bolt.Tx) error {
		b := tx.Bucket(bucketKeys)
		return b.Put(keyEntry(other, id), append([]byte(nil), b.Get(keyEntry(machine, id))...))
	}))
	_, err = r.Key(other, id)
	require.ErrorContains(t, err, "cannot be unwrapped")
}

func TestMasterKeyIsNeverReplaced(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, open(t, dir).Close())
	path := filepath.Join(dir, masterFile)
	good, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, os.Remove(path))
	_, err = Open(dir)
	require.ErrorContains(t, err, "restore it from the backup")
	require.NoFileExists(t, path)
	require.NoError(t, os.WriteFile(path, bytes.Repeat([]byte{1}, masterSize), 0o600))
	_, err = Open(dir)
	require.ErrorContains(t, err, "is not the master key of this registry")
	require.NoError(t, os.WriteFile(path, good, 0o600))
	require.NoError(t, os.Chmod(path, 0o644))
	_, err = Open(dir)
	require.ErrorContains(t, err, "others may have read it")
}

func TestOneProcessAtATime(t *testing.T) {
	dir := t.TempDir()
	first := open(t, dir)
	type result struct {
		r   *Registry
		err error
	}
	second := make(chan result, 1)
	go func() { r, err := Open(dir); second <- result{r, err} }()
	require.NoError(t, first.Close()) // the second waits for it
	got := <-second
	require.NoError(t, got.err)
	require.NoError(t, got.r.Close())
}

func TestTokensInTheFileAreHashes(t *testing.T) {
	dir := t.TempDir()
	r := open(t, dir)
	secret, err := r.IssueToken(TokenSpec{Peer: ps1})
	require.NoError(t, err)
	require.NoError(t, r.Close())
	file, err := os.ReadFile(filepath.Join(dir, dbFile))
	require.NoError(t, err)
	require.True(t, bytes.Contains(file, tokenKey(secret)))
	require.False(t, bytes.Contains(file, []byte(secret)))
	r = open(t, dir)
	p, err := r.SpendToken(secret, "", nil)
	require.NoError(t, err)
	require.Equal(t, ps1, p)
	_, err = r.SpendToken(secret, "", nil)
	require.ErrorIs(t, err, ErrTokenSpent)
	require.ErrorIs(t, err, ErrToken)
}

func TestOldTokensAreForgotten(t *testing.T) {
	now := time.Now()
	r, err := OpenWithClock(t.TempDir(), func() time.Time { return now })
	require.NoError(t, err)
	defer func() { require.NoError(t, r.Close()) }()
	secret, err := r.IssueToken(TokenSpec{Peer: ps1, TTL: MinTTL})
	require.NoError(t, err)
	now = now.Add(MinTTL)
	_, err = r.SpendToken(secret, "", nil)
	require.ErrorIs(t, err, ErrTokenExpired)
	now = now.Add(keepTokens + time.Second)
	_, err = r.IssueToken(TokenSpec{Peer: ps1})
	require.NoError(t, err)
	_, err = r.SpendToken(secret, "", nil)
	require.ErrorIs(t, err, ErrTokenUnknown)
}

func TestAssignments(t *testing.T) {
	dir := t.TempDir()
	r := open(t, dir)
	_, ok := r.Assignment(machine)
	require.False(t, ok)
	a := controlapi.Assignment{Machine: machine, Action: controlapi.ActionReplicate, Epoch: 2, Server: "ps-1", Role: ident.RoleProcessServer, Version: 99}
	require.NoError(t, r.SetAssignment(a))
	require.NoError(t, r.SetAssignment(a)) // told twice is told once
	got, ok := r.Assignment(machine)
	require.True(t, ok)
	a.Version = 1
	require.Equal(t, a, got)
	older := a
	older.Epoch = 1
	require.ErrorIs(t, r.SetAssignment(older), ErrOldEpoch)
	a.Action, a.Reason = controlapi.ActionStandby, "unprotected"
	require.NoError(t, r.SetAssignment(a))
	require.NoError(t, r.Close())
	r = open(t, dir)
	got, _ = r.Assignment(machine)
	require.Equal(t, uint64(2), got.Version)
	require.ErrorIs(t, r.SetAssignment(controlapi.Assignment{Action: controlapi.ActionStandby}), ErrInvalid)
}

func TestWaitersWakeOnChangeEndAndClose(t *testing.T) {
	r := open(t, t.TempDir())
	const n = 8
	var wg sync.WaitGroup
	got := make([]controlapi.Assignment, n)
	for i := range n {
		wg.Go(func() { got[i], _ = r.WaitAssignment(t.Context(), machine, 0, time.Minute) })
	}
	other := ident.NewMachineID("vc", "other")
	require.NoError(t, r.SetAssignment(controlapi.Assignment{Machine: other, Action: controlapi.ActionStandby}))
	require.NoError(t, r.SetAssignment(controlapi.Assignment{Machine: machine, Action: controlapi.ActionStandby, Epoch: 4}))
	wg.Wait()
	for _, a := range got {
		require.Equal(t, ident.Epoch(4), a.Epoch)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	gone := errors.New("gone")
	cancel(gone)
	_, err := r.WaitAssignment(ctx, machine, 1, time.Minute)
	require.ErrorIs(t, err, gone)
	ended := make(chan error, 1)
	go func() { _, err := r.WaitAssignment(context.Background(), machine, 1, time.Minute); ended <- err }()
	require.NoError(t, r.Close())
	require.ErrorIs(t, <-ended, ErrClosed)
}

func TestHeardOfSeveralInstances(t *testing.T) {
	dir := t.TempDir()
	r := open(t, dir)
	at := time.Now().UTC().Truncate(time.Second)
	inv := &controlapi.Inventory{Hostname: "web"}
	require.NoError(t, r.Heard(agent, controlapi.Heartbeat{Instance: "AAA", State: "standby", Inventory: inv}, at))
	require.NoError(t, r.Heard(agent, controlapi.Heartbeat{Instance: "bbb", State: "streaming"}, at.Add(time.Second)))
	// Tells nothing new: only remembered, written at the latest when the registry closes.
	require.NoError(t, r.Heard(agent, controlapi.Heartbeat{Instance: "aaa", State: "standby"}, at.Add(2*time.Second)))
	require.NoError(t, r.Heard(agent, controlapi.Heartbeat{Instance: "aaa", State: "late"}, at.Add(-time.Second)))
	want := []AgentRecord{
		{Instance: "aaa", State: "standby", LastSeen: at.Add(2 * time.Second), Inventory: inv},
		{Instance: "bbb", State: "streaming", LastSeen: at.Add(time.Second)},
	}
	for range 2 {
		got, err := r.Agents(machine)
		require.NoError(t, err)
		require.Equal(t, want, got)
		require.NoError(t, r.Close())
		r = open(t, dir)
	}
	for i := range 2 * maxInstances {
		require.NoError(t, r.Heard(agent, controlapi.Heartbeat{Instance: fmt.Sprint(i)}, at.Add(time.Minute+time.Duration(i)*time.Second)))
	}
	got, err := r.Agents(machine)
	require.NoError(t, err)
	require.Len(t, got, maxInstances)
	require.NoError(t, r.Close())
	r = open(t, dir)
	after, err := r.Agents(machine)
	require.NoError(t, err)
	require.Equal(t, got, after)

	huge := &controlapi.Inventory{Hostname: strings.Repeat("x", maxInventory)}
	require.ErrorIs(t, r.Heard(agent, controlapi.Heartbeat{Inventory: huge}, at), ErrInvalid)
}

func TestServers(t *testing.T) {
	r := open(t, t.TempDir())
	at := time.Now()
	require.NoError(t, r.Enrolled(Enrolment{Peer: ps1, Serial: "1", Expires: at.Add(time.Hour), DataAddress: "a:1", Version: "1"}))
	require.NoError(t, r.Heard(ident.Peer{Role: ident.RoleProcessServer, Name: "ps-0"}, controlapi.Heartbeat{DataAddress: "b:1"}, at))
	require.NoError(t, r.Heard(ident.Peer{Role: ident.RoleMasterTarget, Name: "mt-1"}, controlapi.Heartbeat{}, at))
	require.NoError(t, r.SetAssignment(controlapi.Assignment{Machine: machine, Action: controlapi.ActionReplicate, Server: "ps-1", Role: ident.RoleProcessServer}))
	got, err := r.Servers(ident.RoleProcessServer)
	require.NoError(t, err)
	require.Equal(t, []ServerRecord{
		{Name: "ps-0", Role: ident.RoleProcessServer, DataAddress: "b:1", LastSeen: at},
		{Name: "ps-1", Role: ident.RoleProcessServer, DataAddress: "a:1", Version: "1", Assigned: 1},
	}, got)
	require.NoError(t, r.Heard(ps1, controlapi.Heartbeat{DataAddress: "c:2", Version: "2"}, at))
	require.NoError(t, r.Revoke(ident.Peer{Role: ident.RoleProcessServer, Name: "ps-0"}))
	got, err = r.Servers(ident.RoleProcessServer)
	require.NoError(t, err)
	require.Equal(t, []ServerRecord{{Name: "ps-1", Role: ident.RoleProcessServer, DataAddress: "c:2", LastSeen: at, Version: "2", Assigned: 1}}, got)
}

// TestGroupsOfServers: machines are counted by group; that it changes is no news for the agent.
func TestGroupsOfServers(t *testing.T) {
	r := open(t, t.TempDir())
	require.NoError(t, r.Enrolled(Enrolment{Peer: ps1, Serial: "1", Expires: time.Now().Add(time.Hour), DataAddress: "a:1"}))
	a := controlapi.Assignment{Machine: machine, Action: controlapi.ActionReplicate, Server: "ps-1", Role: ident.RoleProcessServer}
	for _, group := range []string{"", "shop", "bank", "bank"} {
		a.Group = group
		require.NoError(t, r.SetAssignment(a))
		got, err := r.Servers(ident.RoleProcessServer)
		require.NoError(t, err)
		if group == "" {
			require.Nil(t, got[0].Groups)
		} else {
			require.Equal(t, map[string]int{group: 1}, got[0].Groups)
		}
		last, ok := r.Assignment(machine)
		require.True(t, ok)
		require.Equal(t, uint64(1), last.Version)
		require.Equal(t, group, last.Group)
	}
}

func TestHealthOfServers(t *testing.T) {
	dir := t.TempDir()
	r := open(t, dir)
	health1 := func() *health.Report {
		got, err := r.Servers(ident.RoleProcessServer)
		require.NoError(t, err)
		require.Len(t, got, 1)
		return got[0].Health
	}
	at := time.Now()
	require.NoError(t, r.Heard(ps1, controlapi.Heartbeat{}, at))
	require.Nil(t, health1())
	bad := health.Report{Status: health.Warning}
	for range 2 * health.MaxFindings {
		bad.Findings = append(bad.Findings, health.Finding{Code: health.CodeCPU, Status: health.Warning, Cause: strings.Repeat("x", 2*maxDetail)})
	}
	require.NoError(t, r.Heard(ps1, controlapi.Heartbeat{Health: &bad}, at.Add(time.Second)))
	got := health1()
	require.Equal(t, health.Warning, got.Status)
	require.Len(t, got.Findings, health.MaxFindings)
	require.Len(t, got.Findings[0].Cause, maxDetail)
	require.NoError(t, r.Heard(ps1, controlapi.Heartbeat{Health: &health.Report{Status: health.OK}}, at.Add(2*time.Second)))
	require.NoError(t, r.Close())
	r = open(t, dir)
	require.Equal(t, health.OK, health1().Status, "a change is kept at once")
}

func TestRevocations(t *testing.T) {
	dir := t.TempDir()
	now := time.Now()
	r, err := OpenWithClock(dir, func() time.Time { return now })
	require.NoError(t, err)
	require.ErrorIs(t, r.Revoke(agent), ErrUnknown)
	secret, err := r.IssueToken(TokenSpec{Peer: agent, Instance: "i"})
	require.NoError(t, err)
	require.NoError(t, r.Enrolled(Enrolment{Peer: agent, Serial: "1", Expires: now.Add(2 * time.Hour)}))
	require.NoError(t, r.Renewed(agent, "2", now.Add(time.Hour)))
	require.NoError(t, r.Revoke(agent))
	_, err = r.SpendToken(secret, "i", nil)
	require.ErrorIs(t, err, ErrTokenUnknown, "a revocation takes the tokens too")
	require.ErrorIs(t, r.Renewed(agent, "3", now.Add(time.Hour)), ErrRevoked)
	require.NoError(t, r.Close())

	r, err = OpenWithClock(dir, func() time.Time { return now })
	require.NoError(t, err)
	defer func() { require.NoError(t, r.Close()) }()
	require.True(t, r.IsRevoked(agent))
	require.Equal(t, []string{machine.String()}, r.Denied())
	now = now.Add(time.Hour + time.Second) // the second certificate is over, the first is not
	_, err = r.IssueToken(TokenSpec{Peer: agent, Instance: "i"})
	require.ErrorIs(t, err, ErrRevoked)
	now = now.Add(time.Hour)
	require.Empty(t, r.Denied())
	secret, err = r.IssueToken(TokenSpec{Peer: agent, Instance: "i"})
	require.NoError(t, err)
	require.True(t, r.IsRevoked(agent), "until the token is used")
	_, err = r.SpendToken(secret, "i", nil)
	require.NoError(t, err)
	require.False(t, r.IsRevoked(agent))
}
