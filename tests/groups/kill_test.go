package groups

import (
	"encoding/json"
	"flag"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"drover/agent/controlapi"
	"drover/agent/quiesce/freeze"
	"drover/datapath/ident"
	pipe "drover/datapath/stream"
	"drover/datapath/wire/wiretest"
	"drover/tests/ports"
	"drover/tests/rig"
)

var kills = flag.Int("kills", 4, "how often a process is killed in the middle of rounds")

// childVariable says what a child is: a server of all machines, or the agent of one.
const childVariable = "DROVER_GROUPS_CHILD"

// child is what another process needs to be one side of the group.
type child struct {
	Dir, Address string
	Agent        string // name of its machine; empty: it is the server
	Group        pipe.Group
	Machines     []childMachine
}

type childMachine struct {
	Name, Device string
	ID           ident.MachineID
	Disks        []controlapi.Disk
}

// TestChild is no test: it is the other process.
func TestChild(t *testing.T) {
	text := os.Getenv(childVariable)
	if text == "" {
		t.Skip("it is run by the others")
	}
	var c child
	require.NoError(t, json.Unmarshal([]byte(text), &c))
	server := rig.New(t)
	for i, m := range c.Machines {
		r := server
		if i > 0 {
			r = server.Another(m.Name)
		}
		r.Dir, r.CA, r.Address, r.Machine, r.Name, r.Disks, r.Device, r.Group = c.Dir, wiretest.Load(t, c.Dir), c.Address, m.ID, m.Name, m.Disks, m.Device, &c.Group
		switch c.Agent {
		case "":
			if i == 0 {
				r.StartServer()
			}
			r.Server = server.Server
			r.Grant(1, cadence)
		case m.Name:
			r.Hooks.Freezer = &freeze.Freezer{Limit: freezeLimit}
			r.StartAgent(1)
		}
	}
	_, _ = io.Copy(io.Discard, os.Stdin) // until it is killed, or the other test ends
}

// start runs a child, which ends with the test at the latest.
func (c child) start(t *testing.T) *exec.Cmd {
	t.Helper()
	text, err := json.Marshal(c)
	require.NoError(t, err)
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestChild$")
	cmd.Env = append(os.Environ(), childVariable+"="+string(text), "TMPDIR="+t.TempDir()) // what it leaves when it is killed
	if testing.Verbose() {
		cmd.Args = append(cmd.Args, "-test.v")
		cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	}
	_, err = cmd.StdinPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { stopChild(cmd) })
	return cmd
}

// stopChild kills a child, unless it is dead already.
func stopChild(cmd *exec.Cmd) {
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
}

func childOf(all []*machine) child {
	first := all[0]
	first.CA.Save(first.Dir)
	c := child{Dir: first.Dir, Address: first.Address, Group: *first.Group}
	for _, m := range all {
		c.Machines = append(c.Machines, childMachine{m.Name, m.Device, m.Machine, m.Disks})
	}
	return c
}

func (c child) agent(name string) child {
	c.Agent = name
	return c
}

// TestOneIsStopped: an agent that stands still, whatever it was at, is named; its machine
// and the others go on, and get points; when it moves again there are points in common.
func TestOneIsStopped(t *testing.T) {
	all := shop(t, &pipe.Group{Name: "shop", Ready: time.Second, Frozen: 500 * time.Millisecond})
	a, c := all[0], all[2]
	a.StartAgent(1)
	c.StartAgent(1)
	agent := childOf(all).agent("b").start(t)
	newWriter(all)
	awaitRounds(all, 1)
	for range 2 {
		time.Sleep(rand.N(500 * time.Millisecond))
		require.NoError(t, agent.Process.Signal(syscall.SIGSTOP))
		a.Await("b is missed", func(st pipe.Status) bool { return misses(st, "b") })
		for _, m := range []*machine{a, c} {
			last := m.Status().LastPoint
			m.Await("points of the others", func(st pipe.Status) bool { return st.LastPoint >= last+3 })
		}
		for _, m := range all { // that of the machine that is stopped, too
			m.goesOn()
		}
		require.NoError(t, agent.Process.Signal(syscall.SIGCONT))
		awaitRounds(all, 1)
	}
	requireInOrder(t, all)
	requireShortFreezes(t, all)
}

// TestKilled: the server and an agent are killed in the middle of rounds. Nothing is left
// frozen, and the next ones have rounds in common again.
func TestKilled(t *testing.T) {
	need(t)
	first := rig.New(t)
	var err error
	first.Address, err = ports.Free()
	require.NoError(t, err)
	first.Name = "a"
	first.AddDisk("a", diskBytes)
	all := []*machine{newMachine(first)}
	for _, name := range []string{"b", "c"} {
		r := first.Another(name)
		r.Dir, r.Address = first.Dir, first.Address
		r.AddDisk(name, diskBytes)
		all = append(all, newMachine(r))
	}
	group := pipe.Group{Name: "shop", Ready: 5 * time.Second}
	for _, m := range all {
		m.Group = &group
	}
	c := childOf(all)
	server, agent := c.start(t), c.agent("b").start(t)
	all[0].StartAgent(1)
	all[2].StartAgent(1)
	newWriter(all)
	for n := range *kills {
		awaitStored(t, all)
		time.Sleep(rand.N(400 * time.Millisecond))
		if n%2 == 0 {
			stopChild(server)
		} else {
			stopChild(agent)
		}
		for _, m := range all {
			m.goesOn()
		}
		if n%2 == 0 {
			server = c.start(t)
		} else {
			agent = c.agent("b").start(t)
		}
	}
	awaitStored(t, all)
	requireInOrder(t, all)
	requireShortFreezes(t, all)
}

// misses reports whether the machine has missed the group's last round. On a busy machine
// others may have missed it too.
func misses(st pipe.Status, name string) bool {
	return slices.ContainsFunc(st.Group.Missed, func(m pipe.Missing) bool { return m.Name == name })
}

// awaitStored waits for one more round that all have, as the store has it.
func awaitStored(t *testing.T, all []*machine) {
	t.Helper()
	before := -1
	require.Eventually(t, func() bool {
		for _, m := range all {
			if _, err := os.Stat(m.StoreDir()); err != nil || !stored(m) {
				return false
			}
		}
		now := len(rounds(all))
		if before < 0 {
			before = now
		}
		return now > before
	}, 2*rig.Limit, 50*time.Millisecond, "a point in common")
}

func stored(m *machine) bool {
	r, err := m.TryReader()
	if err != nil {
		return false
	}
	return r.Close() == nil
}

func requireShortFreezes(t *testing.T, all []*machine) {
	t.Helper()
	for _, m := range all {
		for _, p := range m.Points() {
			require.Less(t, p.Freeze, freezeLimit+thawing, "%s: point %d", m.Name, p.ID)
		}
	}
}
