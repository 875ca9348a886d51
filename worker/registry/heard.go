package registry

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	bolt "go.etcd.io/bbolt"

	"drover/agent/controlapi"
	"drover/datapath/health"
	"drover/datapath/ident"
)

// Bounds of what is kept of heartbeats. Texts are cut, in bytes.
const (
	maxInstances = 16 // of one peer; the one not heard of for longest goes
	maxInstance  = 128
	maxVersion   = 128
	maxState     = 64
	maxDetail    = 1024
	maxAddress   = 261         // longest host name, colon, port, brackets
	maxInventory = 64 << 10    // JSON bytes
	keepEvery    = time.Minute // heartbeats that tell nothing new are written so often
)

// heard is the last heartbeat of one instance of a peer.
type heard struct {
	Version     string                `json:"version"`
	LastSeen    time.Time             `json:"lastSeen"` // by our clock
	State       string                `json:"state"`
	Detail      string                `json:"detail,omitempty"`
	DataAddress string                `json:"dataAddress,omitempty"`
	Inventory   *controlapi.Inventory `json:"inventory,omitempty"`
	Health      *health.Report        `json:"health,omitempty"`
	Reached     *controlapi.Reached   `json:"reached,omitempty"`

	kept time.Time // LastSeen as it stands in the file
}

// AgentRecord is one instance of a machine's agent: the original and its
// failed-over copy have the same certificate and differ in the instance.
type AgentRecord struct {
	Instance  string                `json:"instance"`
	Version   string                `json:"version"`
	LastSeen  time.Time             `json:"lastSeen"` // by the configuration server's clock
	State     string                `json:"state"`
	Detail    string                `json:"detail,omitempty"`
	Inventory *controlapi.Inventory `json:"inventory,omitempty"` // the last it sent
	Reached   *controlapi.Reached   `json:"reached,omitempty"`   // what it said now
}

// Heard takes a heartbeat of the peer, received at the given time. Without an
// inventory the one sent before stays. What only says "still here" is written to
// the file once a minute.
func (r *Registry) Heard(peer ident.Peer, hb controlapi.Heartbeat, at time.Time) error {
	h := &heard{Version: clip(hb.Version, maxVersion), LastSeen: at, State: clip(hb.State, maxState),
		Detail: clip(hb.Detail, maxDetail), DataAddress: clip(hb.DataAddress, maxAddress), Inventory: hb.Inventory, Health: clipHealth(hb.Health), Reached: clipReached(hb.Reached)}
	if hb.Inventory != nil {
		if b, err := json.Marshal(hb.Inventory); err != nil || len(b) > maxInventory {
			return fmt.Errorf("heartbeat of %s: %w inventory of %d bytes, at most %d", peer, ErrInvalid, len(b), maxInventory)
		}
	}
	instance := clip(canonical(hb.Instance), maxInstance)
	news, gone := r.remember(peer, instance, h)
	if !news {
		return nil
	}
	err := r.db.Batch(func(tx *bolt.Tx) error {
		if gone != nil {
			if err := tx.Bucket(bucketHeard).Delete(heardKey(peer, *gone)); err != nil {
				return err
			}
		}
		return put(tx, bucketHeard, heardKey(peer, instance), h)
	})
	if err != nil {
		return fmt.Errorf("keep the heartbeat of %s: %w", peer, err)
	}
	return nil
}

// remember puts the heartbeat in place. It says whether there is something to
// write, and which instance had to go. An entry is never changed once it is in.
func (r *Registry) remember(peer ident.Peer, instance string, h *heard) (news bool, gone *string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := r.heard[peer]
	if all == nil {
		all = map[string]*heard{}
		r.heard[peer] = all
	}
	last := all[instance]
	if last == nil {
		h.kept = h.LastSeen
		if len(all) >= maxInstances {
			gone = oldest(all)
			delete(all, *gone)
		}
		all[instance] = h
		return true, gone
	}
	if h.LastSeen.Before(last.LastSeen) {
		return false, nil // overtaken by a newer one
	}
	news = h.Inventory != nil || h.LastSeen.Sub(last.kept) >= keepEvery || h.Version != last.Version ||
		h.State != last.State || h.Detail != last.Detail || h.DataAddress != last.DataAddress || statusOf(h.Health) != statusOf(last.Health)
	if h.Inventory == nil {
		h.Inventory = last.Inventory
	}
	h.kept = last.kept
	if news {
		h.kept = h.LastSeen
	}
	all[instance] = h
	return news, nil
}

