package vsim

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"io/fs"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/rpc"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"

	"drover/tests/vsim/tools"
)

// guests are those of VMs that have Tools, and the host through which files come to them.
// The host has a certificate of its own, which vCenter knows.
type guests struct {
	sim    *Sim
	server *httptest.Server

	mu       sync.Mutex
	by       map[string]*toolsGuest // VM -> guest
	tickets  map[string]ticket      // of file transfers, each for one
	programs []string
}

// toolsGuest is a guest with Tools.
type toolsGuest struct {
	user, password string
	tools          *rpc.Client
}

// ticket is a file transfer that was asked for.
type ticket struct {
	guest  *toolsGuest
	method string
	file   string
	size   int64
	mode   fs.FileMode
}

// Guest gives a VM a guest with running Tools, that are reached by the connection
// (tools.Serve is at the other end), and a user. It waits until they answer.
func (s *Sim) Guest(ctx context.Context, vm, user, password string, conn net.Conn) error {
	g := &toolsGuest{user, password, rpc.NewClient(conn)}
	s.guests.mu.Lock()
	s.guests.by[vm] = g
	s.guests.mu.Unlock()
	if err := g.tools.Call("Tools.List", "/", new(tools.Info)); err != nil {
		return err
	}
	return s.ToolsStatus(ctx, vm, types.VirtualMachineToolsRunningStatusGuestToolsRunning)
}

// ToolsStatus lets vCenter show a VM's Tools so.
func (s *Sim) ToolsStatus(ctx context.Context, name string, status types.VirtualMachineToolsRunningStatus) error {
	vm, err := s.VM(ctx, name)
	if err != nil {
		return err
	}
	task, err := vm.Reconfigure(ctx, types.VirtualMachineConfigSpec{ExtraConfig: []types.BaseOptionValue{
		&types.OptionValue{Key: "SET.guest.toolsRunningStatus", Value: string(status)},
	}})
	if err != nil {
		return err
	}
	return task.Wait(ctx)
}

// HostThumbprint is the SHA-1 of the certificate of the host through which files come to
// guests. It is not vCenter's.
func (s *Sim) HostThumbprint() string { return soap.ThumbprintSHA1(s.guests.server.Certificate()) }

// NameHostCertificate lets vCenter tell this thumbprint as the host's; and its whole
// certificate, or nil.
func (s *Sim) NameHostCertificate(thumbprint string, whole []byte) {
	for _, e := range s.model.Map().All("HostSystem") {
		host := e.(*simulator.HostSystem)
		s.model.Service.Context.WithLock(host, func() {
			host.Summary.Config.SslThumbprint = thumbprint
			config := *host.Config // may be several hosts'
			config.Certificate = whole
			host.Config = &config
		})
	}
}

// HostCertificate is the host's whole one, in PEM form.
func (s *Sim) HostCertificate() []byte { return encodePEM(s.guests.server.Certificate().Raw) }

// Programs lists what was started in guests, with the arguments.
func (s *Sim) Programs() []string {
	s.guests.mu.Lock()
	defer s.guests.mu.Unlock()
	return slices.Clone(s.guests.programs)
}

// serveGuests puts what does guest operations into the vCenter.
func (s *Sim) serveGuests() error {
	cert, err := selfSigned()
	if err != nil {
		return err
	}
	g := &guests{sim: s, by: map[string]*toolsGuest{}, tickets: map[string]ticket{}}
	g.server = httptest.NewUnstartedServer(http.HandlerFunc(g.transfer))
	g.server.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	g.server.StartTLS()
	s.guests = g
	s.NameHostCertificate(s.HostThumbprint(), nil)
	all := s.model.Map()
	manager := all.Get(*s.model.ServiceContent.GuestOperationsManager).(*simulator.GuestOperationsManager)
	all.Put(&guestFiles{mo.GuestFileManager{Self: *manager.FileManager}, g})
	all.Put(&guestProcesses{mo.GuestProcessManager{Self: *manager.ProcessManager}, g})
	return nil
}

