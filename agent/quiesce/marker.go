package quiesce

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"drover/agent/quiesce/freeze"
	"drover/datapath/ident"
)

const (
	maxMarker = 1 << 20 // bytes
	bootID    = "/proc/sys/kernel/random/boot_id"
)

// marker is what is noted before anything is frozen, so that the next start can end
// it. It is written while all file systems work, and removed when they do again.
type marker struct {
	Boot        string        `json:"boot"` // no freeze of a file system outlives it
	Epoch       ident.Epoch   `json:"epoch"`
	Seq         ident.Seq     `json:"seq"`
	FileSystems []freeze.Left `json:"fileSystems,omitempty"`
	Scripts     bool          `json:"scripts,omitempty"` // they were called too
}

func thisBoot() string {
	b, err := os.ReadFile(bootID)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func (h *Hooks) mark(m marker) error {
	if h.Marker == "" {
		return nil
	}
	m.Boot = thisBoot()
	b, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("freeze: %w", err)
	}
	f, err := os.OpenFile(h.Marker, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err == nil {
		_, err = f.Write(b)
		err = errors.Join(err, f.Sync(), f.Close())
	}
	if err != nil {
		return fmt.Errorf("freeze: note what is frozen: %w", err)
	}
	return nil
}

func (h *Hooks) unmark() error {
	if h.Marker == "" {
		return nil
	}
	if err := os.Remove(h.Marker); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("thaw: %w", err)
	}
	return nil
}

// readMarker gives what was noted. A damaged note, as after a power cut while it was
// written, is one of a freeze that never began: only programs are told to thaw.
func (h *Hooks) readMarker() (m marker, found bool, err error) {
	if h.Marker == "" {
		return m, false, nil
	}
	f, err := os.Open(h.Marker)
	if errors.Is(err, os.ErrNotExist) {
		return m, false, nil
	}
	if err != nil {
		return m, false, fmt.Errorf("thaw: %w", err)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxMarker))
	if err = errors.Join(err, f.Close()); err != nil {
		return m, false, fmt.Errorf("thaw: %w", err)
	}
	if json.Unmarshal(b, &m) != nil {
		return marker{Scripts: true}, true, nil //nolint:nilerr // said above
	}
	return m, true, nil
}

// RecoverFileSystems thaws the file systems that an earlier run left frozen, by the
// marker in the file. Until then nothing is written: it may be on one of them.
func RecoverFileSystems(file string) (thawed int, err error) {
	h := &Hooks{Marker: file}
	m, found, err := h.readMarker()
	if err != nil || !found || m.Boot == "" || m.Boot != thisBoot() {
		return 0, err
	}
	return freeze.Recover(m.FileSystems)
}

// Recover ends a freeze that an earlier run left behind: file systems go on, and the
// programs are told to thaw.
func (h *Hooks) Recover(ctx context.Context, machine ident.MachineID) (bool, error) {
	copied, left := h.recoverCopies(ctx)
	m, found, err := h.readMarker()
	if err != nil || !found {
		return copied, errors.Join(left, err)
	}
	_, err = RecoverFileSystems(h.Marker)
	err = errors.Join(left, err)
	x := &Hold{hooks: h, cut: Cut{Machine: machine}, called: true}
	if m.Scripts {
		list, e := h.Scripts.List()
		x.scripts, err = list, errors.Join(err, e)
	}
	if err = errors.Join(err, x.release(ctx)); err != nil {
		return true, err
	}
	return true, h.unmark()
}
