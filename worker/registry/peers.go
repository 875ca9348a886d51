package registry

import (
	"fmt"
	"slices"
	"strings"
	"time"

	bolt "go.etcd.io/bbolt"

	"drover/datapath/health"
	"drover/datapath/ident"
)

// unknownLife is how long a revocation holds for a peer whose certificates this
// registry does not know: no certificate lives longer.
const unknownLife = 90 * 24 * time.Hour

// Enrolment is a certificate that a peer gets.
type Enrolment struct {
	Peer        ident.Peer
	Serial      string
	Expires     time.Time
	Instance    string
	Version     string
	DataAddress string
}

type enrolled struct {
	Serial      string    `json:"serial"` // of the newest certificate
	Instance    string    `json:"instance"`
	Version     string    `json:"version"`
	DataAddress string    `json:"dataAddress,omitempty"`
	Enrolled    time.Time `json:"enrolled"`
	Renewed     time.Time `json:"renewed,omitzero"`
	Expires     time.Time `json:"expires"` // of the certificate that lives longest
}

type revocation struct {
	At    time.Time `json:"at"`
	Until time.Time `json:"until"` // when its last certificate has expired
}

// Enrolled keeps a peer's first certificate. Call it before the certificate leaves
// the house: what is not kept cannot be revoked.
func (r *Registry) Enrolled(e Enrolment) error {
	now := r.now()
	return r.keep(e.Peer, e.Expires, func(p *enrolled) {
		p.Serial, p.Instance, p.Version, p.DataAddress = e.Serial, clip(canonical(e.Instance), maxInstance), clip(e.Version, maxVersion), clip(e.DataAddress, maxAddress)
		p.Enrolled, p.Renewed = now, time.Time{}
	})
}

// Renewed keeps a peer's further certificate; it wraps [ErrRevoked] for a revoked one.
func (r *Registry) Renewed(peer ident.Peer, serial string, expires time.Time) error {
	now := r.now()
	return r.keep(peer, expires, func(p *enrolled) { p.Serial, p.Renewed = serial, now })
}

func (r *Registry) keep(peer ident.Peer, expires time.Time, change func(*enrolled)) error {
	err := r.db.Update(func(tx *bolt.Tx) error {
		if tx.Bucket(bucketRevoked).Get(peerKey(peer)) != nil {
			return ErrRevoked
		}
		var p enrolled
		if _, err := get(tx, bucketPeers, peerKey(peer), &p); err != nil {
			return err
		}
		change(&p)
		if expires.After(p.Expires) {
			p.Expires = expires
		}
		return put(tx, bucketPeers, peerKey(peer), p)
	})
	if err != nil {
		return fmt.Errorf("keep the certificate of %s: %w", peer, err)
	}
	return nil
}

// Revoke refuses the peer's certificates from now on and forgets its tokens. A
// peer that was never heard of wraps [ErrUnknown].
func (r *Registry) Revoke(peer ident.Peer) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	rev := revocation{At: r.now()}
	err := r.db.Update(func(tx *bolt.Tx) error {
		var p enrolled
		found, err := get(tx, bucketPeers, peerKey(peer), &p)
		if err != nil {
			return err
		}
		dropped, err := dropTokens(tx, peer)
		if err != nil {
			return err
		}
		switch {
		case found:
			rev.Until = p.Expires
		case len(r.heard[peer]) != 0:
			rev.Until = rev.At.Add(unknownLife)
		case dropped:
			rev.Until = rev.At
		default:
			return ErrUnknown
		}
		return put(tx, bucketRevoked, peerKey(peer), rev)
	})
	if err != nil {
		return fmt.Errorf("revoke %s: %w", peer, err)
	}
	r.revoked[peer] = rev
	return nil
}

// IsRevoked says whether the peer's certificates are refused.
func (r *Registry) IsRevoked(peer ident.Peer) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, revoked := r.revoked[peer]
	return revoked
}

// Denied lists the machines (ids, sorted) whose agents are revoked while one of
// their certificates may still live.
func (r *Registry) Denied() []string {
	now := r.now()
	r.mu.Lock()
	defer r.mu.Unlock()
	var names []string
	for p, rev := range r.revoked {
		if p.Role == ident.RoleAgent && now.Before(rev.Until) {
			names = append(names, p.Name)
		}
	}
	slices.Sort(names)
	return names
}

