package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// Images.
const (
	imageSystemd = "systemd"
	imagePlain   = "plain"
)

// systemctl is a double of systemd, which would have to be process 1 of the machine: it
// starts a unit's ExecStart, ends it, says whether it runs, and notes what it was asked. It
// honours nothing else of a unit; that is not what is tested here.
const systemctl = `#!/bin/sh
echo "$@" >> /systemctl.log
pidfile=/run/$2.pid
runs() { kill -0 "$(cat "$pidfile" 2>/dev/null)" 2>/dev/null; }
stop() {
	runs && kill "$(cat "$pidfile")"
	while runs; do sleep 0.05; done
	rm -f "$pidfile"
}
start() {
	runs && return
	$(sed -n 's/^ExecStart=//p' "/etc/systemd/system/$2") </dev/null >>/run/journal 2>&1 &
	echo $! > "$pidfile"
}
case "$1" in
start) start "$@" ;;
restart) stop; start "$@" ;;
stop) stop ;;
disable) [ "$2" != --now ] || { pidfile=/run/$3.pid; stop; } ;;
is-active) runs && echo active || { echo inactive; exit 3; } ;;
esac
`

// makeRoot gives a machine its files. It is called in a mount namespace of its own, and all it
// mounts ends with that.
func makeRoot(dir, image string) error {
	root, layers := filepath.Join(dir, "root"), filepath.Join(dir, "layers")
	err := errors.Join(os.Mkdir(root, 0o755), os.Mkdir(layers, 0o700))
	if err == nil {
		err = overlay(root, layers)
	}
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENODEV) { // overlays are two deep already, or there are none
		err = small(root)
	}
	if err == nil && image == imageSystemd {
		err = replace(filepath.Join(root, "usr/bin/systemctl"), systemctl)
	}
	if err != nil {
		return fmt.Errorf("make the machine's files: %w", err)
	}
	return nil
}

// overlay makes a root of this system's files, below a layer in memory.
func overlay(root, layers string) error {
	if err := unix.Mount("machine", layers, "tmpfs", 0, "mode=755"); err != nil {
		return err
	}
	upper, work := filepath.Join(layers, "upper"), filepath.Join(layers, "work")
	if err := errors.Join(os.Mkdir(upper, 0o755), os.Mkdir(work, 0o755)); err != nil {
		return err
	}
	return unix.Mount("machine", root, "overlay", 0, "lowerdir=/,upperdir="+upper+",workdir="+work)
}

// small makes a root in memory: this system's programs, a copy of its /etc, and empty
// directories. What is below /usr is this system's own, read-only, but for bin and sbin: they
// are directories of links, beside which there can be files.
func small(root string) error {
	in := func(path string) string { return filepath.Join(root, path) }
	if err := unix.Mount("machine", root, "tmpfs", 0, "mode=755"); err != nil {
		return err
	}
	var err error
	for _, d := range []string{"dev", "proc", "run", "sys", "root", "tmp", "var/lib", "var/log", "var/tmp", "usr", ".usr"} {
		err = errors.Join(err, os.MkdirAll(in(d), 0o755))
	}
	err = errors.Join(err, os.Chmod(in("tmp"), 0o777|os.ModeSticky), unix.Mount("/usr", in(".usr"), "", unix.MS_BIND, ""))
	if err == nil {
		err = unix.Mount("", in(".usr"), "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")
	}
	if err != nil {
		return err
	}
	for _, d := range []string{"bin", "sbin", "lib", "lib64"} { // links to those in /usr
		to, no := os.Readlink("/" + d)
		if errors.Is(no, os.ErrNotExist) {
			continue
		}
		if err = errors.Join(err, no); no == nil {
			err = errors.Join(err, os.Symlink(to, in(d)))
		}
	}
	err = errors.Join(err, link("/usr", in("usr"), "/.usr", "bin", "sbin"))
	if out, no := exec.Command("cp", "-a", "/etc", in("etc")).CombinedOutput(); no != nil { //nolint:noctx // quick
		err = errors.Join(err, fmt.Errorf("copy /etc: %w: %s", no, out))
	}
	return err
}

// link fills a directory with links to what is in another one, by the name that this has for
// the machine. Those of the directories that are named are made anew, and filled like that.
func link(from, into, name string, anew ...string) error {
	entries, err := os.ReadDir(from)
	for _, e := range entries {
		to := filepath.Join(into, e.Name())
		if slices.Contains(anew, e.Name()) && e.IsDir() {
			err = errors.Join(err, os.Mkdir(to, 0o755), link(filepath.Join(from, e.Name()), to, filepath.Join(name, e.Name())))
		} else {
			err = errors.Join(err, os.Symlink(filepath.Join(name, e.Name()), to))
		}
	}
	return err
}

// replace puts a program in the place of another, or of none.
func replace(file, text string) error {
	if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return os.WriteFile(file, []byte(text), 0o755) //nolint:gosec // a program
}

// initProcess is the machine's process 1: it makes what is new at each boot, and takes leave
// of the processes that lost their parents.
func initProcess(root, name, image string) error {
	if err := boot(root, image); err != nil {
		return fmt.Errorf("boot %s: %w", name, err)
	}
	// What was the root before is mounted over the new one, and goes.
	err := unix.Chdir(root)
	if err == nil {
		err = unix.PivotRoot(".", ".")
	}
	if err == nil {
		err = unix.Unmount(".", unix.MNT_DETACH)
	}
	if err == nil {
		err = errors.Join(unix.Chdir("/"), unix.Sethostname([]byte(name[:min(len(name), 63)])))
	}
	if err != nil {
		return fmt.Errorf("enter %s: %w", name, err)
	}
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGCHLD)
	if err := sayReady(); err != nil {
		return err
	}
	for range ended {
		for {
			if pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); pid <= 0 && !errors.Is(err, unix.EINTR) {
				break
			}
		}
	}
	return nil
}

// devices of a machine, by their numbers: no disk is among them.
var devices = map[string]int{
	"null": int(unix.Mkdev(1, 3)), "zero": int(unix.Mkdev(1, 5)), "full": int(unix.Mkdev(1, 7)), //nolint:gosec // small numbers
	"random": int(unix.Mkdev(1, 8)), "urandom": int(unix.Mkdev(1, 9)), "tty": int(unix.Mkdev(5, 0)), //nolint:gosec // small numbers
}

func boot(root, image string) error {
	in := func(path string) string { return filepath.Join(root, path) }
	err := unix.Mount("proc", in("proc"), "proc", 0, "")
	for _, d := range []string{"dev", "run", "sys"} {
		err = errors.Join(err, unix.Mount("machine", in(d), "tmpfs", 0, "mode=755"))
	}
	if err != nil {
		return err
	}
	unix.Umask(0)
	for name, number := range devices {
		err = errors.Join(err, unix.Mknod(in("dev/"+name), unix.S_IFCHR|0o666, number))
	}
	unix.Umask(0o022)
	err = errors.Join(err, os.Symlink("/proc/self/fd", in("dev/fd")), os.MkdirAll(in("sys/class/dmi/id"), 0o755), os.Mkdir(in("run/sshd"), 0o755),
		os.WriteFile(in("sys/class/dmi/id/product_uuid"), []byte(os.Getenv("INSTANCE")+"\n"), 0o400))
	if image == imageSystemd {
		err = errors.Join(err, os.MkdirAll(in("run/systemd/system"), 0o755))
	}
	return err
}
