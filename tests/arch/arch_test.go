package arch

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const module = "drover"

// pkg is what `go list` says of a package.
type pkg struct {
	ImportPath string
	Dir        string
	Doc        string
	Imports    []string
	GoFiles    []string
}

func packages(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Dir,Doc,Imports,GoFiles", "./...")
	cmd.Dir = root(t)
	out, err := cmd.Output()
	require.NoError(t, err)
	var all []pkg
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		err := dec.Decode(&p)
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		all = append(all, p)
	}
	require.Greater(t, len(all), 20, "go list found the packages")
	return all
}

func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../..")
	require.NoError(t, err)
	return dir
}

// arrows say what each top folder may import of ours. The most specific prefix
// counts.
var arrows = map[string][]string{
	"datapath": {"datapath"},
	"agent": {"agent", "datapath/durable", "datapath/wire", "datapath/checksum", "datapath/changeset", "datapath/codec", "datapath/failpoint", "datapath/compress",
		"datapath/ident", "datapath/ordered", "datapath/waterfall"},
	"activities":              {"activities", "datapath", "workflows/api", "agent/controlapi"},
	"workflows":               {"workflows", "datapath/codec", "datapath/ident", "datapath/replica", "datapath/stream"},
	"workflows/api":           {"datapath/codec", "datapath/health", "datapath/ident", "datapath/release", "datapath/replica", "datapath/stream", "datapath/throttle"},
	"worker":                  {"worker", "workflows", "activities", "datapath", "agent/controlapi", "agent/enrol"},
	"starter":                 {"starter", "workflows/api", "datapath/codec", "datapath/ident", "datapath/replica", "datapath/stream", "datapath/throttle", "datapath/waterfall"},
	"starter/simulate":        {"workflows", "datapath/ident", "datapath/replica", "datapath/stream"},
	"agent/controlapi":        {"datapath/health", "datapath/ident"},
	"datapath/ident":          {},
	"datapath/checksum":       {"datapath/ident"},
	"datapath/changeset":      {"datapath/codec", "datapath/compress", "datapath/ident", "datapath/checksum"},
	"datapath/codec":          {},
	"datapath/compress":       {"datapath/codec"},
	"datapath/ordered":        {},
	"datapath/waterfall":      {},
	"datapath/cachestore":     {"datapath/ident", "datapath/durable", "datapath/vfs"},
	"datapath/replica":        {"datapath/replica", "datapath/durable", "datapath/failpoint", "datapath/vfs", "datapath/ident", "datapath/checksum", "datapath/changeset"},
	"datapath/stream":         {"datapath/changeset", "datapath/codec", "datapath/ident", "datapath/replica", "datapath/throttle", "datapath/waterfall"},
	"datapath/release":        {},
	"datapath/throttle":       {},
	"datapath/health":         {},
	"datapath/health/monitor": {"datapath/health"},
	"datapath/wire":           {"datapath/codec", "datapath/ident", "datapath/checksum", "datapath/changeset", "datapath/waterfall"},

	"datapath/azstorage":            {},
	"datapath/cachestore/cachetest": {"datapath/cachestore", "datapath/ident"},
	"datapath/replica/pageblob":     {"datapath/replica", "datapath/azstorage", "datapath/failpoint", "datapath/ident", "datapath/checksum", "datapath/changeset"},
	"datapath/cachestore/blockblob": {"datapath/cachestore", "datapath/azstorage", "datapath/ident"},
}

// outside says what a folder may not import of others' code.
var outside = map[string][]string{
	"datapath": {"go.temporal.io/", "github.com/vmware/", "github.com/Azure/", "os/exec"},
	"agent":    {"go.temporal.io/", "github.com/vmware/", "github.com/Azure/"},
	"starter":  {"github.com/vmware/", "github.com/Azure/", "os/exec"},
	"workflows": {"go.temporal.io/sdk/client", "go.temporal.io/sdk/worker", "go.temporal.io/sdk/activity", "github.com/vmware/", "github.com/Azure/",
		"os", "os/exec", "net", "net/http", "math/rand", "math/rand/v2", "crypto/rand", "io/ioutil", "log/slog"},
}