func (r *Registry) loadRevoked(tx *bolt.Tx) error {
	return tx.Bucket(bucketRevoked).ForEach(func(k, v []byte) error {
		p, err := parsePeerKey(k)
		if err != nil {
			return err
		}
		var rev revocation
		if err := decode(bucketRevoked, v, &rev); err != nil {
			return err
		}
		r.revoked[p] = rev
		return nil
	})
}

// PeerRecord is an enrolled peer, for people.
type PeerRecord struct {
	Role        ident.Role    `json:"role"`
	Name        string        `json:"name"`
	Serial      string        `json:"serial"`
	Instance    string        `json:"instance"`
	DataAddress string        `json:"dataAddress,omitempty"`
	Enrolled    time.Time     `json:"enrolled"`
	Renewed     time.Time     `json:"renewed,omitzero"`
	Expires     time.Time     `json:"expires"`
	Revoked     bool          `json:"revoked,omitempty"`
	Heard       []AgentRecord `json:"heard,omitempty"` // by instance, newest first
}

// Peers lists all that were ever enrolled, by role and name.
func (r *Registry) Peers() ([]PeerRecord, error) {
	var out []PeerRecord
	err := r.db.View(func(tx *bolt.Tx) error {
		return tx.Bucket(bucketPeers).ForEach(func(k, v []byte) error {
			peer, err := parsePeerKey(k)
			if err != nil {
				return err
			}
			var p enrolled
			if err := decode(bucketPeers, v, &p); err != nil {
				return err
			}
			out = append(out, PeerRecord{Role: peer.Role, Name: peer.Name, Serial: p.Serial, Instance: p.Instance,
				DataAddress: p.DataAddress, Enrolled: p.Enrolled, Renewed: p.Renewed, Expires: p.Expires})
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("list the peers: %w", err)
	}
	// Not inside the transaction: a writer that holds mu may wait for readers.
	for i := range out {
		peer := ident.Peer{Role: out[i].Role, Name: out[i].Name}
		out[i].Revoked, out[i].Heard = r.IsRevoked(peer), r.instances(peer)
	}
	return out, nil
}

// ServerRecord is a process server or master target.
type ServerRecord struct {
	Name        string
	Role        ident.Role
	DataAddress string // host:port for agents
	LastSeen    time.Time
	Version     string
	Assigned    int            // machines that are assigned to it now
	Groups      map[string]int // of them, by consistency group
	Health      *health.Report // as it said last; nil: it never did
}

// Servers lists the servers of a role that are enrolled and not revoked, by name.
// One that was not heard of yet has no LastSeen.
func (r *Registry) Servers(role ident.Role) ([]ServerRecord, error) {
	found := map[ident.Peer]ServerRecord{}
	var machines map[ident.Peer]load
	err := r.db.View(func(tx *bolt.Tx) (err error) {
		if machines, err = assigned(tx); err != nil {
			return err
		}
		return tx.Bucket(bucketPeers).ForEach(func(k, v []byte) error {
			peer, err := parsePeerKey(k)
			if err != nil || peer.Role != role {
				return err
			}
			var p enrolled
			if err := decode(bucketPeers, v, &p); err != nil {
				return err
			}
			found[peer] = ServerRecord{Name: peer.Name, Role: role, DataAddress: p.DataAddress, Version: p.Version}
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("list the servers of role %s: %w", role, err)
	}
	r.mu.Lock()
	for peer := range r.heard {
		if peer.Role == role {
			s := found[peer]
			s.Name, s.Role = peer.Name, role
			found[peer] = r.newest(peer, s)
		}
	}
	for peer := range found {
		if _, revoked := r.revoked[peer]; revoked {
			delete(found, peer)
		}
	}
	r.mu.Unlock()
	out := make([]ServerRecord, 0, len(found))
	for peer, s := range found {
		s.Assigned, s.Groups = machines[peer].machines, machines[peer].groups
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b ServerRecord) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}
