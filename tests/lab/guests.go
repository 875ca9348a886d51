package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"drover/datapath/ident"
	"drover/tests/lab/guest"
	"drover/tests/ports"
)

// hypervisorPause is how soon a power switch takes effect.
const hypervisorPause = 200 * time.Millisecond

// guests is the lab's hypervisor: it boots every machine that is powered on, in
// vCenter or in the target cloud, and pulls the plug of those that are off. A
// booted machine runs its agent and its application; a test machine runs nothing
// that could reach the outside.
type guests struct {
	lab    *Lab
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex
	running map[string]*machine // by hardware uuid
	proxies map[string]*Proxy   // by VM name
	relay   *relay              // nil: there is none
	failed  error
}

// machine is a powered-on machine.
type machine struct {
	name     string // the VM's, of which it may be a copy
	instance string
	test     bool
	disks    []bootDisk
	agent    *Process
	app      *Process
}

// bootDisk is a disk of a machine that boots.
type bootDisk struct {
	id      ident.DiskID
	backing string
	path    string
}

// Boot is what a machine found on its disks when it was powered on, before
// anything in it ran.
type Boot struct {
	Instance string            `json:"instance"`
	Test     bool              `json:"test"`
	Time     time.Time         `json:"time"`
	Disks    map[string]string `json:"disks"` // disk id -> SHA-256
	FSCheck  map[string]string `json:"fsCheck"`
	Problems []string          `json:"problems,omitempty"`
}

// StartGuests boots the VMs that are powered on, and from then on follows the
// power switches.
func (l *Lab) StartGuests(ctx context.Context) error {
	power, err := newPower(ctx, l.VCenter.URL)
	if err != nil {
		return fmt.Errorf("watch the power of the lab's VMs: %w", err)
	}
	watch, cancel := context.WithCancel(context.Background())
	g := &guests{lab: l, cancel: cancel, running: map[string]*machine{}, proxies: map[string]*Proxy{}}
	for _, vm := range l.VMs {
		if g.proxies[vm.Name], err = NewProxy(); err != nil {
			cancel()
			return err
		}
	}
	l.guests = g
	g.wg.Add(1)
	go func() { defer g.wg.Done(); g.follow(watch, power) }()
	return nil
}

func (g *guests) follow(ctx context.Context, power *power) {
	for {
		if err := g.pass(ctx, power); err != nil && ctx.Err() == nil {
			g.mu.Lock()
			g.failed = err
			g.mu.Unlock()
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(hypervisorPause):
		}
	}
}

// pass compares what should run with what runs.
func (g *guests) pass(ctx context.Context, power *power) error {
	want, err := g.powered(ctx, power)
	if err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for instance, m := range g.running {
		if want[instance] == nil {
			m.pull()
			delete(g.running, instance)
		}
	}
	for instance, m := range want {
		if g.running[instance] == nil {
			if e := g.boot(ctx, m); e != nil {
				err = errors.Join(err, fmt.Errorf("boot %s: %w", m.name, e))
				continue
			}
			g.running[instance] = m
		}
		if e := g.install(g.running[instance]); e != nil {
			err = errors.Join(err, e)
		}
	}
	return errors.Join(err, g.relays())
}

// powered lists the machines that are on, with their disks.
func (g *guests) powered(ctx context.Context, power *power) (map[string]*machine, error) {
	on, err := power.on(ctx, g.lab.Path("vcenter"))
	if err != nil {
		return nil, err
	}
	want := map[string]*machine{}
	ids := map[string]string{} // machine id -> VM name
	for _, vm := range g.lab.VCenter.VMs {
		id := ident.NewMachineID(g.lab.VCenter.UUID, vm.InstanceUUID)
		ids[id.String()] = vm.Name
		if _, is := on[vm.InstanceUUID]; !is {
			continue
		}
		m := &machine{name: vm.Name, instance: vm.BIOSUUID}
		for _, d := range vm.Disks {
			m.disks = append(m.disks, bootDisk{ident.NewDiskID(id, d.BackingUUID), d.BackingUUID, d.Path})
		}
		want[m.instance] = m
	}
	for _, vm := range on {
		if vm.machine != "" {
			want[vm.bios] = &machine{name: ids[vm.machine], instance: vm.bios, disks: vm.disks}
		}
	}
	cloud, err := g.lab.TargetMachines()
	if err != nil {
		return nil, err
	}
	for _, c := range cloud {
		if c.Running {
			want[c.Instance] = &machine{name: ids[c.Machine], instance: c.Instance, test: c.Test, disks: c.disks}
		}
	}
	return want, nil
}

