package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime/debug"

	"github.com/spf13/cobra"
	"golang.org/x/sys/windows/svc"

	"drover/agent/config"
	"drover/agent/private"
)

// serviceName is the agent's name as a service of Windows.
const serviceName = "drover-agent"

// maxLog is how large a log file becomes, in bytes; there are two.
const maxLog = 16 << 20

// start carries out what the command line says; as a service when Windows has started
// it as one. A service has no stderr: its log is a file beside the configuration.
func start(ctx context.Context, root *cobra.Command) error {
	is, err := svc.IsWindowsService()
	if err != nil || !is {
		return errors.Join(err, root.ExecuteContext(ctx))
	}
	dir := filepath.Dir(config.DefaultFile())
	if err := private.MkdirAll(dir); err != nil {
		return err
	}
	log := &logFile{path: filepath.Join(dir, "agent.log"), most: maxLog}
	crash, err := os.OpenFile(filepath.Join(dir, "crash.log"), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err == nil {
		err = errors.Join(debug.SetCrashOutput(crash, debug.CrashOptions{}), crash.Close())
	}
	if err != nil {
		return err
	}
	root.SetErr(log)
	return errors.Join(svc.Run(serviceName, &service{ctx, root, log}), log.Close())
}

// service is the agent as Windows sees it.
type service struct {
	ctx  context.Context
	root *cobra.Command
	log  *logFile
}

// Execute runs until Windows says stop, or the agent ends. One that failed says so, so
// that Windows starts it again if it is told to (`sc failure`).
func (s *service) Execute(_ []string, requests <-chan svc.ChangeRequest, status chan<- svc.Status) (specific bool, code uint32) {
	const accepts = svc.AcceptStop | svc.AcceptShutdown
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- s.root.ExecuteContext(ctx) }()
	status <- svc.Status{State: svc.Running, Accepts: accepts}
	for {
		select {
		case err := <-done:
			if err == nil {
				return false, 0
			}
			_, _ = s.log.Write([]byte("drover-agent: " + err.Error() + "\n")) // there is nobody else to tell
			return true, 1
		case r := <-requests:
			switch r.Cmd {
			case svc.Interrogate:
				status <- r.CurrentStatus
			case svc.Stop, svc.Shutdown:
				status <- svc.Status{State: svc.StopPending}
				cancel()
			default: // not accepted, so not sent
			}
		}
	}
}
