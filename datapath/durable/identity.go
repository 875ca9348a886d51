package durable

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/google/uuid"

	"drover/datapath/vfs"
)

const (
	identityMode = 0o640
	maxIdentity  = 1 << 10 // bytes of an identity's file
)

// identity is what an identity's file says.
type identity struct {
	ID uuid.UUID `json:"id"`
}

// Identity reads what a directory is known by, from a file in it. It is made once:
// of several that make it at the same time all get the same.
func Identity(fsys vfs.FS, path string) (string, error) {
	id, err := readIdentity(fsys, path)
	if errors.Is(err, fs.ErrNotExist) {
		if err = makeIdentity(fsys, path); err == nil {
			id, err = readIdentity(fsys, path)
		}
	}
	return id, err
}

func readIdentity(fsys vfs.FS, path string) (string, error) {
	b, err := vfs.ReadFile(fsys, path, maxIdentity)
	if err != nil {
		return "", err
	}
	var i identity
	if err := json.Unmarshal(b, &i); err != nil || i.ID == uuid.Nil {
		return "", fmt.Errorf("%s is damaged, want {\"id\": uuid}: put it back from a backup", path)
	}
	// Whoever made it may have been killed before it was durable.
	return i.ID.String(), fsys.SyncDir(filepath.Dir(path))
}

// makeIdentity gives a finished file its name, unless another was faster.
func makeIdentity(fsys vfs.FS, path string) error {
	b, err := json.Marshal(identity{uuid.New()})
	if err != nil {
		return err
	}
	temp := filepath.Join(filepath.Dir(path), "."+uuid.NewString()+TempSuffix)
	if err := WriteFileOn(fsys, temp, append(b, '\n'), identityMode); err != nil {
		return err
	}
	if err := fsys.Link(temp, path); err != nil && !errors.Is(err, fs.ErrExist) {
		return fsys.Rename(temp, path) // a file system without links
	}
	return fsys.Remove(temp)
}
