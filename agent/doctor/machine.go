package doctor

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"drover/agent/controlapi"
	"drover/agent/disk"
	"drover/agent/quiesce"
	"drover/agent/run"
)

// Bounds and thresholds.
const (
	probe       = disk.Align // bytes read of each protected disk
	memoryShare = 4          // the agent should need less than this part of the machine's memory
	capAdmin    = 21         // CAP_SYS_ADMIN: freezing, and tracking before Linux 5.8
	capPerfmon  = 38
	capBPF      = 39
	ebpfMajor   = 5 // Linux 5.12 has what tracking needs
	ebpfMinor   = 12
)

// freezable are the file systems that the kernel can freeze.
var freezable = []string{"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "jfs", "gfs2", "nilfs2", "ocfs2", "reiserfs", "bcachefs"}

func (p *patient) diskList() []controlapi.Finding {
	const check = "disks"
	w := disk.Watch{Finder: disk.Finder{Paths: p.Config.Disks, System: p.System}}
	all, err := w.Look(p.Now(), p.assignment)
	if err != nil {
		return []controlapi.Finding{fail(check, "run this as root on the machine itself", "%v", err)}
	}
	p.disks = all
	var out []controlapi.Finding
	named := 0
	for _, d := range all {
		what := fmt.Sprintf("%s, %s", first(d.Path, d.BackingUUID), size(d.Size))
		if len(d.Paths) > 0 {
			what += ", by " + strings.Join(d.Paths, " and ")
		}
		switch {
		case !d.Gone.IsZero():
			out = append(out, fail(check, "see that the hypervisor has it attached", "%s: %s", what, d.Why))
			continue
		case d.BackingUUID != "":
			named++
		}
		switch err := readable(d); {
		case d.Protected && err != nil:
			out = append(out, fail(check, "run this as root; see whether the disk is well: `dmesg`", "%s: protected, but cannot be read: %v", what, err))
		case d.Protected && d.Why != "":
			out = append(out, warn(check, "", "%s: protected, but %s", what, d.Why))
		case d.Protected:
			out = append(out, ok(check, "%s: protected, and can be read", what))
		default:
			out = append(out, ok(check, "%s: not protected: %s", what, d.Why))
		}
	}
	if named == 0 {
		out = append(out, fail(check, "set disk.EnableUUID = TRUE on the VM, or name its disks under `disks` in the configuration", "no disk says who it is"))
	}
	return out
}

// readable reads the beginning of a protected disk.
func readable(d controlapi.InventoryDisk) error {
	if !d.Protected {
		return nil
	}
	f, err := disk.Open(d.Path)
	if err != nil {
		return err
	}
	if f.Size() >= probe {
		_, err = f.ReadAt(disk.Buffer(probe), 0)
	}
	return errors.Join(err, f.Close())
}

func size(n int64) string {
	if n < 1<<30 {
		return fmt.Sprintf("%d MiB", n>>20)
	}
	return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
}

// fileSystems says which mounted file systems can be frozen.
func (p *patient) fileSystems() []controlapi.Finding {
	const check = "file-systems"
	var can []string
	var out []controlapi.Finding
	for _, d := range p.disks {
		for _, part := range d.Parts {
			if len(part.Mounts) == 0 || !d.Gone.IsZero() {
				continue
			}
			if slices.Contains(freezable, part.FileSystem) {
				can = append(can, part.Mounts[0])
				continue
			}
			out = append(out, warn(check, "keep nothing there that changes: what is written during a cut may be torn",
				"%s (%s) cannot be frozen", part.Mounts[0], part.FileSystem))
		}
	}
	if len(can) == 0 {
		return append(out, warn(check, "recovery points are crash-consistent", "no mounted file system that can be frozen was found on the disks"))
	}
	return append(out, ok(check, "can be frozen: %s", strings.Join(can, ", ")))
}

// tracker says whether changes can be tracked in the kernel.
func (p *patient) tracker() controlapi.Finding {
	const check = "tracker"
	var missing []string
	major, minor := version(p.kernel())
	if major < ebpfMajor || major == ebpfMajor && minor < ebpfMinor {
		missing = append(missing, fmt.Sprintf("Linux %d.%d or later (this is %s)", ebpfMajor, ebpfMinor, p.kernel()))
	}
	for path, what := range map[string]string{"/sys/kernel/btf/vmlinux": "the kernel's type information (CONFIG_DEBUG_INFO_BTF)"} {
		if _, err := os.Stat(p.root(path)); err != nil {
			missing = append(missing, what)
		}
	}
	if !p.exists("/sys/kernel/tracing/events") && !p.exists("/sys/kernel/debug/tracing/events") {
		missing = append(missing, "tracefs (mount -t tracefs tracefs /sys/kernel/tracing)")
	}
	if !p.mounted("/sys/fs/bpf", "bpf") {
		missing = append(missing, "bpffs (mount -t bpf bpf /sys/fs/bpf)")
	}
	if caps := p.capabilities(); caps&(1<<capAdmin) == 0 && caps&(1<<capBPF|1<<capPerfmon) != 1<<capBPF|1<<capPerfmon {
		missing = append(missing, "the privileges (CAP_BPF and CAP_PERFMON, or root)")
	}
	if strings.Contains(p.text("/sys/kernel/security/lockdown"), "[confidentiality]") {
		missing = append(missing, "a kernel that is not locked down for confidentiality")
	}
	if len(missing) > 0 {
		return warn(check, "without it the disks are read for every recovery point, which is slower and loads them", "tracking in the kernel lacks %s", strings.Join(missing, "; "))
	}
	return ok(check, "the kernel (%s) has what tracking needs", p.kernel())
}

func (p *patient) exists(path string) bool {
	_, err := os.Stat(p.root(path))
	return err == nil
}

func (p *patient) text(path string) string {
	b, err := os.ReadFile(p.root(path))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func (p *patient) mounted(point, kind string) bool {
	for line := range strings.Lines(p.text("/proc/self/mountinfo")) {
		f := strings.Fields(line)
		if i := slices.Index(f, "-"); i > 4 && len(f) > i+1 && f[4] == point && f[i+1] == kind {
			return true
		}
	}
	return false
}

// capabilities are those that this process has now.
func (p *patient) capabilities() uint64 {
	for line := range strings.Lines(p.text("/proc/self/status")) {
		if text, found := strings.CutPrefix(line, "CapEff:"); found {
			n, err := strconv.ParseUint(strings.TrimSpace(text), 16, 64)
			if err == nil {
				return n
			}
		}
	}
	return 0
}

// version reads the beginning of a kernel's release.
func version(release string) (major, minor int) {
	f := strings.FieldsFunc(release, func(r rune) bool { return r < '0' || r > '9' })
	if len(f) >= 2 {
		major, _ = strconv.Atoi(f[0])
		minor, _ = strconv.Atoi(f[1])
	}
	return major, minor
}

// memory holds what the agent may need against what the machine has.
func (p *patient) memory() controlapi.Finding {
	const check = "memory"
	need := run.MemoryLimit(int64(p.Config.Limits.Memory), p.assignment.Disks)
	total := p.meminfo("MemTotal:")
	switch {
	case total == 0:
		return warn(check, "", "it is not known how much memory this machine has")
	case need > total/memoryShare:
		return warn(check, "give the machine more memory", "the agent may need %d MiB of %d MiB", need>>20, total>>20)
	}
	return ok(check, "the agent keeps to %d MiB of %d MiB", need>>20, total>>20)
}

func (p *patient) meminfo(key string) int64 {
	for line := range strings.Lines(p.text("/proc/meminfo")) {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == key {
			n, err := strconv.ParseInt(f[1], 10, 64)
			if err == nil {
				return n << 10
			}
		}
	}
	return 0
}

// programs looks at what runs as root around a cut.
func (p *patient) programs() []controlapi.Finding {
	const check = "programs"
	var out []controlapi.Finding
	for _, argv := range [][]string{p.Config.Quiesce.Pre, p.Config.Quiesce.Post} {
		if len(argv) > 0 {
			if err := safe(argv[0]); err != nil {
				out = append(out, fail(check, "let root own the program and the directories above it, and nobody else write to them", "%v", err))
			}
		}
	}
	scripts, err := quiesce.Scripts{Dir: p.Config.Scripts.Directory}.List()
	if err != nil {
		out = append(out, fail(check, "let root own the script and the directories above it, and nobody else write to them", "%v", err))
	}
	if len(out) == 0 {
		out = append(out, ok(check, "nobody but root can change what runs around a recovery point; %d scripts in %s", len(scripts), first(p.Config.Scripts.Directory, "no directory")))
	}
	return out
}
