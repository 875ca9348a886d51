package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const root = "../.."

// The code that a mutant takes away is there, the tests that are to notice are there,
// and every invariant has some.
func TestTableIsUpToDate(t *testing.T) {
	const invariants = 10
	seen := map[int]bool{}
	for _, m := range mutants {
		_, text, err := m.mutated(root)
		require.NoError(t, err, m.what)
		require.NotContains(t, text, m.old+m.old)
		seen[m.keeps] = true
		for _, name := range strings.Split(m.test, "|") {
			files, err := filepath.Glob(filepath.Join(root, m.in, "*_test.go"))
			require.NoError(t, err)
			found := false
			for _, file := range files {
				b, err := os.ReadFile(file)
				require.NoError(t, err)
				found = found || strings.Contains(string(b), "\nfunc "+name)
			}
			require.True(t, found, "%s has no %s", m.in, name)
		}
	}
	require.Len(t, seen, invariants)
}

// docs/PROMISES.md names for each invariant the tests that notice.
func TestPromisesNameTheTests(t *testing.T) {
	b, err := os.ReadFile(filepath.Join(root, "docs", "PROMISES.md"))
	require.NoError(t, err)
	rows := map[int]string{}
	_, table, found := strings.Cut(string(b), "## What must always hold")
	require.True(t, found)
	for _, line := range regexp.MustCompile(`(?m)^\| (\d+) \|.*$`).FindAllStringSubmatch(table, 10) {
		n, err := strconv.Atoi(line[1])
		require.NoError(t, err)
		rows[n] = line[0]
	}
	for _, m := range mutants {
		for _, name := range strings.Split(m.test, "|") {
			require.Contains(t, rows[m.keeps], name, "invariant %d: %s", m.keeps, m.what)
		}
	}
}

func TestFailuresAreTold(t *testing.T) {
	require.Equal(t, "TestA", firstFailure("ok\n--- FAIL: TestA (0.1s)\n    --- FAIL: TestA/b (0.1s)\nFAIL\n"))
	require.Equal(t, "panic: test timed out after 1s", firstFailure("panic: test timed out after 1s\n"))
	require.Empty(t, firstFailure("# drover/x\nx.go:1:2: undefined: y\nFAIL drover/x [build failed]\n"), "not a test")
	m := &mutant{file: "tests/mutants/main.go", old: "no such text"}
	_, _, err := m.mutated(root)
	require.ErrorContains(t, err, "want once")
}
