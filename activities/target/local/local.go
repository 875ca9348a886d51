// Package local is a target cloud in a directory: machines with power state and
// disks that are files, networks from a file. It serves a second site that has
// its own way to run the machines (whatever watches the directory), the
// demonstration and the tests.
//
//	networks.yaml                 what networks there are; written by the operator
//	machines/<id>/machine.json    a machine; its id is derived from its Ref
//	machines/<id>/<disk id>.img   its disks
//	lock                          held while machines are changed
package local

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"drover/activities/target"
	"drover/datapath/durable"
	"drover/datapath/ident"
)

// MaxMachines bounds what a directory may hold.
const MaxMachines = 10_000

// Cloud is a target cloud in a directory. Safe for concurrent use, in several
// processes.
type Cloud struct{ dir string }

var _ target.Cloud = (*Cloud)(nil)

// Open opens the directory, made when absent.
func Open(dir string) (*Cloud, error) {
	if err := os.MkdirAll(filepath.Join(dir, "machines"), 0o750); err != nil {
		return nil, fmt.Errorf("open the local target: %w", err)
	}
	return &Cloud{dir: dir}, nil
}

// Machine is machine.json.
type Machine struct {
	Ref     target.Ref `json:"ref"`
	Created bool       `json:"created"` // false while only disks were made
	target.Machine
	Test bool `json:"test"`
}

// namespace is the root of the ids that are derived here (UUID version 5).
var namespace = uuid.MustParse("5d7d1f0c-6a9e-4f0b-8a55-6c6f63616c31")

// id names a machine's directory: never made from the name itself.
func id(ref target.Ref) string {
	return uuid.NewSHA1(namespace, []byte(ref.Name+"\x00"+ref.Run)).String()
}

func (c *Cloud) path(ref target.Ref, elem ...string) string {
	return filepath.Join(append([]string{c.dir, "machines", id(ref)}, elem...)...)
}

// locked runs f while no other process changes machines.
func (c *Cloud) locked(f func() error) (err error) {
	lock, err := os.OpenFile(filepath.Join(c.dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("lock the local target: %w", err)
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	for {
		err := unix.Flock(int(lock.Fd()), unix.LOCK_EX)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("lock the local target: %w", err)
		}
	}
	return f()
}

// load reads a machine; target.ErrNotFound when there is none.
func (c *Cloud) load(ref target.Ref) (Machine, error) {
	m, err := read(c.path(ref, "machine.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return m, fmt.Errorf("machine %s of %s: %w", ref.Name, ref.Run, target.ErrNotFound)
	}
	return m, err
}

func read(path string) (Machine, error) {
	var m Machine
	b, err := os.ReadFile(path)
	if err != nil {
		return m, err
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return m, fmt.Errorf("read %s: %w", path, err)
	}
	return m, nil
}

// save publishes a machine in one step.
func (c *Cloud) save(m Machine) error {
	b, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	dir := c.path(m.Ref)
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(dir, "machine.json"), b, 0o600)
}

// all reads every machine, those under construction included.
func (c *Cloud) all() ([]Machine, error) { return List(c.dir) }

// List reads the machines of a directory.
func List(dir string) ([]Machine, error) {
	entries, err := os.ReadDir(filepath.Join(dir, "machines"))
	if err != nil {
		return nil, err
	}
	if len(entries) > MaxMachines {
		return nil, fmt.Errorf("the local target has %d machines, at most %d", len(entries), MaxMachines)
	}
	var out []Machine
	for _, e := range entries {
		m, err := read(filepath.Join(dir, "machines", e.Name(), "machine.json"))
		if errors.Is(err, fs.ErrNotExist) {
			continue // being made or deleted
		}
		if err != nil {
			return nil, err
		}
		out = append(out, m)
	}
	return out, nil
}

// Sizes lists what the directory offers: there is no hardware behind it.
func (c *Cloud) Sizes(context.Context) ([]target.Size, error) {
	return []target.Size{
		{Name: "local-2-4", CPUs: 2, MemoryMB: 4 << 10, MaxDisks: 8},
		{Name: "local-4-16", CPUs: 4, MemoryMB: 16 << 10, MaxDisks: 16},
		{Name: "local-16-64", CPUs: 16, MemoryMB: 64 << 10, MaxDisks: 64},
		{Name: "local-64-512", CPUs: 64, MemoryMB: 512 << 10, MaxDisks: 64},
	}, nil
}

// CreateMachine makes the machine from its disks, which must be filled.
func (c *Cloud) CreateMachine(_ context.Context, ref target.Ref, spec target.MachineSpec) (target.Machine, error) {
	var out Machine
	err := c.locked(func() error {
		m, err := c.load(ref)
		if err != nil || m.Created {
			out = m
			return err
		}
		for _, d := range m.Disks {
			if !d.Filled {
				return fmt.Errorf("disk %s of machine %s was not filled", d.Name, ref.Name)
			}
		}
		address, err := c.address(spec.Network, spec.Subnet, spec.Address)
		if err != nil {
			return err
		}
		m.Name, m.Size, m.Network, m.Address, m.Test = ref.Name, spec.Size, spec.Network, address, spec.Test
		m.Instance = uuid.NewSHA1(namespace, []byte("instance\x00"+id(ref))).String()
		m.Tags, m.Created = maps.Clone(spec.Tags), true
		out = m
		return c.save(m)
	})
	return out.Machine, err
}

// Start switches the machine on.
func (c *Cloud) Start(_ context.Context, ref target.Ref) (target.Machine, error) {
	return c.power(ref, true)
}

// Stop switches the machine off.
func (c *Cloud) Stop(_ context.Context, ref target.Ref) error {
	_, err := c.power(ref, false)
	return err
}

func (c *Cloud) power(ref target.Ref, on bool) (target.Machine, error) {
	var out Machine
	err := c.locked(func() (err error) {
		if out, err = c.load(ref); err != nil {
			return err
		}
		if !out.Created {
			return fmt.Errorf("machine %s of %s was not made yet: %w", ref.Name, ref.Run, target.ErrNotFound)
		}
		if out.Running == on {
			return nil
		}
		out.Running = on
		return c.save(out)
	})
	return out.Machine, err
}

// Check says whether the machine runs and its disks are whole. There is no guest
// to ask.
func (c *Cloud) Check(_ context.Context, ref target.Ref) (bool, string, error) {
	m, err := c.load(ref)
	if err != nil {
		return false, "", err
	}
	if !m.Running {
		return false, "switched off", nil
	}
	for _, d := range m.Disks {
		info, err := os.Stat(d.Location)
		if err != nil {
			return false, fmt.Sprintf("disk %s: %v", d.Name, err), nil
		}
		if info.Size() != d.Size {
			return false, fmt.Sprintf("disk %s is not whole", d.Name), nil
		}
	}
	return true, fmt.Sprintf("running at %s with %d disks", m.Address, len(m.Disks)), nil
}

// Delete removes the machine with its disks.
func (c *Cloud) Delete(_ context.Context, ref target.Ref) error {
	return c.locked(func() error {
		// The record goes first: what has none is no machine any more.
		if err := os.Remove(c.path(ref, "machine.json")); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return os.RemoveAll(c.path(ref))
	})
}

// diskFile is the file of a disk.
func (c *Cloud) diskFile(ref target.Ref, disk ident.DiskID) string {
	return c.path(ref, disk.String()+".img")
}
