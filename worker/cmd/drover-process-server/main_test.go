package main

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"
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

func TestCommands(t *testing.T) {
	out, err := run("serve", "--help")
	require.NoError(t, err)
	require.Contains(t, out, "Examples:\n  drover-process-server serve")
	out, err = run("version")
	require.NoError(t, err)
	require.NotEmpty(t, out)
	_, err = run("serve")
	require.ErrorContains(t, err, "required flag(s) \"config\"")
	_, err = run("serve", "--config", "none.yaml")
	require.ErrorContains(t, err, "none.yaml")
}
