// Package azurite starts Azurite, the emulator of Azure Storage, for tests: on a free
// port of loopback, in memory or on disk. `make setup-test` installs it.
//
// Azurite is not Azure. What it does otherwise, and what our code therefore checks by
// itself, stands in docs/azure.md.
package azurite

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"

	"drover/tests/ports"
)

// AccountName is the emulators' account.
const AccountName = "devstoreaccount1"

const (
	startLimit = time.Minute
	stopLimit  = 5 * time.Second
	pollEvery  = 50 * time.Millisecond
)

// ErrMissing says that Azurite is not installed.
var ErrMissing = errors.New("azurite is not installed: run `make setup-test` (it needs node and npm)")

// Server is a running emulator.
type Server struct {
	address string
	dir     string   // empty: in memory
	more    []string // arguments
	log     bytes.Buffer
	mu      sync.Mutex
	cmd     *exec.Cmd
	ended   chan struct{} // closed when cmd has ended
}

// script is the emulator's program in this repository's build directory.
func script() (string, error) {
	_, self, _, ok := runtime.Caller(0)
	if !ok {
		return "", errors.New("find azurite: no source path")
	}
	path := filepath.Join(filepath.Dir(self), "../../build/azurite/node_modules/azurite/dist/src/blob/main.js")
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return "", ErrMissing
	} else if err != nil {
		return "", err
	}
	if _, err := exec.LookPath("node"); err != nil {
		return "", ErrMissing
	}
	return path, nil
}

// Start starts an emulator. With a directory it keeps its data there and can be
// started again; without, it forgets everything.
func Start(ctx context.Context, dir string) (*Server, error) {
	address, err := ports.Free()
	if err != nil {
		return nil, err
	}
	s := &Server{address: address, dir: dir}
	return s, s.Run(ctx)
}

// Run starts the emulator again, at the same address, after Stop or Kill.
func (s *Server) Run(ctx context.Context) error {
	main, err := script()
	if err != nil {
		return err
	}
	host, port, err := net.SplitHostPort(s.address)
	if err != nil {
		return err
	}
	args := []string{main, "--blobHost", host, "--blobPort", port, "--silent", "--disableTelemetry", "--skipApiVersionCheck"}
	if s.dir == "" {
		args = append(args, "--inMemoryPersistence")
	} else {
		args = append(args, "--location", s.dir)
	}
	args = append(args, s.more...)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.log.Reset()
	s.cmd = exec.Command("node", args...)
	s.cmd.Stdout, s.cmd.Stderr = &s.log, &s.log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		return fmt.Errorf("start azurite: %w", err)
	}
	s.ended = make(chan struct{})
	go func() {
		_ = s.cmd.Wait() // how it ended does not matter
		close(s.ended)
	}()
	return s.await(ctx)
}

// await waits until it listens.
func (s *Server) await(ctx context.Context) error {
	deadline := time.After(startLimit)
	for {
		c, err := net.DialTimeout("tcp", s.address, time.Second)
		if err == nil {
			return c.Close()
		}
		select {
		case <-s.ended:
			return fmt.Errorf("azurite has ended: %s", s.log.String())
		case <-ctx.Done():
			return errors.Join(ctx.Err(), s.end(syscall.SIGKILL))
		case <-deadline:
			return errors.Join(fmt.Errorf("azurite does not listen after %s", startLimit), s.end(syscall.SIGKILL))
		case <-time.After(pollEvery):
		}
	}
}

// Endpoint is the URL of the account.
func (s *Server) Endpoint() string { return "http://" + s.address + "/" + AccountName }

// Stop ends it in order: what it acknowledged is on disk.
func (s *Server) Stop() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.end(syscall.SIGTERM)
}

func (s *Server) end(sig syscall.Signal) error {
	if err := s.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop azurite: %w", err)
	}
	select {
	case <-s.ended:
	case <-time.After(stopLimit):
		_ = s.cmd.Process.Kill()
		<-s.ended
	}
	return nil
}

// Key is the emulators' public one, for tests that sign with it.
const Key = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==" //nolint:gosec // printed in their manual
