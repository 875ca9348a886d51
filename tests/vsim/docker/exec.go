package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// execute runs a program in a container and gives its exit code.
func execute(args []string) (int, error) {
	flags := flag.NewFlagSet("exec", flag.ContinueOnError)
	flags.Bool("i", false, "with standard input, as always")
	dir := flags.String("w", "/", "working directory")
	// The simulator's archives round times up.
	env := []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "TAR_OPTIONS=--warning=no-timestamp"}
	flags.Func("e", "name=value", func(s string) error { env = append(env, s); return nil })
	if err := flags.Parse(args); err != nil {
		return 0, err
	}
	if flags.NArg() < 2 {
		return 0, fmt.Errorf("exec %q: want a container and a program", args)
	}
	if err := endWithParent(); err != nil {
		return 0, err
	}
	name := flags.Arg(0)
	text, err := ask("inspect", []string{name})
	if err != nil {
		return 0, err
	}
	var found []container
	if err := json.Unmarshal([]byte(text), &found); err != nil {
		return 0, err
	}
	if !found[0].State.Running {
		return 0, fmt.Errorf("exec: container %s is not running", name)
	}
	machine, err := unix.PidfdOpen(found[0].State.Pid, 0)
	if err != nil {
		return 0, fmt.Errorf("exec: find process 1 of %s: %w", name, err)
	}
	// A process that is started from here is among those of the machine; it enters its mounts itself.
	if err := unix.Setns(machine, unix.CLONE_NEWPID|unix.CLONE_NEWUTS|unix.CLONE_NEWIPC); err != nil {
		return 0, fmt.Errorf("exec: enter %s: %w", name, err)
	}
	cmd := exec.Command("/proc/self/exe", append([]string{verbEnter, *dir}, flags.Args()[1:]...)...) //nolint:gosec,noctx // what it is for; ends with this process
	cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.Env = os.Stdin, os.Stdout, os.Stderr, env
	cmd.ExtraFiles = []*os.File{os.NewFile(uintptr(machine), "machine")} //nolint:gosec // a descriptor
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		if code := exit.ExitCode(); code >= 0 {
			return code, nil
		}
		return 128 + int(exit.Sys().(syscall.WaitStatus).Signal()), nil //nolint:forcetypeassert // on Linux
	}
	return 0, err
}

// endWithParent lets this process be killed when the one that started it ends: the simulator
// ends a program by killing the shell from which it runs docker.
func endWithParent() error {
	parent, err := unix.PidfdOpen(os.Getppid(), 0)
	if err != nil {
		return fmt.Errorf("find the parent: %w", err)
	}
	go func() { // ends with this process
		for {
			_, err := unix.Poll([]unix.PollFd{{Fd: int32(parent), Events: unix.POLLIN}}, -1) //nolint:gosec // a descriptor
			if !errors.Is(err, unix.EINTR) {
				_ = unix.Kill(unix.Getpid(), unix.SIGKILL)
			}
		}
	}()
	return nil
}

// enter becomes a program with the machine's files; the machine is file descriptor 3. It
// dies with the process that waits for it.
func enter(dir string, args []string) error {
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return err
	}
	err := unix.Unshare(unix.CLONE_FS) // threads that share it cannot change their mounts
	if err == nil {
		err = unix.Setns(3, unix.CLONE_NEWNS)
	}
	if err == nil {
		unix.CloseOnExec(3)
		err = unix.Chdir(dir)
	}
	if err != nil {
		return fmt.Errorf("enter the machine in %s: %w", dir, err)
	}
	program, err := exec.LookPath(args[0])
	if err != nil {
		return err
	}
	return unix.Exec(program, args, os.Environ())
}
