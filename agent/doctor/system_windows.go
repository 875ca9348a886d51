package doctor

import (
	"os"
	"path/filepath"

	"golang.org/x/sys/windows"

	"drover/agent/controlapi"
)

// system are the checks of what this system has.
func (p *patient) system() []controlapi.Finding {
	const check = "consistent-points"
	dir, err := windows.GetSystemDirectory()
	if err == nil {
		_, err = os.Stat(filepath.Join(dir, "diskshadow.exe"))
	}
	if err != nil {
		return []controlapi.Finding{warn(check, "Windows Server has it; elsewhere points are made only when the disks are quiet", "no shadow copies can be made: %v", err)}
	}
	return []controlapi.Finding{ok(check, "diskshadow is there")}
}

func (p *patient) state() []controlapi.Finding {
	const check = "state"
	dir := p.Config.State
	var room uint64
	name, err := windows.UTF16PtrFromString(dir)
	if err == nil {
		err = windows.GetDiskFreeSpaceEx(name, &room, nil, nil)
	}
	switch {
	case err != nil:
		return []controlapi.Finding{warn(check, "the agent makes it when it starts; as administrator", "%s: %v", dir, err)}
	case room < littleRoom:
		return []controlapi.Finding{warn(check, "make room", "the file system of %s has %d MiB left", dir, room>>20)}
	}
	return []controlapi.Finding{ok(check, "%s has room", dir)}
}

// kernel is asked for by checks of Linux alone.
func (*patient) kernel() string { return "" }

// safe is asked for by checks of Linux alone.
func safe(string) error { return nil }
