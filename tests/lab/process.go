package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// stopLimit is how long a process may take to stop gracefully before it is killed.
const stopLimit = 20 * time.Second

// dumpLimit is how long it may then take to say what it is at.
const dumpLimit = 2 * time.Second

// Process is a program of the lab, with its log in a file.
type Process struct {
	Name string
	Log  string
	args []string
	env  []string

	mu   sync.Mutex
	cmd  *exec.Cmd
	done chan struct{} // closed when cmd has ended
	err  error         // how it ended
}

// process describes a program; Start runs it.
func (l *Lab) process(name, bin string, args ...string) *Process {
	return &Process{
		Name: name, Log: filepath.Join(l.Dir, "log", name+".log"),
		args: append([]string{l.bin(bin)}, args...),
	}
}

// Start runs the program; one that runs already is left alone.
func (p *Process) Start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.runningLocked() {
		return nil
	}
	log, err := os.OpenFile(p.Log, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("start %s: %w", p.Name, err)
	}
	cmd := exec.Command(p.args[0], p.args[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), p.env...)
	// A group of its own: a terminal's Ctrl-C must not reach it before us. If we die
	// it goes too.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	err = cmd.Start()
	if err = errors.Join(err, log.Close()); err != nil {
		return fmt.Errorf("start %s: %w", p.Name, err)
	}
	p.cmd, p.done, p.err = cmd, make(chan struct{}), nil
	go func(done chan struct{}) {
		err := cmd.Wait()
		p.mu.Lock()
		p.err = err
		p.mu.Unlock()
		close(done)
	}(p.done)
	return nil
}

// Running reports whether the program runs now.
func (p *Process) Running() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.runningLocked()
}

func (p *Process) runningLocked() bool {
	if p.cmd == nil {
		return false
	}
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Stop asks the program to stop, waits, and when it does not, has it write into its log
// what it is at, and kills it.
func (p *Process) Stop() error {
	done := p.signal(syscall.SIGTERM)
	if done == nil {
		return nil
	}
	select {
	case <-done:
	case <-time.After(stopLimit):
		p.signal(syscall.SIGQUIT)
		select {
		case <-done:
		case <-time.After(dumpLimit):
		}
		p.Kill()
		return fmt.Errorf("stop %s: it did not stop within %s and was killed; its log is %s", p.Name, stopLimit, p.Log)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		return fmt.Errorf("stop %s: %w; its log is %s", p.Name, p.err, p.Log)
	}
	return nil
}

// Kill ends the program with SIGKILL and waits for its end.
func (p *Process) Kill() {
	if done := p.signal(syscall.SIGKILL); done != nil {
		<-done
	}
}

func (p *Process) signal(s syscall.Signal) chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.runningLocked() {
		return nil
	}
	_ = p.cmd.Process.Signal(s)
	return p.done
}

// Ended reports whether the program has ended, and how.
func (p *Process) Ended() (bool, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil || p.runningLocked() {
		return false, nil
	}
	return true, p.err
}
