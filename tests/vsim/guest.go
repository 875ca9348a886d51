package vsim

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os/exec"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// guests are those of VMs that have Tools. The simulator does what is asked for in them, in
// a container for each; this is what it leaves out: log-ins, privileges, Tools that do not
// answer, files that are not there, and a host through which files come, which has a
// certificate of its own that vCenter knows.
type guests struct {
	sim    *Sim
	server *httptest.Server

	mu       sync.Mutex
	users    map[string]user   // VM -> who may log in to its guest
	tickets  map[string]ticket // of file transfers, each for one
	programs []string
}

type user struct{ name, password string }

// ticket is a file transfer that was asked for.
type ticket struct {
	method string
	at     *url.URL // what the simulator calls it
}

// Guest gives a VM a guest with running Tools, and a user. The guest is a container of the
// image, made by the docker that is on this process's PATH: tests/vsim/docker does.
func (s *Sim) Guest(ctx context.Context, vm, image, name, password string) error {
	i := slices.IndexFunc(s.info.VMs, func(v VMInfo) bool { return v.Name == vm })
	if i < 0 {
		return fmt.Errorf("no VM %s", vm)
	}
	s.guests.mu.Lock()
	s.guests.users[vm] = user{name, password}
	s.guests.mu.Unlock()
	return s.extra(ctx, vm, map[string]string{
		simulator.ContainerBackingOptionKey: image,
		"RUN.env.INSTANCE":                  s.info.VMs[i].BIOSUUID,
		"RUN.mountdmi":                      "false", // it knows another uuid than the VM's
	})
}

// ToolsStatus lets vCenter show a VM's Tools so.
func (s *Sim) ToolsStatus(ctx context.Context, name string, status types.VirtualMachineToolsRunningStatus) error {
	return s.extra(ctx, name, map[string]string{"SET.guest.toolsRunningStatus": string(status)})
}

// extra sets extra configuration of a VM, which tells the simulator what to do with it.
func (s *Sim) extra(ctx context.Context, name string, values map[string]string) error {
	vm, err := s.VM(ctx, name)
	if err != nil {
		return err
	}
	var spec types.VirtualMachineConfigSpec
	for k, v := range values {
		spec.ExtraConfig = append(spec.ExtraConfig, &types.OptionValue{Key: k, Value: v})
	}
	task, err := vm.Reconfigure(ctx, spec)
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
	g := &guests{sim: s, users: map[string]user{}, tickets: map[string]ticket{}}
	g.server = httptest.NewUnstartedServer(http.HandlerFunc(g.transfer))
	g.server.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	g.server.StartTLS()
	s.guests = g
	s.NameHostCertificate(s.HostThumbprint(), nil)
	all := s.model.Map()
	manager := all.Get(*s.model.ServiceContent.GuestOperationsManager).(*simulator.GuestOperationsManager)
	all.Put(&guestFiles{all.Get(*manager.FileManager).(*simulator.GuestFileManager), g})
	all.Put(&guestProcesses{all.Get(*manager.ProcessManager).(*simulator.GuestProcessManager), g})
	return nil
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

// enter says why an operation is refused, as vCenter does: privilege, power, Tools, log-in.
func (g *guests) enter(ctx *simulator.Context, ref types.ManagedObjectReference, auth types.BaseGuestAuthentication, privilege string) types.BaseMethodFault {
	vm, ok := ctx.Map.Get(ref).(*simulator.VirtualMachine)
	if !ok {
		return &types.ManagedObjectNotFound{Obj: ref}
	}
	privilege = "VirtualMachine.GuestOperations." + privilege
	if g.sim.lacks(ctx, privilege, ref) {
		return &types.NoPermission{Object: &ref, PrivilegeId: privilege}
	}
	if vm.Runtime.PowerState != types.VirtualMachinePowerStatePoweredOn {
		return &types.InvalidPowerState{RequestedState: types.VirtualMachinePowerStatePoweredOn, ExistingState: vm.Runtime.PowerState}
	}
	g.mu.Lock()
	may, known := g.users[vm.Name]
	g.mu.Unlock()
	g.sim.mu.Lock()
	none := g.sim.noTools[vm.Name]
	g.sim.mu.Unlock()
	if !known || none {
		return &types.GuestOperationsUnavailable{}
	}
	login, ok := auth.(*types.NamePasswordAuthentication)
	if !ok || may != (user{login.Username, login.Password}) {
		return &types.InvalidGuestLogin{}
	}
	return nil
}

// ticket makes the address of a file transfer, through the host.
func (g *guests) ticket(method, at string) (string, error) {
	u, err := url.Parse(at)
	if err != nil {
		return "", err
	}
	id := uuid.NewString()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.tickets[id] = ticket{method, u}
	return g.server.URL + "/guestFile?id=1&token=" + id, nil
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
	r.URL = t.at
	simulator.ServeGuest(w, r)
}

// guestFiles answers for files in guests.
type guestFiles struct {
	*simulator.GuestFileManager
	g *guests
}

// enter says why an operation on a file is refused. Of a file that is not there the simulator
// says only that it could not be done.
func (f *guestFiles) enter(ctx *simulator.Context, ref types.ManagedObjectReference, auth types.BaseGuestAuthentication, privilege, file string) *soap.Fault {
	fault := f.g.enter(ctx, ref, auth, privilege)
	if fault == nil && file != "" {
		fault = f.find(ctx, ref, auth, file)
	}
	if fault != nil {
		return simulator.Fault("", fault)
	}
	return nil
}

// find looks for a file in a guest. Where its container is stands in the address of a transfer.
func (f *guestFiles) find(ctx *simulator.Context, ref types.ManagedObjectReference, auth types.BaseGuestAuthentication, file string) types.BaseMethodFault {
	body := f.GuestFileManager.InitiateFileTransferToGuest(ctx, &types.InitiateFileTransferToGuest{Vm: ref, Auth: auth}).(*methods.InitiateFileTransferToGuestBody)
	if body.Fault_ != nil {
		return &types.GuestOperationsUnavailable{}
	}
	at, err := url.Parse(body.Res.Returnval)
	if err == nil {
		err = exec.CommandContext(ctx, "docker", "exec", at.Query().Get("id"), "test", "-e", file).Run() //nolint:gosec // the simulator does the same
	}
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		return &types.FileNotFound{FileFault: types.FileFault{File: file}}
	case err != nil:
		return &types.SystemError{Reason: err.Error()}
	}
	return nil
}

