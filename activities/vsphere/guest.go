package vsphere

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"regexp"
	"strings"
	"time"

	"github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/guest"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"drover/workflows/api"
)

// Bounds of guest operations.
const (
	guestProgram   = 2 * time.Minute // of one program in the guest
	guestPollFirst = 100 * time.Millisecond
	guestPollMost  = 2 * time.Second
	guestLeave     = 30 * time.Second // to end a program, and to remove what we left
	maxPrinted     = 256 << 10        // bytes of what a program prints
)

// GuestUser is a log-in in a guest. From names the credentials file, for errors.
type GuestUser struct{ Name, Password, From string }

// Guest is a VM's guest, into which VMware Tools let us.
type Guest struct {
	s         *session
	vm        *object.VirtualMachine
	name      string
	auth      *types.NamePasswordAuthentication
	files     *guest.FileManager
	processes *guest.ProcessManager
	hosts     map[string]*http.Client // of file transfers, by address
	dir       string                  // ours, for what programs print
}

// InGuest calls f with the guest of a VM, logged in as the user, who must be able to write
// what f writes. If vCenter ends its session f is called again from the beginning.
func (a *Activities) InGuest(ctx context.Context, ref api.VMRef, as GuestUser, f func(*Guest) error) error {
	return a.onVM(ctx, ref, func(s *session, vm *object.VirtualMachine) error {
		g := &Guest{s: s, vm: vm, hosts: map[string]*http.Client{}, auth: &types.NamePasswordAuthentication{Username: as.Name, Password: as.Password}}
		if err := g.enter(ctx, as); err != nil {
			return err
		}
		err := f(g)
		if left := g.leave(ctx); left != nil {
			a.config.Logger.Warn("a directory stays in a guest", "vm", g.name, "directory", g.dir, "error", left)
		}
		return err
	})
}

// enter checks that the guest can be worked in, logs in, and makes our directory.
func (g *Guest) enter(ctx context.Context, as GuestUser) error {
	props, err := g.s.properties(ctx, g.vm, "name", "runtime.powerState", "guest.toolsRunningStatus", "guest.guestFamily")
	if err != nil {
		return err
	}
	g.name = props.Name
	tools, family := "", ""
	if props.Guest != nil {
		tools, family = props.Guest.ToolsRunningStatus, props.Guest.GuestFamily
	}
	switch {
	case props.Runtime.PowerState != types.VirtualMachinePowerStatePoweredOn:
		return failed(api.CodePush, nil, "VM %s is %s: VMware Tools work in a VM that is on; power it on, or wait", g.name, props.Runtime.PowerState)
	case tools != string(types.VirtualMachineToolsRunningStatusGuestToolsRunning):
		return failed(api.CodePush, nil, "VMware Tools do not run in VM %s (%s): install and start open-vm-tools in its guest, or push over SSH", g.name, tools)
	case family == string(types.VirtualMachineGuestOsFamilyWindowsGuest):
		return failed(api.CodeInvalid, nil, "VM %s has a Windows guest: there is no push to Windows", g.name)
	}
	if err := g.managers(ctx); err != nil {
		return err
	}
	if g.dir, err = g.files.CreateTemporaryDirectory(ctx, g.auth, "drover-", "", ""); err != nil {
		if fault.Is(err, &types.InvalidGuestLogin{}) {
			return failed(api.CodeInvalid, err, "log in to the guest of VM %s as the user of credentials %s: its name or password is wrong, or the guest does not let it in", g.name, as.From)
		}
		return g.failed(err, "make a temporary directory")
	}
	if !plain.MatchString(g.dir) || !strings.HasPrefix(g.dir, "/") {
		return failed(api.CodePush, nil, "VMware Tools of VM %s made a temporary directory with the name %.100q: want one of letters, digits and -_./", g.name, g.dir)
	}
	return g.chmod(ctx, g.dir, privateMode)
}

const privateMode = 0o700

