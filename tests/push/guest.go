// Package push installs the agent over a real sshd in a guest of its own, and through a
// simulated vCenter that does guest operations in one: a mount namespace with a private copy
// of this system's files (overlayfs), in which sshd runs, or what stands for VMware Tools.
package push

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"drover/tests/vsim/tools"
)

// guestSpec is what the process that becomes the guest's sshd is told by its environment.
const (
	envDir      = "DROVER_TEST_GUEST"     // directory with sshd_config, keys, and the guest's root
	envInstance = "DROVER_TEST_INSTANCE"  // what its firmware says
	envTools    = "DROVER_TEST_TOOLS"     // it runs Tools, on file descriptor 3, in place of sshd
	envSystemd  = "DROVER_TEST_SYSTEMCTL" // a systemctl that notes what it is asked, in place of a running systemd
	sshd        = "/usr/sbin/sshd"
)

// systemctl notes what it is asked. systemd itself would have to be process 1.
const systemctl = "#!/bin/sh\necho \"$@\" >> /systemctl.log\n"

// becomeGuest makes this process, which is in a mount namespace of its own, the guest's sshd
// or Tools.
func becomeGuest(dir string) error {
	root := filepath.Join(dir, "root")
	layers := filepath.Join(dir, "layers")
	err := errors.Join(
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		os.MkdirAll(root, 0o755), os.MkdirAll(layers, 0o755),
		unix.Mount("guest", layers, "tmpfs", 0, "mode=755"),
		os.MkdirAll(layers+"/upper", 0o755), os.MkdirAll(layers+"/work", 0o755),
	)
	if err == nil {
		err = unix.Mount("guest", root, "overlay", 0, "lowerdir=/,upperdir="+layers+"/upper,workdir="+layers+"/work")
	}
	if err != nil {
		return fmt.Errorf("make the guest's root: %w", err)
	}
	for _, d := range []string{"dev", "proc"} {
		err = errors.Join(err, unix.Mount("/"+d, filepath.Join(root, d), "", unix.MS_BIND|unix.MS_REC, ""))
	}
	dmi := filepath.Join(root, "sys/class/dmi/id")
	for _, d := range []string{"run", "sys"} {
		err = errors.Join(err, unix.Mount("guest", filepath.Join(root, d), "tmpfs", 0, "mode=755"))
	}
	err = errors.Join(err, os.MkdirAll(filepath.Join(root, "run/sshd"), 0o755), os.MkdirAll(dmi, 0o755),
		os.WriteFile(filepath.Join(dmi, "product_uuid"), []byte(os.Getenv(envInstance)+"\n"), 0o400))
	if os.Getenv(envSystemd) != "" {
		err = errors.Join(err, os.MkdirAll(filepath.Join(root, "run/systemd/system"), 0o755), os.RemoveAll(filepath.Join(root, "usr/bin/systemctl")),
			os.WriteFile(filepath.Join(root, "usr/bin/systemctl"), []byte(systemctl), 0o755)) //nolint:gosec // a program
	}
	if err != nil {
		return fmt.Errorf("furnish the guest: %w", err)
	}
	if err := errors.Join(unix.Chroot(root), unix.Chdir("/")); err != nil {
		return fmt.Errorf("enter the guest: %w", err)
	}
	if os.Getenv(envTools) != "" {
		conn, err := net.FileConn(os.NewFile(3, "hypervisor"))
		if err != nil {
			return err
		}
		return tools.Serve(conn)
	}
	return unix.Exec(sshd, []string{sshd, "-D", "-e", "-f", filepath.Join(dir, "sshd_config")}, []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"})
}