// boot notes what is on the machine's disks, then runs its application.
func (g *guests) boot(ctx context.Context, m *machine) error {
	dir := g.lab.Path("guests", m.name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	b := Boot{Instance: m.instance, Test: m.test, Time: time.Now(), Disks: map[string]string{}, FSCheck: map[string]string{}}
	for _, d := range m.disks {
		sum, err := guest.Digest(d.path)
		if err != nil {
			return err
		}
		b.Disks[d.id.String()] = sum
		if b.FSCheck[d.id.String()], err = CheckFS(ctx, d.path); err != nil {
			b.Problems = append(b.Problems, err.Error())
		}
	}
	line, err := json.Marshal(b)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(g.lab.Path("guests", m.name, "boots.jsonl"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if _, err = f.Write(append(line, '\n')); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := f.Close(); err != nil || m.test {
		return err
	}
	args := []string{"run", "--socket", m.socket(g.lab), "--ledger", g.lab.ledger(m.name), "--pause", g.lab.WritePause.String()}
	for _, d := range m.disks {
		args = append(args, "--disk", d.id.String()+"="+d.path)
	}
	m.app = g.lab.process("guest-"+m.name, "drover-guest", args...)
	return m.app.Start()
}

// socket is short enough for a Unix socket's path, wherever the lab is.
func (m *machine) socket(l *Lab) string {
	return fmt.Sprintf("%s/%s-%s.sock", l.sockets, m.name, m.instance[:8])
}

// install starts the machine's agent once its token is there.
func (g *guests) install(m *machine) error {
	if m.test || m.agent != nil {
		return nil
	}
	l := g.lab
	if _, err := os.Stat(l.Path("secrets", m.name+".token")); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	state := l.Path("guests", m.name, "agent-"+m.instance)
	if err := g.cloneState(m, state); err != nil {
		return err
	}
	metrics, err := ports.Free()
	if err != nil {
		return err
	}
	l.metrics.Store("agent-"+m.name, metrics)
	config := fmt.Sprintf(`configServer: "https://%s"
state: %q
metrics: %q
tokenFile: %q
instance: %s
proxy: %q
socket: %q
limits: {nice: 0, pressure: {cpu: 0, io: 0, memory: 0}} # its neighbours are other machines, not its guest's programs
quiesce:
  pre: [%q, hook, --socket, %q]
  post: [%q, hook, --socket, %q]
  timeout: 20s
disks:
`, l.addresses["config-server"], state, metrics, l.Path("secrets", m.name+".token"), m.instance, g.proxies[m.name].URL(), fmt.Sprintf("%s/%s-%s.status", l.sockets, m.name, m.instance[:8]),
		l.bin("drover-guest"), m.socket(l), l.bin("drover-guest"), m.socket(l))
	for _, d := range m.disks {
		config += fmt.Sprintf("  %s: %q\n", d.backing, d.path)
	}
	name := "etc/agent-" + m.name + "-" + m.instance[:8] + ".yaml"
	if err := l.write(name, config); err != nil {
		return err
	}
	agent := l.process("agent-"+m.name, "drover-agent", "run", "--config", l.Path(name))
	if err := agent.Start(); err != nil {
		return err
	}
	m.agent = agent
	return nil
}

// cloneState gives a copy in the cloud what the original had on its disk: the
// agent's identity.
func (g *guests) cloneState(m *machine, state string) error {
	if _, err := os.Stat(state); err == nil {
		return nil
	}
	vm, err := g.lab.VCenter.VM(m.name)
	if err != nil || vm.BIOSUUID == m.instance {
		return err
	}
	original := g.lab.Path("guests", m.name, "agent-"+vm.BIOSUUID)
	return os.CopyFS(state, os.DirFS(original))
}

// pull ends a machine as a power cut does.
func (m *machine) pull() {
	for _, p := range []*Process{m.agent, m.app} {
		if p != nil {
			p.Kill()
		}
	}
}

// close shuts the machines down.
func (g *guests) close() {
	g.cancel()
	g.wg.Wait()
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, m := range g.running {
		for _, p := range []*Process{m.agent, m.app} {
			if p != nil {
				_ = p.Stop()
			}
		}
	}
	if g.relay != nil {
		_ = g.relay.process.Stop()
	}
	for _, p := range g.proxies {
		p.Close()
	}
}

// Network gives the proxy that all traffic of the VM's agents goes through.
func (l *Lab) Network(name string) *Proxy { return l.guests.proxies[name] }

// Agent gives the running agent of a machine, on whichever side it is.
func (l *Lab) Agent(name string) (*Process, error) {
	l.guests.mu.Lock()
	defer l.guests.mu.Unlock()
	for _, m := range l.guests.running {
		if m.name == name && m.agent != nil {
			return m.agent, nil
		}
	}
	return nil, fmt.Errorf("no agent of %s runs (hypervisor: %w)", name, l.guests.failed)
}

// Boots reads what the copies of a VM found on their disks, oldest first.
func (l *Lab) Boots(name string) ([]Boot, error) {
	f, err := os.Open(l.Path("guests", name, "boots.jsonl"))
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	var out []Boot
	for dec := json.NewDecoder(f); dec.More(); {
		var b Boot
		if err := dec.Decode(&b); err != nil {
			return nil, fmt.Errorf("read the boots of %s: %w", name, err)
		}
		out = append(out, b)
	}
	return out, nil
}

// WaitBoot waits until the machine with the hardware uuid has booted since.
func (l *Lab) WaitBoot(ctx context.Context, name, instance string, since time.Time) (Boot, error) {
	deadline := time.Now().Add(startLimit)
	for {
		boots, err := l.Boots(name)
		if err != nil {
			return Boot{}, err
		}
		for _, b := range boots {
			if b.Instance == instance && b.Time.After(since) {
				return b, nil
			}
		}
		if time.Now().After(deadline) {
			l.guests.mu.Lock()
			err := l.guests.failed
			l.guests.mu.Unlock()
			return Boot{}, fmt.Errorf("%s (%s) did not boot within %s (hypervisor: %w)", name, instance, startLimit, err)
		}
		select {
		case <-ctx.Done():
			return Boot{}, ctx.Err()
		case <-time.After(pollPause):
		}
	}
}

// EnrolAgent issues the one-time token with which the machine's agent enrols
// itself; the hypervisor then starts the agent.
func (l *Lab) EnrolAgent(ctx context.Context, name string) error {
	vm, err := l.VCenter.VM(name)
	if err != nil {
		return err
	}
	id := ident.NewMachineID(l.VCenter.UUID, vm.InstanceUUID)
	// The file appears complete: the hypervisor looks for it.
	temp := l.Path("secrets", name+".token.tmp")
	if err := l.token(ctx, temp, "--role", "agent", "--machine", id.String(), "--instance", vm.BIOSUUID); err != nil {
		return err
	}
	return os.Rename(temp, l.Path("secrets", name+".token"))
}
