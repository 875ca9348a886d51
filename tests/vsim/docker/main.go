// Command docker stands for a container engine, as far as govmomi's simulator asks one for
// the guest of a VM that has RUN.container: no engine is needed, only root.
//
// A container is a machine of its own on this one's kernel and network: a copy of this
// system's files whose changes stay in memory (an overlay over /, or without overlays a small
// root), its own processes, mounts and host name, a /dev without disks. It has two processes beside those that are
// run in it: the keeper holds its mounts and answers for it on a socket, and init is its
// process 1. Everything it is made of ends with the keeper.
//
// All of it is in the directory that this program is run from, one directory for each
// container. Whoever runs it holds a lock on the file "owner" there (flock); when the lock
// is gone, because its process ended or was killed, the keepers end and remove the directory.
//
// There are two images, systemd and plain: with and without a double of systemd, see
// systemctl. INSTANCE in the environment is what the machine's firmware says of its uuid.
//
//	main.go    the verbs
//	keeper.go  a container's life
//	machine.go what is in one
//	exec.go    a program in one
package main

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
)

// The main goroutine stays on the main thread: namespaces are a thread's, and what is
// started dies with the thread that started it.
func init() { runtime.LockOSThread() }

func main() {
	code, err := run(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "Error:", err)
		code = 1
	}
	os.Exit(code)
}

func run(args []string) (code int, err error) {
	if len(args) == 0 {
		return 0, errors.New("want a verb")
	}
	verb, args := args[0], args[1:]
	switch verb {
	case "create":
		return 0, create(args)
	case "start", "stop", "inspect", "rm":
		var answer string
		if answer, err = ask(verb, args); err == nil {
			fmt.Println(answer)
		}
		return 0, err
	case "exec":
		return execute(args)
	case "events": // none; until whoever asks goes away
		_, err = io.Copy(io.Discard, os.Stdin)
		return 0, err
	case "volume", "network":
		if slices.Equal(args[:min(1, len(args))], []string{"ls"}) {
			return 0, nil // there are none
		}
	case verbKeep:
		return 0, keep(args[0], args[1], args[2])
	case verbInit:
		return 0, initProcess(args[0], args[1], args[2])
	case verbEnter:
		return 0, enter(args[0], args[1:])
	}
	return 0, fmt.Errorf("docker %s %s: not known here", verb, strings.Join(args, " "))
}

// Verbs by which this program runs itself.
const (
	verbKeep  = "-keep"
	verbInit  = "-init"
	verbEnter = "-enter"
)

const ready = "ready"

// home is the directory with the containers.
func home() (string, error) {
	self, err := os.Executable()
	return filepath.Dir(self), err
}

// create makes a container and prints its id.
func create(args []string) error {
	flags := flag.NewFlagSet("create", flag.ContinueOnError)
	name := flags.String("name", "", "of the container")
	var env []string
	flags.Func("env", "name=value", func(s string) error { env = append(env, s); return nil })
	if err := flags.Parse(args); err != nil {
		return err
	}
	image := flags.Arg(0)
	if flags.NArg() != 1 || (image != imageSystemd && image != imagePlain) || filepath.Base(*name) != *name {
		return fmt.Errorf("create %q: want --name, and the image %s or %s", args, imageSystemd, imagePlain)
	}
	at, err := home()
	if err != nil {
		return err
	}
	random := make([]byte, 6)
	_, _ = rand.Read(random)
	id := hex.EncodeToString(random)
	dir := filepath.Join(at, id)
	if err := errors.Join(os.Mkdir(dir, 0o700), os.Symlink(id, filepath.Join(at, *name))); err != nil {
		return err
	}
	cmd := exec.Command("/proc/self/exe", verbKeep, dir, *name, image) //nolint:noctx // outlives this process
	cmd.Env = env
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Setsid: true}
	if err := startReady(cmd); err != nil {
		return fmt.Errorf("create %s: %w", *name, err)
	}
	fmt.Println(id)
	return nil
}

// startReady starts a process and waits until it says that it is ready.
func startReady(cmd *exec.Cmd) error {
	out, in, err := os.Pipe()
	if err != nil {
		return err
	}
	defer func() { _ = out.Close() }()
	cmd.Stdout, cmd.Stderr = in, in
	err = cmd.Start()
	_ = in.Close()
	if err != nil {
		return err
	}
	if said, err := io.ReadAll(out); err != nil || string(said) != ready {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return errors.Join(fmt.Errorf("it says: %s", said), err)
	}
	return nil
}

// sayReady is the other end of startReady. What it prints from now on goes nowhere.
func sayReady() error {
	if _, err := os.Stdout.WriteString(ready); err != nil {
		return err
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { _ = null.Close() }()
	return errors.Join(syscall.Dup3(int(null.Fd()), 1, 0), syscall.Dup3(int(null.Fd()), 2, 0))
}

// ask has a container's keeper do something. Its name is the last word, as flags come first.
func ask(verb string, args []string) (string, error) {
	if len(args) == 0 {
		return "", fmt.Errorf("%s: want a container", verb)
	}
	name := args[len(args)-1]
	at, err := home()
	if err != nil {
		return "", err
	}
	conn, err := net.Dial("unix", filepath.Join(at, filepath.Base(name), socket)) //nolint:noctx // on this system
	if err != nil {
		return "", fmt.Errorf("No such object: %s", name) //nolint:staticcheck // the simulator looks for these words
	}
	defer func() { _ = conn.Close() }()
	if _, err := fmt.Fprintln(conn, verb); err != nil {
		return "", err
	}
	var a answer
	if err := json.NewDecoder(conn).Decode(&a); err != nil {
		return "", fmt.Errorf("%s %s: its keeper ended: %w", verb, name, err)
	}
	if a.Error != "" {
		return "", fmt.Errorf("%s %s: %s", verb, name, a.Error)
	}
	return a.Text, nil
}