func (f *guestFiles) ListFilesInGuest(ctx *simulator.Context, req *types.ListFilesInGuest) soap.HasFault {
	if no := f.enter(ctx, req.Vm, req.Auth, "Query", req.FilePath); no != nil {
		return &methods.ListFilesInGuestBody{Fault_: no}
	}
	return f.GuestFileManager.ListFilesInGuest(ctx, req)
}

func (f *guestFiles) CreateTemporaryDirectoryInGuest(ctx *simulator.Context, req *types.CreateTemporaryDirectoryInGuest) soap.HasFault {
	if no := f.enter(ctx, req.Vm, req.Auth, "Modify", ""); no != nil {
		return &methods.CreateTemporaryDirectoryInGuestBody{Fault_: no}
	}
	return f.GuestFileManager.CreateTemporaryDirectoryInGuest(ctx, req)
}

func (f *guestFiles) MakeDirectoryInGuest(ctx *simulator.Context, req *types.MakeDirectoryInGuest) soap.HasFault {
	if no := f.enter(ctx, req.Vm, req.Auth, "Modify", ""); no != nil {
		return &methods.MakeDirectoryInGuestBody{Fault_: no}
	}
	return f.GuestFileManager.MakeDirectoryInGuest(ctx, req)
}

func (f *guestFiles) DeleteDirectoryInGuest(ctx *simulator.Context, req *types.DeleteDirectoryInGuest) soap.HasFault {
	if no := f.enter(ctx, req.Vm, req.Auth, "Modify", req.DirectoryPath); no != nil {
		return &methods.DeleteDirectoryInGuestBody{Fault_: no}
	}
	return f.GuestFileManager.DeleteDirectoryInGuest(ctx, req)
}

func (f *guestFiles) DeleteFileInGuest(ctx *simulator.Context, req *types.DeleteFileInGuest) soap.HasFault {
	if no := f.enter(ctx, req.Vm, req.Auth, "Modify", req.FilePath); no != nil {
		return &methods.DeleteFileInGuestBody{Fault_: no}
	}
	return f.GuestFileManager.DeleteFileInGuest(ctx, req)
}

