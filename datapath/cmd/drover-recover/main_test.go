package main

import (
	"bytes"
	"encoding/json"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"drover/datapath/changeset"
	"drover/datapath/ident"
	"drover/datapath/recover"
	"drover/datapath/replica"
	"drover/datapath/replica/file"
	"drover/datapath/replica/replicatest"
)

func run(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	c := command()
	c.SetArgs(args)
	c.SetOut(&out)
	c.SetErr(&out)
	err := c.ExecuteContext(t.Context())
	return out.String(), err
}

func TestFromAStoreAlone(t *testing.T) {
	dir, out := t.TempDir(), t.TempDir()
	s, err := file.Open(dir)
	require.NoError(t, err)
	m := ident.NewMachineID("vc", "vm")
	w, err := s.OpenWriter(t.Context(), 1, replica.Spec{Machine: m, Name: "db-1", Disks: []replica.Disk{
		{Disk: changeset.Disk{ID: ident.NewDiskID(m, "a"), Size: 1 << 20}, Name: "Hard disk 1"},
	}})
	require.NoError(t, err)
	require.NoError(t, w.BeginGeneration(t.Context(), w.State().Spec.Disks, false, nil))
	data := replicatest.Pattern(1, 8192)
	_, err = w.Apply(t.Context(), replicatest.After(w.State(), changeset.Base).Write(0, 0, data).Cut(replicatest.Complete()))
	require.NoError(t, err)
	require.NoError(t, w.Close())

	text, err := run(t, "machines", "--store", dir)
	require.NoError(t, err)
	require.Contains(t, text, "db-1")
	text, err = run(t, "points", "db-1", "--store", dir)
	require.NoError(t, err)
	require.Contains(t, text, "crash")
	text, err = run(t, "write", "db-1", "--store", dir, "--out", out, "--json")
	require.NoError(t, err)
	var disks []recover.Disk
	require.NoError(t, json.Unmarshal([]byte(text[bytes.IndexByte([]byte(text), '['):]), &disks))
	b, err := os.ReadFile(disks[0].Path)
	require.NoError(t, err)
	require.True(t, bytes.HasPrefix(b, data))
	require.Len(t, b, 1<<20)
}

// TestGroups: only moments that all machines of the round still have are listed.
func TestGroups(t *testing.T) {
	dir := t.TempDir()
	s, err := file.Open(dir)
	require.NoError(t, err)
	for n, name := range []string{"db-1", "app-1"} {
		m := ident.NewMachineID("vc", name)
		w, err := s.OpenWriter(t.Context(), 1, replica.Spec{Machine: m, Name: name, Disks: []replica.Disk{
			{Disk: changeset.Disk{ID: ident.NewDiskID(m, "a"), Size: 1 << 20}, Name: "Hard disk 1"},
		}})
		require.NoError(t, err)
		require.NoError(t, w.BeginGeneration(t.Context(), w.State().Spec.Disks, false, nil))
		_, err = w.Apply(t.Context(), replicatest.After(w.State(), changeset.Base).Cut(replicatest.Complete()))
		require.NoError(t, err)
		for round := range ident.Round(3 - n) { // app-1 lacks the last one
			cut := changeset.Cut{SourceTime: time.Unix(1e9+int64(round), 0), Consistency: ident.ApplicationConsistent - ident.Consistency(n),
				Group: &changeset.Group{Name: "shop", Round: round + 1, Members: 2}}
			_, err = w.Apply(t.Context(), replicatest.After(w.State(), changeset.Delta).Cut(cut))
			require.NoError(t, err)
		}
		require.NoError(t, w.Close())
	}
	text, err := run(t, "groups", "--store", dir)
	require.NoError(t, err)
	for _, want := range []string{"shop", "0000000000000001", "0000000000000002", "db-1 2", "app-1 3", "file-system"} {
		require.Contains(t, text, want)
	}
	require.NotContains(t, text, "0000000000000003")
	text, err = run(t, "points", "db-1", "--store", dir)
	require.NoError(t, err)
	require.Contains(t, text, "shop 0000000000000003")
}

func TestWhatIsNoStoreIsLeftAlone(t *testing.T) {
	dir := t.TempDir()
	_, err := run(t, "machines", "--store", dir)
	require.ErrorContains(t, err, "not a replica store")
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, left)
	_, err = run(t, "machines")
	require.ErrorContains(t, err, "store")
}

func TestPlans(t *testing.T) {
	dir := t.TempDir()
	s, err := file.Open(dir)
	require.NoError(t, err)
	text, err := run(t, "plans", "--store", dir, "--json")
	require.NoError(t, err)
	require.JSONEq(t, "[]", text)
	const doc = `{"plan": {"name": "shop", "groups": [
		{"name": "data", "machines": [{"name": "db-1"}], "after": [{"name": "check", "manual": {"instructions": "look at it"}}]},
		{"name": "web", "machines": [{"name": "web-1"}, {"name": "web-2"}]}]}, "hash": "h"}`
	require.NoError(t, s.PutDocument(t.Context(), "plan-shop", []byte(doc)))
	require.NoError(t, s.PutDocument(t.Context(), "policy-gold", []byte("{}")))

	text, err = run(t, "plans", "--store", dir)
	require.NoError(t, err)
	require.Regexp(t, `shop \| 1 data \| db-1 +\|\n\| shop \| 2 web +\| web-1, web-2 \|`, text)
	text, err = run(t, "plans", "--store", dir, "--json")
	require.NoError(t, err)
	var all []recover.Plan
	require.NoError(t, json.Unmarshal([]byte(text), &all))
	require.Equal(t, []recover.Group{{Name: "data", Machines: []string{"db-1"}}, {Name: "web", Machines: []string{"web-1", "web-2"}}}, all[0].Groups)
	text, err = run(t, "plan", "shop", "--store", dir)
	require.NoError(t, err)
	require.JSONEq(t, doc, text)
	_, err = run(t, "plan", "none", "--store", dir)
	require.ErrorIs(t, err, replica.ErrNotFound)
	require.NoError(t, s.PutDocument(t.Context(), "plan-torn", []byte("{")))
	_, err = run(t, "plans", "--store", dir)
	require.ErrorIs(t, err, replica.ErrCorrupt)
}

func TestExitCodes(t *testing.T) {
	dir := t.TempDir()
	_, err := file.Open(dir)
	require.NoError(t, err)
	for _, c := range []struct {
		code int
		args []string
	}{
		{0, []string{"machines", "--store", dir}}, {0, []string{"--help"}}, {exitFailed, []string{"points", "db-9", "--store", dir}},
		{exitUsage, []string{"machines"}}, {exitUsage, []string{"points", "--store", dir}}, {exitUsage, []string{"nothing"}}, {exitUsage, []string{"machines", "--stor"}},
	} {
		var out, errs bytes.Buffer
		require.Equal(t, c.code, execute(t.Context(), c.args, &out, &errs), "%v: %s", c.args, &errs)
		require.Equal(t, c.code != 0, errs.Len() > 0, "%v", c.args)
	}
}
