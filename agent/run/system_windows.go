package run

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/windows"

	"drover/agent/config"
	"drover/agent/controlapi"
	"drover/agent/disk"
	"drover/agent/quiesce"
	"drover/agent/quiesce/vss"
	"drover/agent/tracker/choose"
)

// yieldToOthers puts the process behind the guest's own programs.
func yieldToOthers(nice int) error {
	if nice == 0 {
		return nil
	}
	if err := windows.SetPriorityClass(windows.CurrentProcess(), windows.BELOW_NORMAL_PRIORITY_CLASS); err != nil {
		return fmt.Errorf("lower the priority: %w", err)
	}
	return nil
}

// hold says with what the machine is held for a cut: with shadow copies.
func hold(h *quiesce.Hooks, c *config.Config) {
	if c.Freeze.Off {
		return
	}
	h.Copier = &vss.Provider{Dir: filepath.Join(c.State, "vss"), Layout: func(disks []string) (*vss.Layout, error) {
		volumes, err := disk.Volumes(disks)
		if err != nil {
			return nil, err
		}
		return vss.Arrange(disks, volumes), nil
	}}
	if dir, err := windows.GetSystemDirectory(); err == nil {
		if program := filepath.Join(dir, "diskshadow.exe"); exists(program) {
			h.Copier.Program = []string{program}
		}
	}
}

func exists(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}

// newTracker makes the only tracker there is.
func newTracker(_ *config.Config, log *slog.Logger) *choose.Tracker { return choose.New(log) }

// preflightHere says that it does not know.
func preflightHere() ([]controlapi.Finding, error) {
	return []controlapi.Finding{{Check: "windows", Level: controlapi.LevelWarn, What: "whether this guest would boot in the target is not looked at on Windows",
		Advice: "see that it has the target's drivers, and make a test failover"}}, nil
}

// bootID is what Windows has none of.
func bootID() string { return "" }

func osName() string { return "Windows " + kernel() }

func kernel() string {
	v := windows.RtlGetVersion()
	return strconv.Itoa(int(v.MajorVersion)) + "." + strconv.Itoa(int(v.MinorVersion)) + "." + strconv.Itoa(int(v.BuildNumber))
}