func (g *guests) close() {
	g.server.Close()
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, guest := range g.by {
		_ = guest.tools.Close()
	}
}

func selfSigned() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	spec := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "esx-1"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, spec, spec, key.Public(), key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

// enter finds the guest for an operation, as vCenter does: privilege, power, Tools, log-in.
func (g *guests) enter(ctx *simulator.Context, ref types.ManagedObjectReference, auth types.BaseGuestAuthentication, privilege string) (*toolsGuest, types.BaseMethodFault) {
	vm, ok := ctx.Map.Get(ref).(*simulator.VirtualMachine)
	if !ok {
		return nil, &types.ManagedObjectNotFound{Obj: ref}
	}
	privilege = "VirtualMachine.GuestOperations." + privilege
	if g.sim.lacks(ctx, privilege, ref) {
		return nil, &types.NoPermission{Object: &ref, PrivilegeId: privilege}
	}
	if vm.Runtime.PowerState != types.VirtualMachinePowerStatePoweredOn {
		return nil, &types.InvalidPowerState{RequestedState: types.VirtualMachinePowerStatePoweredOn, ExistingState: vm.Runtime.PowerState}
	}
	g.mu.Lock()
	guest := g.by[vm.Name]
	g.mu.Unlock()
	g.sim.mu.Lock()
	none := g.sim.noTools[vm.Name]
	g.sim.mu.Unlock()
	if guest == nil || none {
		return nil, &types.GuestOperationsUnavailable{}
	}
	login, ok := auth.(*types.NamePasswordAuthentication)
	if !ok || login.Username != guest.user || login.Password != guest.password {
		return nil, &types.InvalidGuestLogin{}
	}
	return guest, nil
}

// call has the guest do something.
func (g *guests) call(ctx *simulator.Context, vm types.ManagedObjectReference, auth types.BaseGuestAuthentication, privilege, method string, in, out any) *soap.Fault {
	guest, no := g.enter(ctx, vm, auth, privilege)
	if no != nil {
		return simulator.Fault("", no)
	}
	err := guest.tools.Call("Tools."+method, in, out)
	switch {
	case err == nil:
		return nil
	case tools.Missing(err) && method == "Kill":
		return simulator.Fault("", &types.GuestProcessNotFound{})
	case tools.Missing(err):
		return simulator.Fault("", &types.FileNotFound{})
	}
	return simulator.Fault(err.Error(), &types.SystemError{Reason: err.Error()})
}

// ticket makes the address of a file transfer.
func (g *guests) ticket(t ticket) string {
	id := uuid.NewString()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.tickets[id] = t
	return g.server.URL + "/guestFile?id=1&token=" + id
}

// transfer is the host's side of one.
func (g *guests) transfer(w http.ResponseWriter, r *http.Request) {
	id := r.URL.Query().Get("token")
	g.mu.Lock()
	t, known := g.tickets[id]
	delete(g.tickets, id)
	g.mu.Unlock()
	if !known || t.method != r.Method {
		w.WriteHeader(http.StatusForbidden)
		return
	}
	var err error
	if t.method == http.MethodPut {
		var b []byte
		if b, err = io.ReadAll(io.LimitReader(r.Body, t.size+1)); err == nil && int64(len(b)) == t.size {
			err = t.guest.tools.Call("Tools.Put", tools.File{Path: t.file, Content: b, Mode: t.mode}, new(tools.Empty))
		}
	} else {
		var b []byte
		if err = t.guest.tools.Call("Tools.Get", t.file, &b); err == nil {
			_, err = w.Write(b)
		}
	}
	if err != nil {
		w.WriteHeader(http.StatusInternalServerError)
	}
}

// guestFiles answers for files in guests.
type guestFiles struct {
	mo.GuestFileManager
	g *guests
}

