// Package registry is what the configuration server remembers on its own disk:
// enrolment tokens, enrolled peers and when they were heard of, revocations, what
// each machine's agents are to do, and the data keys. It is one bbolt file; data
// keys are in it only wrapped with a master key, which is a file of its own.
//
// Workflows hold the truth about machines; what stands here can be told anew,
// except the keys and the peers.
package registry

import (
	"crypto/cipher"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"drover/datapath/ident"
	"drover/worker/statefile"
)

// Files, in the state folder.
const (
	dbFile     = "registry.db"
	masterFile = "master.key"
)

// lockTimeout bounds the wait for another process that has the file open.
const lockTimeout = 5 * time.Second

// Buckets. Names and the form of the values stay readable for later versions:
// JSON, fields are only added.
var (
	bucketMeta        = []byte("meta")
	bucketTokens      = []byte("tokens")      // SHA-256 of the secret -> token
	bucketPeers       = []byte("peers")       // role/name -> enrolled
	bucketHeard       = []byte("heard")       // role/name NUL instance -> heard
	bucketRevoked     = []byte("revoked")     // role/name -> revocation
	bucketAssignments = []byte("assignments") // machine -> controlapi.Assignment
	bucketKeys        = []byte("keys")        // machine, key id -> wrapped key
	bucketCurrentKeys = []byte("current-keys")
)

// Errors that callers tell apart.
var (
	ErrUnknown = errors.New("not known to this configuration server")
	ErrRevoked = errors.New("the certificate was revoked")
	ErrInvalid = errors.New("invalid")
	ErrClosed  = errors.New("the registry is closed")
)

// Registry is the open file. It is safe for concurrent use.
type Registry struct {
	db     *bolt.DB
	master cipher.AEAD
	now    func() time.Time

	mu      sync.Mutex
	heard   map[ident.Peer]map[string]*heard // by instance
	revoked map[ident.Peer]revocation
	waiters map[ident.MachineID]chan struct{} // closed when the assignment changes
	closed  chan struct{}
	once    sync.Once
}

// Open opens the registry in the state folder dir, or makes it there.
func Open(dir string) (*Registry, error) { return OpenWithClock(dir, time.Now) }

// OpenWithClock is Open with another clock, by which tokens and revocations expire.
func OpenWithClock(dir string, now func() time.Time) (*Registry, error) {
	path := filepath.Join(dir, dbFile)
	db, err := bolt.Open(path, statefile.FileMode, &bolt.Options{Timeout: lockTimeout})
	if err != nil {
		if errors.Is(err, berrors.ErrTimeout) {
			err = errors.New("another process has it open; stop the other configuration server")
		}
		return nil, fmt.Errorf("open the registry %s: %w", path, err)
	}
	r := &Registry{db: db, now: now, heard: map[ident.Peer]map[string]*heard{}, revoked: map[ident.Peer]revocation{},
		waiters: map[ident.MachineID]chan struct{}{}, closed: make(chan struct{})}
	if err := r.load(dir); err != nil {
		return nil, errors.Join(fmt.Errorf("open the registry %s: %w", path, err), db.Close())
	}
	return r, nil
}

func (r *Registry) load(dir string) error {
	err := r.db.Update(func(tx *bolt.Tx) error {
		for _, b := range [][]byte{bucketMeta, bucketTokens, bucketPeers, bucketHeard, bucketRevoked, bucketAssignments, bucketKeys, bucketCurrentKeys} {
			if _, err := tx.CreateBucketIfNotExists(b); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := r.openMaster(filepath.Join(dir, masterFile)); err != nil {
		return err
	}
	return r.db.View(func(tx *bolt.Tx) error {
		return errors.Join(r.loadHeard(tx), r.loadRevoked(tx))
	})
}

// Close keeps what was not yet kept and closes the file. Whoever waits is woken
// with [ErrClosed].
func (r *Registry) Close() error {
	var err error
	r.once.Do(func() {
		close(r.closed)
		if err = errors.Join(r.flushHeard(), r.db.Close()); err != nil {
			err = fmt.Errorf("close the registry: %w", err)
		}
	})
	return err
}

var serverName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)

// CheckPeer says whether the peer can be enrolled: an agent by its machine's id,
// a server by a name.
func CheckPeer(p ident.Peer) error {
	switch p.Role {
	case ident.RoleAgent:
		if _, err := p.Machine(); err != nil {
			return fmt.Errorf("%w peer: %w", ErrInvalid, err)
		}
		return nil
	case ident.RoleProcessServer, ident.RoleMasterTarget, ident.RoleRelay:
		if !serverName.MatchString(p.Name) {
			return fmt.Errorf("%w server name %q: want up to 63 letters, digits, '.', '_' and '-', beginning with a letter or digit", ErrInvalid, p.Name)
		}
		return nil
	}
	return fmt.Errorf("%w role %q: want %s, %s, %s or %s", ErrInvalid, p.Role, ident.RoleAgent, ident.RoleProcessServer, ident.RoleMasterTarget, ident.RoleRelay)
}

func peerKey(p ident.Peer) []byte { return []byte(p.String()) }

func parsePeerKey(b []byte) (ident.Peer, error) {
	role, name, ok := strings.Cut(string(b), "/")
	if !ok {
		return ident.Peer{}, fmt.Errorf("damaged: peer %q in the file; restore it from the backup", b)
	}
	return ident.Peer{Role: ident.Role(role), Name: name}, nil
}

func put(tx *bolt.Tx, bucket, key []byte, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return tx.Bucket(bucket).Put(key, b)
}

// get reads a value; found is false when there is none.
func get(tx *bolt.Tx, bucket, key []byte, v any) (found bool, err error) {
	b := tx.Bucket(bucket).Get(key)
	if b == nil {
		return false, nil
	}
	return true, decode(bucket, b, v)
}

func decode(bucket, b []byte, v any) error {
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("damaged: an entry of %s cannot be read (%w); restore the registry from the backup", bucket, err)
	}
	return nil
}
