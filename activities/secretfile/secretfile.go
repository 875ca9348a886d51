// Package secretfile reads the files of the configuration server's secrets directory, and
// variables of its environment that stand for such a file. Workflows name them and never
// hold what is in them.
package secretfile

import (
	"os"
	"path/filepath"
	"strings"

	"drover/activities/activityerr"
	"drover/workflows/api"
)

// A name that begins with FromEnv is that of an environment variable, which begins with
// Variables: others are none of a workflow's business.
const (
	FromEnv   = "env:"
	Variables = "DROVER_SECRET_"
)

// Read reads a file of the directory, or a variable, at most so many bytes. kind says what it is, and
// missing what to put there when there is none. No error shows what is in it.
func Read(dir, kind, name, missing string, most int) ([]byte, error) {
	if variable, ok := strings.CutPrefix(name, FromEnv); ok {
		return fromEnv(kind, variable, missing, most)
	}
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

func fromEnv(kind, variable, missing string, most int) ([]byte, error) {
	if !strings.HasPrefix(variable, Variables) {
		return nil, activityerr.New(api.CodeInvalid, "%s %s%s: want an environment variable whose name begins with %s", kind, FromEnv, variable, Variables)
	}
	text, set := os.LookupEnv(variable)
	switch {
	case !set:
		return nil, activityerr.New(api.CodeNotFound, "%s %s%s: put the content of %s into this variable of the configuration server's environment", kind, FromEnv, variable, missing)
	case len(text) > most:
		return nil, activityerr.New(api.CodeInvalid, "%s %s%s: larger than %d bytes", kind, FromEnv, variable, most)
	}
	return []byte(text), nil
}
