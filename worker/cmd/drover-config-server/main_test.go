package main

import (
	"bytes"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"drover/datapath/ident"
	"drover/worker/controlserver/admin"
	"drover/worker/registry"
)

func run(args ...string) (string, error) {
	var out bytes.Buffer
	cmd := command()
	cmd.SetArgs(args)
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	err := cmd.Execute()
	return out.String(), err
}

func TestHelpHasExamples(t *testing.T) {
	for _, verb := range []string{"serve", "token", "revoke", "status"} {
		out, err := run(verb, "--help")
		require.NoError(t, err)
		require.Contains(t, out, "Examples:\n  drover-config-server "+verb)
	}
	out, err := run("version")
	require.NoError(t, err)
	require.NotEmpty(t, out)
}

func TestWrongArguments(t *testing.T) {
	id := ident.NewMachineID("vc", "vm").String()
	for want, args := range map[string][]string{
		"required flag(s) \"config\"":       {"serve"},
		"none.yaml":                         {"serve", "--config", "none.yaml"},
		"at least one of the flags":         {"token", "--state", "x", "--role", "agent"},
		"give --instance":                   {"token", "--state", "x", "--role", "agent", "--machine", id},
		"not a uuid in canonical form":      {"token", "--state", "x", "--role", "agent", "--machine", "../etc"},
		"want agent, process-server":        {"revoke", "--state", "x", "--role", "admin", "--name", "a"},
		"give its --name":                   {"revoke", "--state", "x", "--role", "process-server", "--machine", id},
		"check that the configuration serv": {"token", "--state", t.TempDir(), "--role", "process-server", "--name", "ps-1"},
	} {
		_, err := run(args...)
		require.ErrorContains(t, err, want)
	}
}

func TestStatus(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	var out bytes.Buffer
	require.NoError(t, printStatus(&out, admin.Status{Name: "cs-1", Fingerprint: "ab", Time: now, Peers: []registry.PeerRecord{
		{Role: ident.RoleProcessServer, Name: "ps-1", Expires: now, Heard: []registry.AgentRecord{{State: "serving", LastSeen: now.Add(-3 * time.Second)}}},
		{Role: ident.RoleMasterTarget, Name: "mt-1", Expires: now, Revoked: true},
		{Role: ident.RoleMasterTarget, Name: "mt-2", Expires: now},
	}}))
	for _, want := range []string{"cs-1, CA ab", "serving", "3s ago", "revoked", "never heard of"} {
		require.Contains(t, out.String(), want)
	}
}
