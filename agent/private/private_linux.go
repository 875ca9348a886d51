package private

import "os"

// MkdirAll makes a folder, and those above it, that only root can enter.
func MkdirAll(dir string) error { return os.MkdirAll(dir, 0o700) }
