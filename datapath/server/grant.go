package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"drover/datapath/durable"
	"drover/datapath/ident"
	"drover/datapath/stream"
	"drover/datapath/vfs"
)

const (
	grantSuffix = ".json"
	maxRecord   = 16 << 20 // bytes; its documents are the most of it
)

// record is what is kept of a machine across restarts.
type record struct {
	Grant  stream.Grant   `json:"grant"`
	Broken *stream.Broken `json:"broken,omitempty"`
	// Held: a final cut has left the source frozen.
	Held bool `json:"held,omitempty"`
}

func (s *Server) grantDir() string { return filepath.Join(s.StateDir, "grants") }

func (s *Server) grantFile(m ident.MachineID) string {
	return filepath.Join(s.grantDir(), m.String()+grantSuffix)
}

// saveGrant makes the record durable.
func (s *Server) saveGrant(r record) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("keep the grant of machine %s: %w", r.Grant.Spec.Machine, err)
	}
	if len(b) > maxRecord {
		return fmt.Errorf("keep the grant of machine %s: %d bytes, at most %d", r.Grant.Spec.Machine, len(b), maxRecord)
	}
	path := s.grantFile(r.Grant.Spec.Machine)
	if err := durable.WriteFileOn(s.FS, path, b, 0o600); err != nil {
		return fmt.Errorf("keep the grant of machine %s: %w", r.Grant.Spec.Machine, err)
	}
	return nil
}

func (s *Server) removeGrant(m ident.MachineID) error {
	err := s.FS.Remove(s.grantFile(m))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = s.FS.SyncDir(s.grantDir())
	}
	if err != nil {
		return fmt.Errorf("remove the grant of machine %s: %w", m, err)
	}
	return nil
}

func (s *Server) readGrants() ([]record, error) {
	files, err := s.FS.ReadDir(s.grantDir())
	if err != nil {
		return nil, fmt.Errorf("read the grants: %w", err)
	}
	var out []record
	for _, f := range files {
		name, ok := strings.CutSuffix(f, grantSuffix)
		id, err := ident.ParseMachineID(name)
		if !ok || err != nil {
			continue // not ours
		}
		b, err := vfs.ReadFile(s.FS, s.grantFile(id), maxRecord)
		if err != nil && !errors.Is(err, vfs.ErrTooLarge) {
			return nil, fmt.Errorf("read the grants: %w", err)
		}
		var r record
		if err == nil {
			r, err = parseRecord(id, b)
		}
		if err != nil {
			return nil, fmt.Errorf("read the grant %s: it is damaged (%w); remove it, the control plane grants anew", s.grantFile(id), err)
		}
		out = append(out, r)
	}
	return out, nil
}

// parseRecord reads what saveGrant wrote of the machine.
func parseRecord(id ident.MachineID, b []byte) (r record, err error) {
	if err := json.Unmarshal(b, &r); err != nil {
		return r, err
	}
	if r.Grant.Spec.Machine != id {
		return r, fmt.Errorf("it is of machine %s", r.Grant.Spec.Machine)
	}
	return r, checkGrant(r.Grant)
}