func (f *guestFiles) ListFilesInGuest(ctx *simulator.Context, req *types.ListFilesInGuest) soap.HasFault {
	body, info := new(methods.ListFilesInGuestBody), tools.Info{}
	if body.Fault_ = f.g.call(ctx, req.Vm, req.Auth, "Query", "List", req.FilePath, &info); body.Fault_ == nil {
		kind := types.GuestFileTypeFile
		if info.Directory {
			kind = types.GuestFileTypeDirectory
		}
		body.Res = &types.ListFilesInGuestResponse{Returnval: types.GuestListFileInfo{Files: []types.GuestFileInfo{
			{Path: req.FilePath, Type: string(kind), Size: info.Size, Attributes: &types.GuestPosixFileAttributes{Permissions: int64(info.Mode)}},
		}}}
	}
	return body
}

func (f *guestFiles) CreateTemporaryDirectoryInGuest(ctx *simulator.Context, req *types.CreateTemporaryDirectoryInGuest) soap.HasFault {
	body, res := new(methods.CreateTemporaryDirectoryInGuestBody), new(types.CreateTemporaryDirectoryInGuestResponse)
	if body.Fault_ = f.g.call(ctx, req.Vm, req.Auth, "Modify", "Temp", req.Prefix, &res.Returnval); body.Fault_ == nil {
		body.Res = res
	}
	return body
}

func (f *guestFiles) MakeDirectoryInGuest(ctx *simulator.Context, req *types.MakeDirectoryInGuest) soap.HasFault {
	body := &methods.MakeDirectoryInGuestBody{Res: new(types.MakeDirectoryInGuestResponse)}
	body.Fault_ = f.g.call(ctx, req.Vm, req.Auth, "Modify", "Mkdir", req.DirectoryPath, new(tools.Empty))
	return body
}

func (f *guestFiles) DeleteDirectoryInGuest(ctx *simulator.Context, req *types.DeleteDirectoryInGuest) soap.HasFault {
	body := &methods.DeleteDirectoryInGuestBody{Res: new(types.DeleteDirectoryInGuestResponse)}
	body.Fault_ = f.g.call(ctx, req.Vm, req.Auth, "Modify", "RemoveAll", req.DirectoryPath, new(tools.Empty))
	return body
}

func (f *guestFiles) DeleteFileInGuest(ctx *simulator.Context, req *types.DeleteFileInGuest) soap.HasFault {
	body := &methods.DeleteFileInGuestBody{Res: new(types.DeleteFileInGuestResponse)}
	body.Fault_ = f.g.call(ctx, req.Vm, req.Auth, "Modify", "Remove", req.FilePath, new(tools.Empty))
	return body
}

func (f *guestFiles) MoveFileInGuest(ctx *simulator.Context, req *types.MoveFileInGuest) soap.HasFault {
	body := &methods.MoveFileInGuestBody{Res: new(types.MoveFileInGuestResponse)}
	body.Fault_ = f.g.call(ctx, req.Vm, req.Auth, "Modify", "Move", tools.Pair{From: req.SrcFilePath, To: req.DstFilePath}, new(tools.Empty))
	return body
}

func (f *guestFiles) ChangeFileAttributesInGuest(ctx *simulator.Context, req *types.ChangeFileAttributesInGuest) soap.HasFault {
	body := &methods.ChangeFileAttributesInGuestBody{Res: new(types.ChangeFileAttributesInGuestResponse)}
	body.Fault_ = f.g.call(ctx, req.Vm, req.Auth, "Modify", "Chmod", tools.File{Path: req.GuestFilePath, Mode: modeOf(req.FileAttributes)}, new(tools.Empty))
	return body
}

func modeOf(attributes types.BaseGuestFileAttributes) fs.FileMode {
	if a, ok := attributes.(*types.GuestPosixFileAttributes); ok {
		return fs.FileMode(a.Permissions).Perm() //nolint:gosec // permissions
	}
	return 0o644
}

