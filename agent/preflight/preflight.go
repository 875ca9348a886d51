// Package preflight looks at an installed system, before anything happens to it, for what
// would keep it from booting in the target cloud (Azure): each finding comes with advice,
// and none of them blocks anything. It reads files below a root directory only.
package preflight

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"drover/agent/controlapi"
)

// Bounds of what is read.
const (
	maxFile    = 1 << 20 // bytes of a configuration file
	maxEntries = 512     // of a directory
)

// system is an installed system below a root directory. Nothing outside is read,
// wherever links lead.
type system struct{ root *os.Root }

// Check looks at the system below root, of which the kernel runs; an empty kernel is the
// newest that is installed.
func Check(root, kernel string) ([]controlapi.Finding, error) {
	r, err := os.OpenRoot(root)
	if err != nil {
		return nil, fmt.Errorf("look at the installed system: %w", err)
	}
	s := system{r}
	if kernel == "" {
		kernel = s.newestKernel()
	}
	var out []controlapi.Finding
	for _, check := range []func() controlapi.Finding{
		func() controlapi.Finding { return s.drivers(kernel) },
		s.fstab, s.bootRoot, s.console, s.network, s.names, s.cloudAgent,
	} {
		out = append(out, check())
	}
	return out, r.Close()
}

func ok(check, what string, args ...any) controlapi.Finding {
	return controlapi.Finding{Check: check, Level: controlapi.LevelOK, What: fmt.Sprintf(what, args...)}
}

func warn(check, advice, what string, args ...any) controlapi.Finding {
	return controlapi.Finding{Check: check, Level: controlapi.LevelWarn, Advice: advice, What: fmt.Sprintf(what, args...)}
}

func bad(check, advice, what string, args ...any) controlapi.Finding {
	return controlapi.Finding{Check: check, Level: controlapi.LevelFail, Advice: advice, What: fmt.Sprintf(what, args...)}
}

// text reads a file; a missing one is empty.
func (s system) text(name string) string {
	f, err := s.root.Open(name)
	if err != nil {
		return ""
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFile))
	if errors.Join(err, f.Close()) != nil {
		return ""
	}
	return string(b)
}

// lines gives a file's lines without comments and blank ones.
func (s system) lines(name string) []string {
	var out []string
	for line := range strings.Lines(s.text(name)) {
		line, _, _ = strings.Cut(line, "#")
		if line = strings.TrimSpace(line); line != "" {
			out = append(out, line)
		}
	}
	return out
}

// list gives the paths in a directory, sorted; none when it is not there.
func (s system) list(dir string) []string {
	d, err := s.root.Open(dir)
	if err != nil {
		return nil
	}
	names, err := d.Readdirnames(maxEntries)
	_ = d.Close() // only read
	if err != nil && !errors.Is(err, io.EOF) {
		return nil
	}
	slices.Sort(names)
	for i := range names {
		names[i] = path.Join(dir, names[i])
	}
	return names
}

func (s system) has(name string) bool {
	_, err := s.root.Lstat(name)
	return err == nil
}

func (s system) size(name string) (fs.FileInfo, bool) {
	info, err := s.root.Stat(name)
	return info, err == nil
}

// newestKernel is the last of the kernels that have modules.
func (s system) newestKernel() string {
	for _, dir := range []string{"lib/modules", "usr/lib/modules"} {
		if all := s.list(dir); len(all) > 0 {
			return path.Base(all[len(all)-1])
		}
	}
	return ""
}

// fstab looks for names of devices that are others in the target.
func (s system) fstab() controlapi.Finding {
	const check = "fstab"
	if !s.has("etc/fstab") {
		return warn(check, "look at how this system mounts its file systems", "there is no /etc/fstab")
	}
	var named []string
	for _, line := range s.lines("etc/fstab") {
		if f := strings.Fields(line); len(f) >= 2 && unstable(f[0]) && !strings.Contains(line, "nofail") {
			named = append(named, f[0]+" on "+f[1])
		}
	}
	if len(named) > 0 {
		return bad(check, "replace the device by UUID=, as `blkid` prints it: disks may have other names in the target, and a mount that fails stops the boot",
			"by the name of a device: %s", strings.Join(named, ", "))
	}
	return ok(check, "file systems are named by UUID, label or volume")
}

// unstable reports whether a device's name depends on the order in which disks are found.
func unstable(device string) bool {
	rest, isDev := strings.CutPrefix(device, "/dev/")
	for _, prefix := range []string{"sd", "hd", "vd", "xvd", "nvme"} {
		if isDev && strings.HasPrefix(rest, prefix) {
			return true
		}
	}
	return strings.HasPrefix(device, "/dev/disk/by-path/") || strings.HasPrefix(device, "/dev/disk/by-id/")
}

// commandLines are the kernel's command lines: the running one, and what the boot
// loaders have.
func (s system) commandLines() []string {
	out := []string{s.text("proc/cmdline"), s.text("etc/kernel/cmdline")}
	for _, dir := range []string{"boot/loader/entries", "boot/efi/loader/entries"} {
		for _, entry := range s.list(dir) {
			out = append(out, s.text(entry))
		}
	}
	for _, name := range []string{"boot/grub/grub.cfg", "boot/grub2/grub.cfg", "etc/default/grub", "boot/grub2/grubenv"} {
		out = append(out, s.text(name))
	}
	for _, name := range s.list("etc/default/grub.d") {
		out = append(out, s.text(name))
	}
	return out
}

func (s system) bootRoot() controlapi.Finding {
	const check = "boot-root"
	for _, text := range s.commandLines() {
		for word := range strings.FieldsSeq(text) {
			word = strings.Trim(word, `"'`)
			if device, found := strings.CutPrefix(word, "root="); found && unstable(device) {
				return bad(check, "let the boot loader name it by UUID: set GRUB_DISABLE_LINUX_UUID=false and run update-grub or grub2-mkconfig",
					"the kernel is told root=%s, the name of a device", device)
			}
		}
	}
	return ok(check, "the root file system is not named by a device")
}

func (s system) console() controlapi.Finding {
	const check = "serial-console"
	for _, text := range s.commandLines() {
		if strings.Contains(text, "console=ttyS") {
			return ok(check, "the kernel writes to a serial console")
		}
	}
	return warn(check, "add console=tty1 console=ttyS0,115200 to GRUB_CMDLINE_LINUX and run update-grub or grub2-mkconfig",
		"the kernel does not write to a serial console: in the target it is the only one, and without it a boot that fails cannot be seen")
}