func (f *guestFiles) MoveFileInGuest(ctx *simulator.Context, req *types.MoveFileInGuest) soap.HasFault {
	if no := f.enter(ctx, req.Vm, req.Auth, "Modify", req.SrcFilePath); no != nil {
		return &methods.MoveFileInGuestBody{Fault_: no}
	}
	return f.GuestFileManager.MoveFileInGuest(ctx, req)
}

func (f *guestFiles) ChangeFileAttributesInGuest(ctx *simulator.Context, req *types.ChangeFileAttributesInGuest) soap.HasFault {
	if no := f.enter(ctx, req.Vm, req.Auth, "Modify", req.GuestFilePath); no != nil {
		return &methods.ChangeFileAttributesInGuestBody{Fault_: no}
	}
	return f.GuestFileManager.ChangeFileAttributesInGuest(ctx, req)
}

func (f *guestFiles) InitiateFileTransferToGuest(ctx *simulator.Context, req *types.InitiateFileTransferToGuest) soap.HasFault {
	if no := f.enter(ctx, req.Vm, req.Auth, "Modify", ""); no != nil {
		return &methods.InitiateFileTransferToGuestBody{Fault_: no}
	}
	res := f.GuestFileManager.InitiateFileTransferToGuest(ctx, req)
	if body := res.(*methods.InitiateFileTransferToGuestBody); body.Res != nil {
		var err error
		if body.Res.Returnval, err = f.g.ticket(http.MethodPut, body.Res.Returnval); err != nil {
			body.Res, body.Fault_ = nil, simulator.Fault(err.Error(), &types.SystemError{Reason: err.Error()})
		}
	}
	return res
}

func (f *guestFiles) InitiateFileTransferFromGuest(ctx *simulator.Context, req *types.InitiateFileTransferFromGuest) soap.HasFault {
	if no := f.enter(ctx, req.Vm, req.Auth, "Query", req.GuestFilePath); no != nil {
		return &methods.InitiateFileTransferFromGuestBody{Fault_: no}
	}
	res := f.GuestFileManager.InitiateFileTransferFromGuest(ctx, req)
	if body := res.(*methods.InitiateFileTransferFromGuestBody); body.Res != nil {
		var err error
		if body.Res.Returnval.Url, err = f.g.ticket(http.MethodGet, body.Res.Returnval.Url); err != nil {
			body.Res, body.Fault_ = nil, simulator.Fault(err.Error(), &types.SystemError{Reason: err.Error()})
		}
	}
	return res
}

// guestProcesses answers for processes in guests.
type guestProcesses struct {
	*simulator.GuestProcessManager
	g *guests
}

func (p *guestProcesses) StartProgramInGuest(ctx *simulator.Context, req *types.StartProgramInGuest) soap.HasFault {
	spec := req.Spec.GetGuestProgramSpec()
	p.g.mu.Lock()
	p.g.programs = append(p.g.programs, spec.ProgramPath+" "+spec.Arguments)
	p.g.mu.Unlock()
	if no := p.g.enter(ctx, req.Vm, req.Auth, "Execute"); no != nil {
		return &methods.StartProgramInGuestBody{Fault_: simulator.Fault("", no)}
	}
	return p.GuestProcessManager.StartProgramInGuest(ctx, req)
}

func (p *guestProcesses) ListProcessesInGuest(ctx *simulator.Context, req *types.ListProcessesInGuest) soap.HasFault {
	if no := p.g.enter(ctx, req.Vm, req.Auth, "Query"); no != nil {
		return &methods.ListProcessesInGuestBody{Fault_: simulator.Fault("", no)}
	}
	return p.GuestProcessManager.ListProcessesInGuest(ctx, req)
}

func (p *guestProcesses) TerminateProcessInGuest(ctx *simulator.Context, req *types.TerminateProcessInGuest) soap.HasFault {
	if no := p.g.enter(ctx, req.Vm, req.Auth, "Execute"); no != nil {
		return &methods.TerminateProcessInGuestBody{Fault_: simulator.Fault("", no)}
	}
	return p.GuestProcessManager.TerminateProcessInGuest(ctx, req)
}
