package status

import (
	"os"
	"path/filepath"
)

// DefaultSocket is where the agent serves its status.
func DefaultSocket() string {
	return filepath.Join(os.Getenv("ProgramData"), "Drover", "run", "status.sock")
}
