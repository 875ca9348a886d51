package packages

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// kind is one kind of package, by its tool.
type kind struct {
	pattern                  string
	install, upgrade, remove []string // remove: without the package's name
}

// life installs, configures, upgrades and removes a package.
func life(t *testing.T, w *world, k kind) {
	t.Helper()
	w.run(append(k.install, w.pkg(k.pattern, "1.0.0"))...)
	w.is("inactive", "enabled")
	require.True(t, w.has("/etc/drover/agent.yaml.example"))
	require.True(t, w.has("/usr/share/doc/drover-agent/agent.md"))
	info, err := os.Stat(w.file("/var/lib/drover/agent"))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o700), info.Mode().Perm())

	w.configure()
	w.run("systemctl", "start", unit)
	w.is("active", "enabled")
	w.works()
	before := w.process()
	w.write("/var/lib/drover/agent/identity/kept", "x")
	require.NoError(t, os.MkdirAll(w.file("/sys/fs/bpf/drover/pin"), 0o700))

	w.run(append(k.upgrade, w.pkg(k.pattern, "1.1.0"))...)
	w.is("active", "enabled")
	w.works()
	require.NotEqual(t, before, w.process(), "the new program runs")
	require.True(t, w.has("/var/lib/drover/agent/identity/kept"))
	require.True(t, w.has("/sys/fs/bpf/drover/pin"), "tracking goes on")

	// What the administrator chose stays.
	w.run("systemctl", "disable", "--now", unit)
	w.run(append(append(k.upgrade, again[k.pattern]...), w.pkg(k.pattern, "1.1.0"))...)
	w.is("inactive", "disabled")
	w.run("systemctl", "enable", "--now", unit)
	w.is("active", "enabled")

	w.run(append(k.remove, "drover-agent")...)
	require.Eventually(t, func() bool { out, _ := w.try("systemctl", "is-active", unit); return out == "inactive" }, limit, often)
	require.False(t, w.has("/usr/bin/drover-agent"))
	for _, kept := range []string{"/var/lib/drover/agent/identity/kept", "/etc/drover/agent.yaml", "/sys/fs/bpf/drover/pin"} {
		require.True(t, w.has(kept), kept)
	}
	w.run(append(k.install, w.pkg(k.pattern, "1.1.0"))...)
	w.is("active", "enabled") // there is a configuration
	w.works()
}

// again is what a tool needs to install the same version.
var again = map[string][]string{rpm: {"--replacepkgs"}}

func TestDeb(t *testing.T) {
	t.Parallel()
	w := boot(t)
	life(t, w, kind{deb, []string{"dpkg", "--install"}, []string{"dpkg", "--install"}, []string{"dpkg", "--remove"}})
	w.run("dpkg", "--purge", "drover-agent")
	for _, gone := range []string{"/var/lib/drover", "/etc/drover", "/sys/fs/bpf/drover", "/etc/systemd/system/multi-user.target.wants/" + unit} {
		require.False(t, w.has(gone), gone)
	}
	out, err := w.try("dpkg", "--status", "drover-agent")
	require.Error(t, err, out)
}

func TestRpm(t *testing.T) {
	t.Parallel()
	w := boot(t)
	do := []string{"rpm", "--nodeps", "--force-debian"}
	with := func(mode string) []string { return append(append([]string{}, do...), mode) }
	life(t, w, kind{rpm, with("--install"), with("--upgrade"), with("--erase")})
	w.run("rpm", "--verify", "--nodeps", "drover-agent")
}

// The unit as systemd reads it, and as what runs in it meets it.
func TestUnit(t *testing.T) {
	t.Parallel()
	w := boot(t)
	w.run("dpkg", "--install", w.pkg(deb, "1.0.0"))
	require.Empty(t, w.run("systemd-analyze", "verify", unit), "nothing in it is unknown")
	// 10 is a service without any of it; this one reads disks and freezes file systems.
	w.run("systemd-analyze", "security", "--threshold=40", "--no-pager", unit)

	w.run("truncate", "--size=16M", "/home/image")
	w.run("mke2fs", "-q", "-t", "ext4", "/home/image")
	if out, err := w.try("mount", "-o", "loop", "/home/image", "/mnt"); err != nil {
		need(t, "no loop device: %s", out)
	}
	device := w.run("findmnt", "--noheadings", "--output", "SOURCE", "/mnt")
	self, err := os.Executable()
	require.NoError(t, err)
	content, err := os.ReadFile(self)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(w.packages, "probe"), content, 0o755))
	w.write("/etc/systemd/system/"+unit+".d/probe.conf", "[Service]\nEnvironment=DROVER_PROBE="+device+
		"\nExecStartPre=/packages/probe -test.run=^TestProbe$ -test.v\n")
	w.configure()
	w.run("systemctl", "daemon-reload")
	if out, err := w.try("systemctl", "start", unit); err != nil {
		t.Fatalf("%s\n%s", out, w.run("journalctl", "--no-pager", "-u", unit))
	}
	w.works()
	require.Contains(t, w.run("journalctl", "--no-pager", "-u", unit), "--- PASS: TestProbe")
	doctor, err := w.try("drover-agent", "doctor")
	require.Error(t, err, "it is not enrolled")
	require.Contains(t, doctor, "OK    configuration")
	require.False(t, strings.Contains(doctor, "panic"))
}