// managers finds what does guest operations. An old vCenter or host may have none.
func (g *Guest) managers(ctx context.Context) error {
	var found mo.GuestOperationsManager
	ref := g.s.client.ServiceContent.GuestOperationsManager
	if ref != nil {
		if err := g.s.client.RetrieveOne(ctx, *ref, []string{"fileManager", "processManager"}, &found); err != nil {
			return failed(api.CodeVCenter, err, "ask vCenter %s for guest operations", g.s.name)
		}
	}
	if found.FileManager == nil || found.ProcessManager == nil {
		return failed(api.CodeVCenter, nil, "vCenter %s has no guest operations: push over SSH", g.s.name)
	}
	all := guest.NewOperationsManager(g.s.client.Client, g.vm.Reference())
	files, err := all.FileManager(ctx)
	if err == nil {
		g.files = files
		g.processes, err = all.ProcessManager(ctx)
	}
	if err != nil {
		return failed(api.CodeVCenter, err, "ask vCenter %s for guest operations", g.s.name)
	}
	return nil
}

// leave removes what is ours.
func (g *Guest) leave(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), guestLeave)
	defer cancel()
	for _, c := range g.hosts {
		c.CloseIdleConnections()
	}
	if err := g.files.DeleteDirectory(ctx, g.auth, g.dir, true); err != nil && !fault.Is(err, &types.FileNotFound{}) {
		return g.failed(err, "remove "+g.dir)
	}
	return nil
}

// failed makes the error of a guest operation.
func (g *Guest) failed(err error, what string) error {
	code, advice := api.CodePush, ""
	switch {
	case fault.Is(err, &types.FileNotFound{}):
		return fmt.Errorf("%s: %w", what, fs.ErrNotExist)
	case fault.Is(err, &types.InvalidGuestLogin{}):
		code, advice = api.CodeInvalid, ": the guest does not accept the user any more"
	case fault.Is(err, &types.GuestOperationsUnavailable{}), fault.Is(err, &types.ToolsUnavailable{}):
		advice = ": VMware Tools do not answer; is the guest booting, or do they not run"
	case fault.Is(err, &types.InvalidPowerState{}), fault.Is(err, &types.InvalidState{}):
		advice = ": the VM is not on any more"
	case fault.Is(err, &types.OperationDisabledByGuest{}), fault.Is(err, &types.OperationNotSupportedByGuest{}):
		advice = ": the configuration of VMware Tools in the guest (tools.conf) does not allow it; push over SSH"
	case fault.Is(err, &types.GuestPermissionDenied{}):
		code, advice = api.CodeInvalid, ": the guest does not let the user; it must be root"
	case away(err):
		code, advice = api.CodeVCenter, ": whether it was done is not known; run the command again, what was done is found and left as it is"
	default:
		code = api.CodeVCenter
	}
	return failed(code, err, "%s in the guest of VM %s%s", what, g.name, advice)
}

// Exists reports whether there is such a file or directory.
func (g *Guest) Exists(ctx context.Context, file string) (bool, error) {
	_, err := g.files.ListFiles(ctx, g.auth, file, 0, 1, "")
	if err == nil {
		return true, nil
	}
	if err = g.failed(err, "look for "+file); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return false, err
}

// Remove removes a file; fs.ErrNotExist if there is none.
func (g *Guest) Remove(ctx context.Context, file string) error {
	if err := g.files.DeleteFile(ctx, g.auth, file); err != nil {
		return g.failed(err, "remove "+file)
	}
	return nil
}

// RemoveAll removes a directory with all that is in it; fs.ErrNotExist if there is none.
func (g *Guest) RemoveAll(ctx context.Context, dir string) error {
	if err := g.files.DeleteDirectory(ctx, g.auth, dir, true); err != nil {
		return g.failed(err, "remove "+dir)
	}
	return nil
}

// Mkdir makes a directory, and those above it that are not there; its own mode is set.
func (g *Guest) Mkdir(ctx context.Context, dir string, mode fs.FileMode) error {
	if err := g.files.MakeDirectory(ctx, g.auth, dir, true); err != nil {
		return g.failed(err, "make "+dir)
	}
	return g.chmod(ctx, dir, mode)
}

func (g *Guest) chmod(ctx context.Context, file string, mode fs.FileMode) error {
	if err := g.files.ChangeFileAttributes(ctx, g.auth, file, &types.GuestPosixFileAttributes{Permissions: int64(mode.Perm())}); err != nil {
		return g.failed(err, "set the mode of "+file)
	}
	return nil
}

// Move moves a file to a place in the same file system, in one step; what was there goes.
func (g *Guest) Move(ctx context.Context, from, to string) error {
	if err := g.files.MoveFile(ctx, g.auth, from, to, true); err != nil {
		return g.failed(err, "move a file to "+to)
	}
	return nil
}

