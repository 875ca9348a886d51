// Package secretfile reads the files of the configuration server's secrets directory, which
// workflows name and never hold.
package secretfile

import (
	"os"
	"path/filepath"
	"strings"

	"drover/activities/activityerr"
	"drover/workflows/api"
)

// Read reads a file of the directory, at most so many bytes. kind says what it is, and
// missing what to put there when there is none. No error shows what is in it.
func Read(dir, kind, name, missing string, most int) ([]byte, error) {
	if name == "" || name != filepath.Base(name) || strings.HasPrefix(name, ".") {
		return nil, activityerr.New(api.CodeInvalid, "%s %q: want the plain name of a file in the configuration server's secrets directory", kind, name)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, activityerr.Wrap(api.CodeInternal, err, "open the secrets directory: %v", err)
	}
	defer func() { _ = root.Close() }() // only read
	b, err := root.ReadFile(name)
	if err != nil {
		return nil, activityerr.Wrap(api.CodeNotFound, err, "%s %s: put %s into the configuration server's secrets directory: %v", kind, name, missing, err)
	}
	if len(b) > most {
		return nil, activityerr.New(api.CodeInvalid, "%s %s: larger than %d bytes", kind, name, most)
	}
	return b, nil
}
