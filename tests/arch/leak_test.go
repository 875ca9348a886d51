package arch

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var (
	starts  = regexp.MustCompile(`(?m)^\s*go |\.Go\(|\bAfterFunc\(|\bordered\.New\(`)
	watches = regexp.MustCompile(`goleak\.VerifyTestMain`)
	// elsewhere are packages whose tests are in another one.
	elsewhere = map[string]string{"agent/session": "tests/stream", "agent/tracker/reading": "agent/tracker/scan", "datapath/cachestore/cachetest": "datapath/cachestore/blockblob"}
)

// TestGoroutinesEnd holds that whatever starts goroutines has tests that fail when one
// is left: in the data path, the agent, and what joins them.
func TestGoroutinesEnd(t *testing.T) {
	base, found := root(t), 0
	for _, p := range packages(t) {
		path := strings.TrimPrefix(p.ImportPath, module+"/")
		if within(path, "tests") && !within(path, "tests/stream") && !within(path, "tests/model") && !within(path, "tests/fault") ||
			!within(path, "tests") && !within(path, "datapath") && !within(path, "agent") {
			continue
		}
		if !within(path, "tests") && !matches(t, starts, p.Dir, p.GoFiles) {
			continue
		}
		found++
		dir := p.Dir
		if other := elsewhere[path]; other != "" {
			dir = filepath.Join(base, other)
		}
		names, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
		require.NoError(t, err)
		for i := range names {
			names[i] = filepath.Base(names[i])
		}
		require.True(t, matches(t, watches, dir, names), "%s starts goroutines: have goleak.VerifyTestMain in its tests", path)
	}
	require.Greater(t, found, 10, "packages were found")
}

func matches(t *testing.T, what *regexp.Regexp, dir string, names []string) bool {
	t.Helper()
	for _, name := range names {
		text, err := os.ReadFile(filepath.Join(dir, name))
		require.NoError(t, err)
		if what.Match(text) {
			return true
		}
	}
	return false
}

// TestPromisesNameTests holds that the tests that docs/PROMISES.md names exist.
func TestPromisesNameTests(t *testing.T) {
	base := root(t)
	have := map[string]bool{}
	define := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)
	for _, pattern := range []string{"*", "*/*", "*/*/*", "*/*/*/*"} {
		files, err := filepath.Glob(filepath.Join(base, pattern, "*_test.go"))
		require.NoError(t, err)
		for _, file := range files {
			text, err := os.ReadFile(file)
			require.NoError(t, err)
			for _, m := range define.FindAllSubmatch(text, -1) {
				have[string(m[1])] = true
			}
		}
	}
	doc, err := os.ReadFile(filepath.Join(base, "docs", "PROMISES.md"))
	require.NoError(t, err)
	named := regexp.MustCompile(`\b(?:Test|Fuzz)[A-Z]\w*`).FindAllString(string(doc), -1)
	require.Greater(t, len(named), 100)
	for _, name := range named {
		require.True(t, have[name], "docs/PROMISES.md names %s, which is not there", name)
	}
}
