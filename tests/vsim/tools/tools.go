// Package tools runs in the guest of a simulated VM, in place of VMware Tools: it does there
// what guest operations ask for, with the guest's own files and programs.
package tools

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/rpc"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Service is called by the vCenter, over a connection that stands for the hypervisor.
type Service struct {
	mu      sync.Mutex
	running map[int]*Process
}

// Serve answers on a connection until it is closed.
func Serve(conn net.Conn) error {
	s := rpc.NewServer()
	if err := s.RegisterName("Tools", &Service{running: map[int]*Process{}}); err != nil {
		return err
	}
	s.ServeConn(conn)
	return nil
}

// missing marks an error of a file that is not there, which loses its type on the way.
const missing = "no such file: "

// Missing reports whether a call failed because a file is not there.
func Missing(err error) bool { return err != nil && strings.HasPrefix(err.Error(), missing) }

func told(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return errors.New(missing + err.Error())
	}
	return err
}

// Empty is an answer without content.
type Empty struct{}

// Info is what List tells.
type Info struct {
	Size      int64
	Mode      fs.FileMode
	Directory bool
}

// List looks at a file or directory.
func (*Service) List(file string, out *Info) error {
	info, err := os.Stat(file)
	if err != nil {
		return told(err)
	}
	*out = Info{Size: info.Size(), Mode: info.Mode().Perm(), Directory: info.IsDir()}
	return nil
}

// File is one that is written.
type File struct {
	Path    string
	Content []byte
	Mode    fs.FileMode
}

// Put writes a file; what is there is overwritten.
func (*Service) Put(f File, _ *Empty) error {
	if err := os.WriteFile(f.Path, f.Content, f.Mode); err != nil {
		return told(err)
	}
	return os.Chmod(f.Path, f.Mode)
}

// Get reads a file.
func (*Service) Get(file string, out *[]byte) (err error) {
	*out, err = os.ReadFile(file)
	return told(err)
}

// Mkdir makes a directory and those above it.
func (*Service) Mkdir(dir string, _ *Empty) error { return told(os.MkdirAll(dir, 0o755)) }

// Temp makes a new temporary directory.
func (*Service) Temp(prefix string, out *string) (err error) {
	*out, err = os.MkdirTemp("", prefix)
	return told(err)
}

// Chmod sets a mode.
func (*Service) Chmod(f File, _ *Empty) error { return told(os.Chmod(f.Path, f.Mode)) }

// Remove removes a file.
func (*Service) Remove(file string, _ *Empty) error { return told(os.Remove(file)) }

// RemoveAll removes a directory.
func (*Service) RemoveAll(dir string, _ *Empty) error {
	if _, err := os.Stat(dir); err != nil {
		return told(err)
	}
	return told(os.RemoveAll(dir))
}

// Pair is a move.
type Pair struct{ From, To string }

// Move moves a file.
func (*Service) Move(p Pair, _ *Empty) error { return told(os.Rename(p.From, p.To)) }

// Program is one to be started. Tools start it through the guest's shell.
type Program struct {
	Path, Arguments, Dir string
}

// Process is a program that was started.
type Process struct {
	Pid     int
	Name    string
	Started time.Time
	Ended   time.Time // zero: it runs
	Code    int
}

// Start starts a program.
func (s *Service) Start(p Program, pid *int) error {
	cmd := exec.Command("/bin/sh", "-c", fmt.Sprintf("%q %s", p.Path, p.Arguments)) //nolint:gosec,noctx // what it is for; ended by Kill
	cmd.Dir = p.Dir
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return told(err)
	}
	*pid = cmd.Process.Pid
	process := &Process{Pid: cmd.Process.Pid, Name: filepath.Base(p.Path), Started: time.Now()}
	s.mu.Lock()
	s.running[process.Pid] = process
	s.mu.Unlock()
	go func() { // ends with the program, at the latest with the guest
		_ = cmd.Wait()
		s.mu.Lock()
		defer s.mu.Unlock()
		process.Ended, process.Code = time.Now(), cmd.ProcessState.ExitCode()
	}()
	return nil
}

// Processes gives those of the pids that are known.
func (s *Service) Processes(pids []int, out *[]Process) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, pid := range pids {
		if p := s.running[pid]; p != nil {
			*out = append(*out, *p)
		}
	}
	return nil
}

// Kill ends a process with all it started.
func (s *Service) Kill(pid int, _ *Empty) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running[pid] == nil {
		return errors.New(missing + "process")
	}
	return syscall.Kill(-pid, syscall.SIGKILL)
}
