package doctor

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"drover/agent/controlapi"
)

// system are the checks of what this system has.
func (p *patient) system() []controlapi.Finding {
	out := append(p.fileSystems(), p.tracker(), p.memory())
	out = append(out, p.programs()...)
	return append(out, p.target()...)
}

func (p *patient) state() []controlapi.Finding {
	const check = "state"
	dir := p.Config.State
	info, err := os.Stat(dir)
	if err != nil {
		return []controlapi.Finding{warn(check, "the agent makes it when it starts; as root", "%v", err)}
	}
	if info.Mode().Perm()&0o077 != 0 {
		return []controlapi.Finding{fail(check, "chmod 700 "+dir, "%s is open to others (%s)", dir, info.Mode().Perm())}
	}
	var room unix.Statfs_t
	if err := unix.Statfs(dir, &room); err != nil {
		return []controlapi.Finding{warn(check, "", "free space of %s: %v", dir, err)}
	}
	free := int64(room.Bavail) * room.Bsize //nolint:gosec // a number of blocks
	switch {
	case free < noRoom:
		return []controlapi.Finding{fail(check, "make room: replication goes on, but a renewed certificate cannot be kept", "the file system of %s is full", dir)}
	case free < littleRoom:
		return []controlapi.Finding{warn(check, "make room", "the file system of %s has %d MiB left", dir, free>>20)}
	}
	return []controlapi.Finding{ok(check, "%s has room", dir)}
}

func (p *patient) kernel() string {
	if p.Root != "" && p.Root != "/" {
		return p.text("/proc/sys/kernel/osrelease")
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

// safe holds a program, and the directories above it, to be root's alone.
func safe(program string) error {
	info, err := os.Stat(program)
	if err != nil {
		return err
	}
	if info.Mode().Perm()&0o100 == 0 {
		return fmt.Errorf("%s cannot be executed", program)
	}
	for path := filepath.Clean(program); ; path = filepath.Dir(path) {
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		sticky := st.Mode&unix.S_IFMT == unix.S_IFDIR && st.Mode&unix.S_ISVTX != 0
		if st.Uid != 0 || st.Mode&0o022 != 0 && !sticky {
			return fmt.Errorf("%s, which runs as root, can be changed by others: %s is owned by user %d with mode %#o", program, path, st.Uid, st.Mode&0o7777)
		}
		if path == filepath.Dir(path) {
			return nil
		}
	}
}