// plain is what commands may consist of: nothing that a shell reads as anything but words.
var plain = regexp.MustCompile(`^[A-Za-z0-9 %+:=,._/-]+$`)

// Run runs a command line of plain words as the user, and gives what it printed. VMware Tools
// give nothing back but the exit code, and start programs through the guest's shell: it sends
// what is printed to files in a directory of ours. A program that does not end in time is
// ended.
func (g *Guest) Run(ctx context.Context, command string) (string, error) {
	if !plain.MatchString(command) {
		return "", failed(api.CodeInternal, nil, "run %q in a guest: not plain words", command)
	}
	out, errs := g.dir+"/out", g.dir+"/err"
	pid, err := g.processes.StartProgram(ctx, g.auth, &types.GuestProgramSpec{
		ProgramPath: "/bin/sh", Arguments: "-c 'exec " + command + " </dev/null >" + out + " 2>" + errs + "'", WorkingDirectory: "/",
	})
	if err != nil {
		return "", g.failed(err, "run "+command)
	}
	code, err := g.wait(ctx, pid, command)
	if err != nil {
		return "", err
	}
	printed, err := g.Download(ctx, out, maxPrinted)
	if err != nil || code == 0 {
		return string(printed), err
	}
	said, err := g.Download(ctx, errs, maxPrinted)
	return string(printed), errors.Join(fmt.Errorf("%s: exit code %d: %s", command, code, strings.TrimSpace(string(said))), err)
}

// wait gives the exit code of a program.
func (g *Guest) wait(ctx context.Context, pid int64, command string) (int32, error) {
	bounded, cancel := context.WithTimeout(ctx, g.s.config.GuestProgram)
	defer cancel()
	for pause := guestPollFirst; ; pause = min(pause*2, guestPollMost) {
		found, err := g.processes.ListProcesses(bounded, g.auth, []int64{pid})
		switch {
		case err != nil && bounded.Err() == nil:
			return 0, g.failed(err, "look whether "+command+" has ended")
		case err == nil && len(found) == 0:
			return 0, failed(api.CodePush, nil, "%s in the guest of VM %s: VMware Tools do not know it any more; were they restarted? run it again", command, g.name)
		case err == nil && found[0].EndTime != nil:
			return found[0].ExitCode, nil
		}
		select {
		case <-bounded.Done():
			return 0, g.terminate(ctx, pid, command)
		case <-time.After(pause):
		}
	}
}

// terminate ends a program that does not end, and says so.
func (g *Guest) terminate(ctx context.Context, pid int64, command string) error {
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), guestLeave)
	defer cancel()
	what := "it was ended"
	if err := g.processes.TerminateProcess(end, g.auth, pid); err != nil {
		what = fmt.Sprintf("and process %d could not be ended: %v", pid, err)
	}
	if ctx.Err() != nil {
		return failed(api.CodePush, ctx.Err(), "%s in the guest of VM %s was cut short; %s", command, g.name, what)
	}
	return failed(api.CodePush, nil, "%s in the guest of VM %s did not end within %s; %s", command, g.name, g.s.config.GuestProgram, what)
}

// Upload makes a file of so many bytes, with the mode. While it arrives it is as private as
// its directory: what the host gives it until then is not known.
func (g *Guest) Upload(ctx context.Context, file string, content io.Reader, size int64, mode fs.FileMode) error {
	address, err := g.files.InitiateFileTransferToGuest(ctx, g.auth, file, &types.GuestPosixFileAttributes{Permissions: int64(mode.Perm())}, size, true)
	if err != nil {
		return g.failed(err, "write "+file)
	}
	if err := g.transfer(ctx, http.MethodPut, address, content, size, nil); err != nil {
		return g.failed(err, "write "+file)
	}
	return g.chmod(ctx, file, mode)
}

// Download gives the beginning of a file.
func (g *Guest) Download(ctx context.Context, file string, most int64) (b []byte, err error) {
	info, err := g.files.InitiateFileTransferFromGuest(ctx, g.auth, file)
	if err != nil {
		return nil, g.failed(err, "read "+file)
	}
	err = g.transfer(ctx, http.MethodGet, info.Url, nil, 0, func(body io.Reader) (err error) {
		b, err = io.ReadAll(io.LimitReader(body, most))
		return err
	})
	if err != nil {
		return nil, g.failed(err, "read "+file)
	}
	return b, nil
}
