package quiesce

import (
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// DefaultScripts is where scripts are.
const DefaultScripts = "/etc/drover/scripts.d"

// safe checks that nobody but root, and the user that the agent runs as, may change it.
func safe(path string, info fs.FileInfo) error {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || st.Uid != 0 && int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("scripts: %s is not root's; chown root it", path)
	}
	if info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("scripts: others than root may write to %s; chmod go-w it", path)
	}
	return nil
}