func oldest(all map[string]*heard) *string {
	var found string
	var at time.Time
	for instance, h := range all {
		if at.IsZero() || h.LastSeen.Before(at) {
			found, at = instance, h.LastSeen
		}
	}
	return &found
}

// Agents lists the instances of the machine's agent that were heard of, newest
// first; none of a revoked one.
func (r *Registry) Agents(machine ident.MachineID) ([]AgentRecord, error) {
	peer := ident.Peer{Role: ident.RoleAgent, Name: machine.String()}
	if r.IsRevoked(peer) {
		return nil, nil
	}
	return r.instances(peer), nil
}

func (r *Registry) instances(peer ident.Peer) []AgentRecord {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []AgentRecord
	for instance, h := range r.heard[peer] {
		out = append(out, AgentRecord{Instance: instance, Version: h.Version, LastSeen: h.LastSeen, State: h.State, Detail: h.Detail, Inventory: h.Inventory, Reached: h.Reached})
	}
	slices.SortFunc(out, func(a, b AgentRecord) int {
		if c := b.LastSeen.Compare(a.LastSeen); c != 0 {
			return c
		}
		return strings.Compare(a.Instance, b.Instance)
	})
	return out
}

// newest fills a server's record from its newest heartbeat. The caller holds mu.
func (r *Registry) newest(peer ident.Peer, s ServerRecord) ServerRecord {
	for _, h := range r.heard[peer] {
		if h.LastSeen.Before(s.LastSeen) {
			continue
		}
		s.LastSeen, s.Version, s.Health = h.LastSeen, h.Version, h.Health
		if h.DataAddress != "" {
			s.DataAddress = h.DataAddress
		}
	}
	return s
}

// clipHealth bounds what a server says of its health.
func clipHealth(r *health.Report) *health.Report {
	if r == nil {
		return nil
	}
	out := &health.Report{Status: health.Status(clip(string(r.Status), maxState)), Time: r.Time}
	for _, f := range r.Findings[:min(len(r.Findings), health.MaxFindings)] {
		out.Findings = append(out.Findings, health.Finding{Code: clip(f.Code, maxState), Component: clip(f.Component, maxState),
			Status: health.Status(clip(string(f.Status), maxState)), Cause: clip(f.Cause, maxDetail), Action: clip(f.Action, maxDetail)})
	}
	return out
}

// clipReached bounds what an agent says of a server.
func clipReached(r *controlapi.Reached) *controlapi.Reached {
	if r == nil {
		return nil
	}
	return &controlapi.Reached{Address: clip(r.Address, maxAddress), Via: clip(r.Via, maxAddress), Error: clip(r.Error, maxDetail)}
}

func statusOf(r *health.Report) health.Status {
	if r == nil {
		return ""
	}
	return r.Status
}

func heardKey(peer ident.Peer, instance string) []byte {
	return []byte(peer.String() + "\x00" + instance)
}

func (r *Registry) loadHeard(tx *bolt.Tx) error {
	return tx.Bucket(bucketHeard).ForEach(func(k, v []byte) error {
		name, instance, _ := strings.Cut(string(k), "\x00")
		peer, err := parsePeerKey([]byte(name))
		if err != nil {
			return err
		}
		h := &heard{}
		if err := decode(bucketHeard, v, h); err != nil {
			return err
		}
		h.kept = h.LastSeen
		if r.heard[peer] == nil {
			r.heard[peer] = map[string]*heard{}
		}
		r.heard[peer][instance] = h
		return nil
	})
}

// flushHeard writes what was heard since it was last kept.
func (r *Registry) flushHeard() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.db.Update(func(tx *bolt.Tx) error {
		for peer, all := range r.heard {
			for instance, h := range all {
				if h.kept.Equal(h.LastSeen) {
					continue
				}
				if err := put(tx, bucketHeard, heardKey(peer, instance), h); err != nil {
					return err
				}
			}
		}
		return nil
	})
}
