package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"drover/datapath/durable"
	"drover/datapath/vfs"
)

const maxPlaces = 1 << 10 // bytes of the file

// places are the identities of what the server works with. What it acknowledged
// lies there and nowhere else: with another directory mounted under the same name
// it would begin anew and call it fine.
type places struct {
	Store string `json:"store"`
	Spool string `json:"spool"`
}

// checkPlaces refuses a store or a spool that is not the one of earlier runs.
func (s *Server) checkPlaces(ctx context.Context) error {
	var now, known places
	var err error
	if now.Store, err = s.Store.ID(ctx); err != nil {
		return err
	}
	if now.Spool, err = s.spool.ID(); err != nil {
		return err
	}
	path := filepath.Join(s.StateDir, "places.json")
	b, err := vfs.ReadFile(s.FS, path, maxPlaces)
	if errors.Is(err, fs.ErrNotExist) {
		return s.keepPlaces(path, now)
	}
	if err != nil {
		return fmt.Errorf("read which store and spool are ours: %w", err)
	}
	if err := json.Unmarshal(b, &known); err != nil {
		return fmt.Errorf("read which store and spool are ours: %s is damaged (%w); remove it if the right ones are mounted", path, err)
	}
	for _, p := range []struct{ what, known, now string }{{"replica store", known.Store, now.Store}, {"spool", known.Spool, now.Spool}} {
		if p.known != p.now {
			return fmt.Errorf("the %s is %s, but this server has worked with %s: mount the right directory; only if that one is gone for good, remove %s and start again",
				p.what, p.now, p.known, path)
		}
	}
	return nil
}

func (s *Server) keepPlaces(path string, p places) error {
	b, err := json.Marshal(p)
	if err == nil {
		err = durable.WriteFileOn(s.FS, path, append(b, '\n'), 0o600)
	}
	if err != nil {
		return fmt.Errorf("keep which store and spool are ours: %w", err)
	}
	return nil
}
