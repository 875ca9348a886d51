package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestLogFile: it goes on after a restart, and never takes more than twice its bound.
func TestLogFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.log")
	read := func(name string) string {
		b, err := os.ReadFile(name)
		require.NoError(t, err)
		return string(b)
	}
	for _, line := range []string{"1234\n", "5678\n", "9abc\n"} {
		l := &logFile{path: path, most: 12}
		_, err := l.Write([]byte(line))
		require.NoError(t, err)
		require.NoError(t, l.Close())
	}
	require.Equal(t, "1234\n5678\n", read(path+".1"))
	require.Equal(t, "9abc\n", read(path))
	l := &logFile{path: path, most: 12}
	for _, line := range []string{"a\n", "b\n", "0123456789\n", "c\n"} {
		_, err := l.Write([]byte(line))
		require.NoError(t, err)
	}
	require.NoError(t, l.Close())
	require.Equal(t, "0123456789\n", read(path+".1"))
	require.Equal(t, "c\n", read(path))
}
