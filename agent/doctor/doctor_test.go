package doctor

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"drover/agent/config"
	"drover/agent/controlapi"
	"drover/agent/disk"
)

// system is a machine's files, all well.
func system(t *testing.T) (root string, s disk.System) {
	t.Helper()
	root = t.TempDir()
	for name, content := range map[string]string{
		"sys/block/sda/dev": "8:0\n", "sys/block/sda/size": "2097152\n", "sys/block/sda/device/wwid": "naa.6000c29a11112222333344445555666a\n",
		"sys/block/sda/sda1/partition": "1\n", "sys/block/sda/sda1/dev": "8:1\n", "sys/block/sda/sda1/size": "2048\n",
		"sys/block/sda/sda2/partition": "2\n", "sys/block/sda/sda2/dev": "8:2\n", "sys/block/sda/sda2/size": "2048\n",
		"sys/kernel/btf/vmlinux": "", "sys/kernel/tracing/events/x": "", "sys/kernel/security/lockdown": "[none] integrity confidentiality\n",
		"proc/self/mountinfo": "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n23 22 8:2 / /boot/efi rw - vfat /dev/sda2 rw\n24 22 0:9 / /sys/fs/bpf rw - bpf bpf rw\n",
		"proc/self/status":    "Name:\tx\nCapEff:\t000001ffffffffff\n", "proc/sys/kernel/osrelease": "6.1.0-44-amd64\n",
		"proc/meminfo": "MemTotal:        8000000 kB\nMemAvailable:    100 kB\n",
	} {
		path := filepath.Join(root, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
		require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
	}
	return root, disk.System{Sys: root + "/sys", Proc: root + "/proc/self", Root: root + "/proc", Udev: root + "/udev"}
}

// examine gives the findings by check.
func examine(t *testing.T, o Options) map[string][]controlapi.Finding {
	t.Helper()
	out := map[string][]controlapi.Finding{}
	for _, f := range Examine(t.Context(), o) {
		require.Contains(t, []string{"ok", "warn", "fail"}, f.Level)
		require.NotEmpty(t, f.What, f.Check)
		out[f.Check] = append(out[f.Check], f)
	}
	return out
}

func options(t *testing.T) Options {
	t.Helper()
	root, sys := system(t)
	file := filepath.Join(t.TempDir(), "agent.yaml")
	require.NoError(t, os.WriteFile(file, []byte("configServer: https://127.0.0.1:1\nstate: state\ninstance: i-1\nsocket: s\n"), 0o600))
	c, err := config.Load(file)
	require.NoError(t, err)
	require.NoError(t, os.MkdirAll(c.State, 0o700))
	return Options{File: file, Config: c, Root: root, System: sys}
}

func TestAConfigurationThatCannotBeRead(t *testing.T) {
	_, err := config.Load("/none/agent.yaml")
	all := Examine(t.Context(), Options{Err: err})
	require.Len(t, all, 1)
	require.True(t, Failed(all))
	require.Contains(t, all[0].What, "/none/agent.yaml")
}

func TestAMachineThatIsNotEnrolled(t *testing.T) {
	o := options(t)
	got := examine(t, o)
	require.Equal(t, "ok", got["configuration"][0].Level)
	require.Equal(t, "fail", got["identity"][0].Level)
	require.Contains(t, got["identity"][0].Advice, "issue a token")
	require.Equal(t, "ok", got["state"][0].Level)
	require.Equal(t, "warn", got["agent"][0].Level)
	require.Equal(t, "fail", got["configuration-server"][0].Level)
	require.Contains(t, got["configuration-server"][0].What, "is not reached")
	require.Contains(t, got["process-server"][0].What, "not known")
	require.Contains(t, got["disks"][0].What, "/dev/sda, 1.0 GiB: not protected")
	require.Equal(t, "/boot/efi (vfat) cannot be frozen", got["file-systems"][0].What)
	require.Equal(t, "can be frozen: /", got["file-systems"][1].What)
	require.Equal(t, "ok", got["tracker"][0].Level, got["tracker"][0].What)
	require.Equal(t, "ok", got["memory"][0].Level)
	require.Equal(t, "warn", got["target-hyper-v-drivers"][0].Level, "what the target lacks never fails")
	require.NoError(t, os.WriteFile(o.Config.TokenFile, []byte("x"), 0o600))
	require.Equal(t, "warn", examine(t, o)["identity"][0].Level)
}

func TestWhatTrackingLacks(t *testing.T) {
	for what, spoil := range map[string]func(o *Options){
		"Linux 5.12 or later (this is 4.18.0-553.el8)": func(o *Options) { write(t, o, "proc/sys/kernel/osrelease", "4.18.0-553.el8\n") },
		"CONFIG_DEBUG_INFO_BTF":                        func(o *Options) { require.NoError(t, os.Remove(o.Root+"/sys/kernel/btf/vmlinux")) },
		"tracefs":                                      func(o *Options) { require.NoError(t, os.RemoveAll(o.Root+"/sys/kernel/tracing")) },
		"bpffs":                                        func(o *Options) { write(t, o, "proc/self/mountinfo", "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n") },
		"CAP_BPF":                                      func(o *Options) { write(t, o, "proc/self/status", "CapEff:\t0000008000000000\n") },
		"locked down":                                  func(o *Options) { write(t, o, "sys/kernel/security/lockdown", "none integrity [confidentiality]\n") },
	} {
		o := options(t)
		spoil(&o)
		f := examine(t, o)["tracker"][0]
		require.Equal(t, "warn", f.Level, what)
		require.Contains(t, f.What, what)
	}
}

func write(t *testing.T, o *Options, name, content string) {
	t.Helper()
	require.NoError(t, os.WriteFile(filepath.Join(o.Root, name), []byte(content), 0o600))
}

func TestWhatOthersMayChange(t *testing.T) {
	o := options(t)
	require.NoError(t, os.Chmod(o.File, 0o666))
	require.NoError(t, os.Chmod(o.Config.State, 0o755))
	dir := t.TempDir()
	require.NoError(t, os.Chmod(dir, 0o755))
	program := filepath.Join(dir, "freeze")
	require.NoError(t, os.WriteFile(program, nil, 0o755))
	o.Config.Quiesce.Pre, o.Config.Quiesce.Post = []string{program}, []string{program}
	got := examine(t, o)
	require.Contains(t, got["configuration"][0].Advice, "chmod go-w")
	require.Contains(t, got["state"][0].Advice, "chmod 700")
	if os.Geteuid() == 0 {
		require.Equal(t, "ok", got["programs"][0].Level, got["programs"][0].What)
	}
	scripts := filepath.Join(dir, "scripts")
	require.NoError(t, os.Mkdir(scripts, 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(scripts, "10-db"), nil, 0o755))
	o.Config.Scripts.Directory = scripts
	if os.Geteuid() == 0 {
		require.Contains(t, examine(t, o)["programs"][0].What, "1 scripts in "+scripts)
	}
	require.NoError(t, os.Chmod(filepath.Join(scripts, "10-db"), 0o777))
	require.Contains(t, examine(t, o)["programs"][0].What, "10-db")
	require.NoError(t, os.Chmod(dir, 0o777))
	require.Contains(t, examine(t, o)["programs"][0].What, "can be changed by others: "+dir)
	require.NoError(t, os.Chmod(program, 0o600))
	require.Contains(t, examine(t, o)["programs"][0].What, "cannot be executed")
	require.NoError(t, os.Remove(program))
	require.Equal(t, "fail", examine(t, o)["programs"][0].Level)
}

func TestLittleMemoryAndNoDisks(t *testing.T) {
	o := options(t)
	write(t, &o, "proc/meminfo", "MemTotal: 200000 kB\n")
	require.NoError(t, os.RemoveAll(o.Root+"/sys/block/sda"))
	got := examine(t, o)
	require.Contains(t, got["memory"][0].What, "64 MiB of 195 MiB")
	require.Equal(t, "no disk says who it is", got["disks"][0].What)
	write(t, &o, "proc/meminfo", "")
	require.Equal(t, "warn", examine(t, o)["memory"][0].Level)
	o.System.Sys = filepath.Join(o.Root, "none")
	require.Equal(t, "fail", examine(t, o)["disks"][0].Level)
}

func TestVersion(t *testing.T) {
	for text, want := range map[string][2]int{"6.1.0-44-amd64": {6, 1}, "5.12-rc1": {5, 12}, "x": {}, "": {}} {
		major, minor := version(text)
		require.Equal(t, want, [2]int{major, minor}, text)
	}
	require.False(t, strings.Contains(size(1<<40), "MiB"))
}
