package errdoc

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"drover/datapath/wire"
	"drover/workflows/api"
)

const root = "../.."

func TestTheFileIsWhatTheCodeSays(t *testing.T) {
	have, err := os.ReadFile(filepath.Join(root, "docs", "errors.md"))
	require.NoError(t, err)
	require.Equal(t, Text(), string(have), "run `make errors`")
}

func TestEntriesAreWhole(t *testing.T) {
	last := ""
	for _, e := range api.Catalogue() {
		require.Greater(t, e.Code, last, "sorted, each once")
		last = e.Code
		for what, text := range map[string]string{"component": e.Component, "cause": e.Cause, "evidence": e.Evidence, "action": e.Action, "failover": string(e.Failover)} {
			require.NotEmpty(t, text, "%s of %s", what, e.Code)
			require.NotContains(t, text, "|", "%s of %s", what, e.Code)
		}
	}
	for code := wire.Code(1); known(code); code++ {
		require.NotEmpty(t, onTheWire[code][0], "code %d", code)
	}
	require.False(t, known(wire.Code(len(onTheWire)+1)), "the numbers have no gap")
}

// TestEveryCodeIsInTheCatalogue looks at all of the code: a code that is written
// anywhere is explained, and what is explained is written somewhere.
func TestEveryCodeIsInTheCatalogue(t *testing.T) {
	form := regexp.MustCompile(`"(DRV-[0-9]{4})"`)
	used := map[string]string{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() && (d.Name() == ".git" || d.Name() == "build") {
			return filepath.SkipDir
		}
		if filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") || filepath.Base(path) == "errors.go" {
			return nil
		}
		text, err := os.ReadFile(path)
		for _, m := range form.FindAllStringSubmatch(string(text), -1) {
			used[m[1]] = path
		}
		return err
	})
	require.NoError(t, err)
	var explained []string
	for _, e := range api.Catalogue() {
		explained = append(explained, e.Code)
		require.Contains(t, used, e.Code, "nothing has this code")
	}
	for code, path := range used {
		require.True(t, slices.Contains(explained, code), "%s has %s, which workflows/api/errors.go does not explain", path, code)
	}
}