func within(path, prefix string) bool { return path == prefix || strings.HasPrefix(path, prefix+"/") }

func rulesOf(path string) (rule string, allowed []string) {
	for prefix, list := range arrows {
		if within(path, prefix) && len(prefix) > len(rule) {
			rule, allowed = prefix, list
		}
	}
	return rule, allowed
}

func TestArrows(t *testing.T) {
	for _, p := range packages(t) {
		path := strings.TrimPrefix(p.ImportPath, module+"/")
		rule, allowed := rulesOf(path)
		if rule == "" {
			require.True(t, within(path, "tests"), "package %s is in no folder of docs/ARCHITECTURE.md", path)
			continue
		}
		for _, imported := range p.Imports {
			if ours, ok := strings.CutPrefix(imported, module+"/"); ok {
				fine := within(ours, path) || within(path, ours) && rule != ours
				for _, a := range allowed {
					fine = fine || within(ours, a)
				}
				require.True(t, fine, "%s imports %s; %s may import of ours only %v", path, ours, rule, allowed)
				continue
			}
			for folder, list := range outside {
				for _, bad := range list {
					if within(path, folder) && (imported == bad || strings.HasSuffix(bad, "/") && strings.HasPrefix(imported, bad)) {
						require.True(t, excepted(path, bad), "%s imports %s, which %s must not", path, imported, folder)
					}
				}
			}
		}
	}
}

// excepted lists the packages that have a reason: Azure Storage is spoken to by these.
func excepted(path, bad string) bool {
	return bad == "github.com/Azure/" && (within(path, "datapath/azstorage") || within(path, "datapath/replica/pageblob") || within(path, "datapath/cachestore/blockblob"))
}

func TestPackageComments(t *testing.T) {
	for _, p := range packages(t) {
		require.NotEmpty(t, p.Doc, "package %s has no package comment: say what it is for", p.ImportPath)
	}
}

func TestFilesFitOnAFewScreens(t *testing.T) {
	const maxLines = 500
	for _, p := range packages(t) {
		for _, name := range p.GoFiles {
			f, err := os.Open(filepath.Join(p.Dir, name))
			require.NoError(t, err)
			lines := 0
			for scan := bufio.NewScanner(f); scan.Scan(); {
				lines++
			}
			require.NoError(t, f.Close())
			require.LessOrEqual(t, lines, maxLines, "%s/%s has %d lines: split it", p.ImportPath, name, lines)
		}
	}
}

// TestMainModuleHasNoServer holds that the embedded Temporal server stays in a
// module of its own.
func TestMainModuleHasNoServer(t *testing.T) {
	mod, err := os.ReadFile(filepath.Join(root(t), "go.mod"))
	require.NoError(t, err)
	require.NotContains(t, string(mod), "go.temporal.io/server")
	require.NotContains(t, string(mod), "replace ")
}

// TestDocumentsLinks holds that what the documents link to is there, and that the
// folders the architecture names exist.
func TestDocumentsLinks(t *testing.T) {
	base := root(t)
	err := filepath.WalkDir(base, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == ".git" || d.Name() == "build") {
			return filepath.SkipDir
		}
		if filepath.Ext(path) != ".md" {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, part := range strings.Split(string(text), "](")[1:] {
			link, _, _ := strings.Cut(part, ")")
			link, _, _ = strings.Cut(link, "#")
			if link == "" || strings.Contains(link, "://") {
				continue
			}
			_, err := os.Stat(filepath.Join(filepath.Dir(path), link))
			require.NoError(t, err, "%s links to %s", path, link)
		}
		return nil
	})
	require.NoError(t, err)
}
