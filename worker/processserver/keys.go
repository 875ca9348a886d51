package processserver

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"drover/agent/controlapi"
	"drover/datapath/changeset"
	"drover/datapath/ident"
)

// maxKeys bounds the keys held in memory; beyond it an arbitrary other machine's
// key is forgotten and asked for again when it is needed.
const maxKeys = 4096

// keySource is the part of the control client that keys need.
type keySource interface {
	Key(ctx context.Context, machine ident.MachineID, keyID string) (controlapi.Key, error)
}

type keyName struct {
	machine ident.MachineID
	id      string
}

// keys fetches machines' data keys from the configuration server and holds them
// in memory, so that a stream goes on while that server is away.
type keys struct {
	source keySource

	mu      sync.Mutex
	held    map[keyName]changeset.Key
	current map[ident.MachineID]string
}

func newKeys(source keySource) *keys {
	return &keys{source: source, held: map[keyName]changeset.Key{}, current: map[ident.MachineID]string{}}
}

// Key gives the machine's key of that id; "" is the current one. The current one
// is asked for anew each time, as it may have been replaced; while the
// configuration server is away the one known last is used.
func (k *keys) Key(ctx context.Context, machine ident.MachineID, id string) (changeset.Key, error) {
	if id != "" {
		if key, ok := k.lookup(machine, id); ok {
			return key, nil
		}
	}
	answer, err := k.source.Key(ctx, machine, id)
	if err != nil {
		var refused *controlapi.Error
		if key, ok := k.last(machine); id == "" && ok && !errors.As(err, &refused) {
			return key, nil
		}
		return changeset.Key{}, fmt.Errorf("data key of machine %s: %w", machine, err)
	}
	key := changeset.Key{ID: answer.ID}
	if len(answer.Secret) != len(key.Secret) {
		return changeset.Key{}, fmt.Errorf("data key %s of machine %s: it has %d bytes, want %d", answer.ID, machine, len(answer.Secret), len(key.Secret))
	}
	copy(key.Secret[:], answer.Secret)
	k.keep(machine, key, id == "")
	return key, nil
}

// Current names the key new change sets are encrypted with.
func (k *keys) Current(ctx context.Context, machine ident.MachineID) (string, error) {
	key, err := k.Key(ctx, machine, "")
	return key.ID, err
}

func (k *keys) lookup(machine ident.MachineID, id string) (changeset.Key, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	key, ok := k.held[keyName{machine, id}]
	return key, ok
}

func (k *keys) last(machine ident.MachineID) (changeset.Key, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	key, ok := k.held[keyName{machine, k.current[machine]}]
	return key, ok
}

func (k *keys) keep(machine ident.MachineID, key changeset.Key, current bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	name := keyName{machine, key.ID}
	if _, ok := k.held[name]; !ok && len(k.held) >= maxKeys {
		for other := range k.held {
			delete(k.held, other)
			delete(k.current, other.machine)
			break
		}
	}
	k.held[name] = key
	if current {
		k.current[machine] = key.ID
	}
}
