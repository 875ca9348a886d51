package registry

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"drover/agent/controlapi"
	"drover/datapath/ident"
)

// ErrOldEpoch is wrapped by [Registry.SetAssignment] when the machine was assigned
// in a newer epoch already.
var ErrOldEpoch = errors.New("the machine was assigned in a newer epoch")

// SetAssignment tells the machine's agents what to do and wakes those who wait.
// Its Version is given here: one more than the last, unless nothing changed.
func (r *Registry) SetAssignment(a controlapi.Assignment) error {
	if a.Machine.IsZero() || (a.Action != controlapi.ActionStandby && a.Action != controlapi.ActionReplicate) {
		return fmt.Errorf("assign machine %s: %w: action %q; want %s or %s and a machine", a.Machine, ErrInvalid, a.Action,
			controlapi.ActionStandby, controlapi.ActionReplicate)
	}
	changed := false
	err := r.db.Update(func(tx *bolt.Tx) error {
		var last controlapi.Assignment
		found, err := get(tx, bucketAssignments, a.Machine[:], &last)
		if err != nil {
			return err
		}
		if a.Epoch < last.Epoch {
			return fmt.Errorf("%w: %d, this is for %d", ErrOldEpoch, last.Epoch, a.Epoch)
		}
		a.Version = last.Version
		if found && equal(a, last) {
			if a.Group == last.Group {
				return nil
			}
			return put(tx, bucketAssignments, a.Machine[:], a) // nothing that the agent need know
		}
		a.Version++
		changed = true
		return put(tx, bucketAssignments, a.Machine[:], a)
	})
	if err != nil {
		return fmt.Errorf("assign machine %s: %w", a.Machine, err)
	}
	if changed {
		r.wake(a.Machine)
	}
	return nil
}

func equal(a, b controlapi.Assignment) bool {
	disks := slices.Equal(a.Disks, b.Disks)
	a.Disks, b.Disks = nil, nil
	return disks && a.Version == b.Version && a.Action == b.Action && a.Machine == b.Machine && a.Epoch == b.Epoch &&
		a.Instance == b.Instance && a.Server == b.Server && a.Role == b.Role && a.Address == b.Address && a.Via == b.Via && a.Reach == b.Reach && a.Reason == b.Reason
}

// Assignment gives what the machine's agents were told last; false when nothing
// was, or the registry cannot be read.
func (r *Registry) Assignment(machine ident.MachineID) (controlapi.Assignment, bool) {
	a, found, err := r.assignment(machine)
	return a, found && err == nil
}

func (r *Registry) assignment(machine ident.MachineID) (a controlapi.Assignment, found bool, err error) {
	err = r.db.View(func(tx *bolt.Tx) error {
		found, err = get(tx, bucketAssignments, machine[:], &a)
		return err
	})
	if err == nil && !found {
		a = controlapi.Assignment{Action: controlapi.ActionStandby, Machine: machine, Reason: "not assigned yet"}
	}
	return a, found, err
}

// WaitAssignment gives the machine's assignment as soon as its version differs from
// the given one, or the unchanged one after wait. A machine never assigned has
// version 0 and stands by.
func (r *Registry) WaitAssignment(ctx context.Context, machine ident.MachineID, version uint64, wait time.Duration) (controlapi.Assignment, error) {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		changed := r.watch(machine) // before reading, so that no change is missed
		a, _, err := r.assignment(machine)
		if err != nil {
			if errors.Is(err, berrors.ErrDatabaseNotOpen) {
				err = ErrClosed
			}
			return controlapi.Assignment{}, fmt.Errorf("read the assignment of machine %s: %w", machine, err)
		}
		if a.Version != version || wait <= 0 {
			return a, nil
		}
		select {
		case <-changed:
		case <-timer.C:
			return a, nil
		case <-r.closed:
			return controlapi.Assignment{}, fmt.Errorf("wait for the assignment of machine %s: %w", machine, ErrClosed)
		case <-ctx.Done():
			return controlapi.Assignment{}, fmt.Errorf("wait for the assignment of machine %s: %w", machine, context.Cause(ctx))
		}
	}
}

// watch gives a channel that is closed at the machine's next change. There is at
// most one per machine.
func (r *Registry) watch(machine ident.MachineID) <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	ch, ok := r.waiters[machine]
	if !ok {
		ch = make(chan struct{})
		r.waiters[machine] = ch
	}
	return ch
}

func (r *Registry) wake(machine ident.MachineID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if ch, ok := r.waiters[machine]; ok {
		close(ch)
		delete(r.waiters, machine)
	}
}

// load is how many machines a server has, in all and by consistency group.
type load struct {
	machines int
	groups   map[string]int
}

// assigned counts the machines that replicate to each server.
func assigned(tx *bolt.Tx) (map[ident.Peer]load, error) {
	n := map[ident.Peer]load{}
	err := tx.Bucket(bucketAssignments).ForEach(func(_, v []byte) error {
		var a controlapi.Assignment
		if err := decode(bucketAssignments, v, &a); err != nil {
			return err
		}
		if a.Action == controlapi.ActionReplicate {
			peer := ident.Peer{Role: a.Role, Name: a.Server}
			l := n[peer]
			if l.machines++; a.Group != "" {
				if l.groups == nil {
					l.groups = map[string]int{}
				}
				l.groups[a.Group]++
			}
			n[peer] = l
		}
		return nil
	})
	return n, err
}