func (f *guestFiles) InitiateFileTransferToGuest(ctx *simulator.Context, req *types.InitiateFileTransferToGuest) soap.HasFault {
	body := new(methods.InitiateFileTransferToGuestBody)
	guest, no := f.g.enter(ctx, req.Vm, req.Auth, "Modify")
	if no != nil {
		body.Fault_ = simulator.Fault("", no)
		return body
	}
	body.Res = &types.InitiateFileTransferToGuestResponse{Returnval: f.g.ticket(ticket{guest, http.MethodPut, req.GuestFilePath, req.FileSize, modeOf(req.FileAttributes)})}
	return body
}

func (f *guestFiles) InitiateFileTransferFromGuest(ctx *simulator.Context, req *types.InitiateFileTransferFromGuest) soap.HasFault {
	body, info := new(methods.InitiateFileTransferFromGuestBody), tools.Info{}
	if body.Fault_ = f.g.call(ctx, req.Vm, req.Auth, "Query", "List", req.GuestFilePath, &info); body.Fault_ != nil {
		return body
	}
	guest, no := f.g.enter(ctx, req.Vm, req.Auth, "Query")
	if no != nil {
		body.Fault_ = simulator.Fault("", no)
		return body
	}
	body.Res = &types.InitiateFileTransferFromGuestResponse{Returnval: types.FileTransferInformation{
		Size: info.Size, Attributes: &types.GuestPosixFileAttributes{Permissions: int64(info.Mode)}, Url: f.g.ticket(ticket{guest: guest, method: http.MethodGet, file: req.GuestFilePath}),
	}}
	return body
}

// guestProcesses answers for processes in guests.
type guestProcesses struct {
	mo.GuestProcessManager
	g *guests
}

func (p *guestProcesses) StartProgramInGuest(ctx *simulator.Context, req *types.StartProgramInGuest) soap.HasFault {
	body, pid := new(methods.StartProgramInGuestBody), 0
	spec := req.Spec.GetGuestProgramSpec()
	program := tools.Program{Path: spec.ProgramPath, Arguments: spec.Arguments, Dir: spec.WorkingDirectory}
	p.g.mu.Lock()
	p.g.programs = append(p.g.programs, program.Path+" "+program.Arguments)
	p.g.mu.Unlock()
	if body.Fault_ = p.g.call(ctx, req.Vm, req.Auth, "Execute", "Start", program, &pid); body.Fault_ == nil {
		body.Res = &types.StartProgramInGuestResponse{Returnval: int64(pid)}
	}
	return body
}

func (p *guestProcesses) ListProcessesInGuest(ctx *simulator.Context, req *types.ListProcessesInGuest) soap.HasFault {
	body, found, pids := new(methods.ListProcessesInGuestBody), []tools.Process{}, []int{}
	for _, pid := range req.Pids {
		pids = append(pids, int(pid))
	}
	if body.Fault_ = p.g.call(ctx, req.Vm, req.Auth, "Query", "Processes", pids, &found); body.Fault_ != nil {
		return body
	}
	body.Res = new(types.ListProcessesInGuestResponse)
	for _, f := range found {
		info := types.GuestProcessInfo{Name: f.Name, Pid: int64(f.Pid), StartTime: f.Started, ExitCode: int32(f.Code)} //nolint:gosec // 0 to 255
		if !f.Ended.IsZero() {
			info.EndTime = &f.Ended
		}
		body.Res.Returnval = append(body.Res.Returnval, info)
	}
	return body
}

func (p *guestProcesses) TerminateProcessInGuest(ctx *simulator.Context, req *types.TerminateProcessInGuest) soap.HasFault {
	body := &methods.TerminateProcessInGuestBody{Res: new(types.TerminateProcessInGuestResponse)}
	body.Fault_ = p.g.call(ctx, req.Vm, req.Auth, "Execute", "Kill", int(req.Pid), new(tools.Empty))
	return body
}
