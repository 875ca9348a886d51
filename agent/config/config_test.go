package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func load(t *testing.T, text string) (*Config, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "agent.yaml")
	require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
	c, err := Load(file)
	if err == nil {
		require.Equal(t, filepath.Join(filepath.Dir(file), "state"), c.State)
	}
	return c, err
}

const good = "configServer: https://cs:443\nstate: state\ninstance: i-1\n"

func TestLoad(t *testing.T) {
	c, err := load(t, good+"quiesce: {pre: [/bin/a, b], post: [/bin/c], timeout: 3s}\ndisks: {x: /dev/sda}\nproxy: http://p:3128\nmetrics: 127.0.0.1:9102\n")
	require.NoError(t, err)
	require.Equal(t, Duration(3*time.Second), c.Quiesce.Timeout)
	require.Equal(t, []string{"/bin/a", "b"}, c.Quiesce.Pre)
	require.Equal(t, "/dev/sda", c.Disks["x"])
	c, err = load(t, good)
	require.NoError(t, err)
	require.Equal(t, Duration(10*time.Second), c.Quiesce.Timeout)
	require.Equal(t, Freeze{Limit: Duration(2 * time.Second)}, c.Freeze)
	require.Equal(t, Scripts{Directory: "/etc/drover/scripts.d", Timeout: Duration(30 * time.Second)}, c.Scripts)
	require.Equal(t, defaultLimits(), c.Limits)
	require.Equal(t, filepath.Join(filepath.Dir(c.State), "agent.token"), c.TokenFile)
	require.Equal(t, "/run/drover-agent/status.sock", c.Socket)
	c, err = load(t, good+"limits: {memory: 96MiB, readRate: 1.5 GB, nice: 5, pressure: {io: 30}}\nsocket: s\n")
	require.NoError(t, err)
	require.Equal(t, Limits{Memory: 96 << 20, ReadRate: 15e8, Nice: 5, Pressure: Pressure{CPU: 60, IO: 30, Memory: 20}}, c.Limits)
	require.Equal(t, int64(15e8), c.Limits.Pace().Rate)
}

func TestRefuses(t *testing.T) {
	for text, want := range map[string]string{
		good + "colour: red\n":                         "agent.yaml:4: unknown field",
		"state: s\ninstance: i\n":                      "configServer",
		"configServer: http://cs\nstate: s\n":          "want https://",
		"configServer: https://cs\n":                   "state: a directory",
		good + "quiesce: {pre: [/a]}\n":                "go together",
		good + "quiesce: {timeout: 1h}\n":              "quiesce.timeout",
		good + "quiesce: {timeout: soon}\n":            "agent.yaml:4: \"soon\": want a duration",
		good + "freeze: {limit: 10ms}\n":               "freeze.limit",
		good + "freeze: {limit: 1m}\n":                 "freeze.limit",
		good + "scripts: {timeout: 0s}\n":              "scripts.timeout",
		good + "skipFree: true\nfreeze: {off: true}\n": "skipFree: what is free",
		good + "metrics: nowhere\n":                    "metrics",
		good + "proxy: socks://p\n":                    "proxy",
		good + "disks: {\"\": /dev/sda}\n":             "backing uuid",
		good + "limits: {memory: 1MiB}\n":              "limits.memory",
		good + "limits: {readRate: 1kB}\n":             "limits.readRate",
		good + "limits: {readRate: fast}\n":            "agent.yaml:4: \"fast\": want a size",
		good + "limits: {readRate: -1}\n":              "want a size",
		good + "limits: {memory: 9999999999999GiB}\n":  "want a size",
		good + "limits: {nice: -5}\n":                  "limits.nice",
		good + "limits: {pressure: {io: 101}}\n":       "limits.pressure.io",
		good + "limits: {pressure: {cpu: .nan}}\n":     "limits.pressure.cpu",
		good + "state: twice\n":                        "agent.yaml:4",
		"configServer: [1]\nstate: s\n":                "agent.yaml:1",
	} {
		_, err := load(t, text)
		require.ErrorContains(t, err, want, text)
	}
	_, err := Load(filepath.Join(t.TempDir(), "none.yaml"))
	require.ErrorContains(t, err, "none.yaml")
}

func TestExamples(t *testing.T) {
	for path, quiesce := range map[string]bool{"../../docs/examples/agent.yaml": true, "../packaging/agent.yaml.example": false} {
		text, err := os.ReadFile(path)
		require.NoError(t, err)
		file := filepath.Join(t.TempDir(), "agent.yaml")
		require.NoError(t, os.WriteFile(file, append(text, "\ninstance: i-1 # not every test machine has one\n"...), 0o600))
		c, err := Load(file)
		require.NoError(t, err, path)
		require.Equal(t, quiesce, len(c.Quiesce.Pre) > 0, path)
		require.Equal(t, "/var/lib/drover/agent", c.State)
	}
}

// The commented lines of the packaged example are good too, and those of the limits are
// the defaults.
func TestCommentsOfTheExample(t *testing.T) {
	text, err := os.ReadFile("../packaging/agent.yaml.example")
	require.NoError(t, err)
	_, rest, found := strings.Cut(string(text), "\n\n")
	require.True(t, found)
	var lines []string
	for line := range strings.Lines(rest) {
		if line = strings.TrimPrefix(line, "# "); strings.Contains(line, ":") || strings.TrimSpace(line) == "" {
			lines = append(lines, line)
		}
	}
	file := filepath.Join(t.TempDir(), "agent.yaml")
	require.NoError(t, os.WriteFile(file, []byte("configServer: https://cs\nstate: s\ninstance: i\n"+strings.Join(lines, "")), 0o600))
	c, err := Load(file)
	require.NoError(t, err)
	require.Equal(t, defaultLimits(), c.Limits)
	require.Equal(t, []string{"/etc/drover/freeze"}, c.Quiesce.Pre)
	require.Len(t, c.Disks, 1)
	require.NotEmpty(t, c.Proxy)
}
