package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const socket = "socket" // of a container's directory

// answer is a keeper's.
type answer struct{ Text, Error string }

// keeper holds a container. It is in a mount namespace of its own.
type keeper struct {
	dir, name, image string
	init             *exec.Cmd // nil: stopped
}

// keep makes a container's files, and answers for it until it is removed, or its owner ends.
func keep(dir, name, image string) error {
	k := &keeper{dir: dir, name: name, image: image}
	l, err := net.Listen("unix", filepath.Join(dir, socket)) //nolint:noctx // on this system
	if err != nil {
		return err
	}
	if err := makeRoot(dir, image); err != nil {
		return errors.Join(err, k.remove(false))
	}
	if err := sayReady(); err != nil {
		return errors.Join(err, k.remove(false))
	}
	gone := make(chan struct{})
	go func() { // ends with the process
		if ownerEnds(filepath.Dir(dir)) == nil {
			close(gone)
			_ = l.Close()
		}
	}()
	for k.serve(l) {
	}
	select {
	case <-gone:
		return k.remove(true)
	default:
		return nil
	}
}

// ownerEnds waits until nobody has the lock any more.
func ownerEnds(home string) error {
	f, err := os.Open(filepath.Join(home, "owner")) //nolint:gosec // ours
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	for {
		if err = unix.Flock(int(f.Fd()), unix.LOCK_SH); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// serve answers one question, and says whether there may be more.
func (k *keeper) serve(l net.Listener) (more bool) {
	conn, err := l.Accept()
	if err != nil {
		return false
	}
	defer func() { _ = conn.Close() }()
	verb, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return true
	}
	var a answer
	switch verb = strings.TrimSpace(verb); verb {
	case "start":
		err = k.start()
	case "stop":
		k.stop()
	case "inspect":
		a.Text, err = k.inspect()
	case "rm":
		_ = l.Close()
		err = k.remove(false)
	}
	if err != nil {
		a.Error = err.Error()
	}
	_ = json.NewEncoder(conn).Encode(a)
	return verb != "rm"
}

// start starts the container's process 1.
func (k *keeper) start() error {
	if k.init != nil {
		return nil
	}
	cmd := exec.Command("/proc/self/exe", verbInit, k.root(), k.name, k.image) //nolint:noctx // ended by stop
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC, Pdeathsig: syscall.SIGKILL,
	}
	if err := startReady(cmd); err != nil {
		return err
	}
	k.init = cmd
	return nil
}

// stop ends it, and with it all that runs there. The files stay.
func (k *keeper) stop() {
	if k.init != nil {
		_ = k.init.Process.Kill()
		_ = k.init.Wait()
		k.init = nil
	}
}

func (k *keeper) root() string { return filepath.Join(k.dir, "root") }

// remove ends all and removes the container; with all, the directory it is in, too. Nothing
// is removed with what is below it as long as anything is mounted there.
func (k *keeper) remove(all bool) error {
	k.stop()
	for _, d := range []string{k.root(), filepath.Join(k.dir, "layers")} {
		if err := unix.Unmount(d, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("unmount %s: %w", d, err)
		}
	}
	home := filepath.Dir(k.dir)
	if all {
		return os.RemoveAll(home)
	}
	return errors.Join(os.RemoveAll(k.dir), os.Remove(filepath.Join(home, k.name)))
}

// inspect says what an engine would, as far as anybody asks.
func (k *keeper) inspect() (string, error) {
	var c container
	c.Name, c.Config.Hostname = "/"+k.name, k.name
	c.NetworkSettings.IPAddress, c.NetworkSettings.MacAddress = "127.0.0.1", "02:42:7f:00:00:01"
	if k.init != nil {
		c.State.Running, c.State.Pid = true, k.init.Process.Pid
	}
	b, err := json.Marshal([]container{c})
	return string(b), err
}

type container struct {
	Name   string
	Config struct{ Hostname string }
	State  struct {
		Running bool
		Pid     int // of process 1, on this system
	}
	NetworkSettings struct{ IPAddress, MacAddress string }
}
