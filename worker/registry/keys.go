package registry

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"

	bolt "go.etcd.io/bbolt"

	"drover/agent/controlapi"
	"drover/datapath/ident"
	"drover/worker/statefile"
)

// Sizes of keys, in bytes, and how many a machine may have.
const (
	masterSize = 32
	idSize     = 8
	maxKeys    = 1024
	maxKeyID   = 64
)

// metaMaster holds a value that only the right master key gives.
var metaMaster = []byte("master-check")

// openMaster reads the master key, or makes it for a new registry. A registry that
// has seen a master key takes no other: its data keys would be lost.
func (r *Registry) openMaster(path string) error {
	var check []byte
	err := r.db.View(func(tx *bolt.Tx) error {
		check = append(check, tx.Bucket(bucketMeta).Get(metaMaster)...)
		return nil
	})
	if err != nil {
		return err
	}
	key, err := statefile.Read(path)
	if errors.Is(err, os.ErrNotExist) {
		if len(check) != 0 {
			return fmt.Errorf("%s is missing: without it no data key can be read; restore it from the backup", path)
		}
		key = make([]byte, masterSize)
		if _, err = rand.Read(key); err == nil {
			err = statefile.Create(path, key)
		}
	}
	if err != nil {
		return err
	}
	if len(key) != masterSize {
		return fmt.Errorf("%s has %d bytes, want %d; restore it from the backup", path, len(key), masterSize)
	}
	mac := hmac.New(sha256.New, key)
	_, _ = mac.Write([]byte("drover registry master key"))
	if sum := mac.Sum(nil); len(check) == 0 {
		err = r.db.Update(func(tx *bolt.Tx) error { return tx.Bucket(bucketMeta).Put(metaMaster, sum) })
	} else if !hmac.Equal(sum, check) {
		err = fmt.Errorf("%s is not the master key of this registry; restore both from the same backup", path)
	}
	if err != nil {
		return err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return err
	}
	r.master, err = cipher.NewGCM(block)
	return err
}

// CurrentKey gives the id of the machine's data key for new data, and makes the
// key the first time.
func (r *Registry) CurrentKey(machine ident.MachineID) (string, error) {
	var id string
	if err := r.db.View(func(tx *bolt.Tx) error { id = currentKey(tx, machine); return nil }); err != nil {
		return "", fmt.Errorf("data key of machine %s: %w", machine, err)
	}
	if id != "" {
		return id, nil
	}
	err := r.db.Update(func(tx *bolt.Tx) (err error) {
		if id = currentKey(tx, machine); id != "" { // somebody was faster
			return nil
		}
		id, err = r.addKey(tx, machine)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("make a data key for machine %s: %w", machine, err)
	}
	return id, nil
}

// RotateKey makes a new current key for the machine; the others still read what
// was written with them.
func (r *Registry) RotateKey(machine ident.MachineID) (string, error) {
	var id string
	err := r.db.Update(func(tx *bolt.Tx) (err error) {
		id, err = r.addKey(tx, machine)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("make a data key for machine %s: %w", machine, err)
	}
	return id, nil
}

func currentKey(tx *bolt.Tx, machine ident.MachineID) string {
	return string(tx.Bucket(bucketCurrentKeys).Get(machine[:]))
}

func (r *Registry) addKey(tx *bolt.Tx, machine ident.MachineID) (string, error) {
	if machine.IsZero() {
		return "", fmt.Errorf("%w: no machine", ErrInvalid)
	}
	if n := len(keysOf(tx, machine)); n >= maxKeys {
		return "", fmt.Errorf("it has %d keys, the most it may have", n)
	}
	var raw [idSize]byte
	var secret [controlapi.KeySize]byte
	nonce := make([]byte, r.master.NonceSize())
	for _, b := range [][]byte{raw[:], secret[:], nonce} {
		if _, err := rand.Read(b); err != nil {
			return "", err
		}
	}
	id := hex.EncodeToString(raw[:])
	entry := keyEntry(machine, id)
	// The entry's key is authenticated too, so that wrapped keys cannot be swapped.
	wrapped := r.master.Seal(nonce, nonce, secret[:], entry)
	if err := tx.Bucket(bucketKeys).Put(entry, wrapped); err != nil {
		return "", err
	}
	return id, tx.Bucket(bucketCurrentKeys).Put(machine[:], []byte(id))
}

// Key gives a machine's data key. With an empty id it is the current one, made
// when there is none. An id that does not exist wraps [ErrUnknown].
func (r *Registry) Key(machine ident.MachineID, id string) (controlapi.Key, error) {
	if id == "" {
		var err error
		if id, err = r.CurrentKey(machine); err != nil {
			return controlapi.Key{}, err
		}
	}
	var secret []byte
	err := r.db.View(func(tx *bolt.Tx) error {
		entry := keyEntry(machine, id)
		wrapped := tx.Bucket(bucketKeys).Get(entry)
		if len(id) > maxKeyID || wrapped == nil {
			return ErrUnknown
		}
		n := r.master.NonceSize()
		if len(wrapped) < n {
			return errors.New("damaged in the registry; restore it from the backup")
		}
		var err error
		if secret, err = r.master.Open(nil, wrapped[:n], wrapped[n:], entry); err != nil {
			return errors.New("cannot be unwrapped: the registry is damaged; restore it from the backup")
		}
		return nil
	})
	if err != nil {
		return controlapi.Key{}, fmt.Errorf("data key %q of machine %s: %w", clip(id, maxKeyID), machine, err)
	}
	return controlapi.Key{ID: id, Secret: secret}, nil
}

// DropKeys forgets the machine's data keys: what was encrypted with them cannot
// be read again by anybody.
func (r *Registry) DropKeys(machine ident.MachineID) error {
	err := r.db.Update(func(tx *bolt.Tx) error {
		for _, k := range keysOf(tx, machine) {
			if err := tx.Bucket(bucketKeys).Delete(k); err != nil {
				return err
			}
		}
		return tx.Bucket(bucketCurrentKeys).Delete(machine[:])
	})
	if err != nil {
		return fmt.Errorf("drop the data keys of machine %s: %w", machine, err)
	}
	return nil
}

func keysOf(tx *bolt.Tx, machine ident.MachineID) [][]byte {
	var keys [][]byte
	c := tx.Bucket(bucketKeys).Cursor()
	for k, _ := c.Seek(machine[:]); k != nil && len(k) >= len(machine) && ident.MachineID(k[:len(machine)]) == machine; k, _ = c.Next() {
		keys = append(keys, append([]byte(nil), k...))
	}
	return keys
}

func keyEntry(machine ident.MachineID, id string) []byte {
	return append(machine[:], id...)
}
