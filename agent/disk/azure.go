package disk

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Azure is where a guest in Azure has links to its disks by their place, by the rules for
// udev of Azure's agent or of azure-vm-utils. What Azure calls a disk is not shown to
// the guest, so there a disk is known by its place.
const Azure = "/dev/disk/azure"

const (
	azureRoot = "azure-root"
	azureLUN  = "azure-lun-"
	maxLUNs   = 64 // the most data disks that a machine in Azure has
)

// Links of the system disk and directories of data disks: by Azure's agent for machines of
// the first and of the second generation, and by azure-vm-utils.
var (
	azureRoots = []string{"root", "os", "scsi0/lun0"}
	azureLUNs  = []string{"scsi1/lun", "data/by-lun/"}
)

// named are the disks whose names do not depend on themselves: those of the configuration,
// which win, and a guest's in Azure.
func (f Finder) named() map[string]string {
	out := maps.Clone(f.Paths)
	if out == nil {
		out = map[string]string{}
	}
	dir := f.azureDir()
	if _, err := os.Stat(dir); err != nil {
		return out
	}
	add := func(name, link string) {
		link = filepath.Join(dir, filepath.FromSlash(link))
		if _, err := os.Stat(link); err != nil { // none, or to a disk that has gone
			return
		}
		for have := range out {
			if plain(have) == plain(name) {
				return
			}
		}
		out[name] = link
	}
	for _, link := range azureRoots {
		add(azureRoot, link)
	}
	for lun := range maxLUNs {
		for _, link := range azureLUNs {
			add(azureLUN+strconv.Itoa(lun), link+strconv.Itoa(lun))
		}
	}
	return out
}

// notFound says what to do about a disk that is not there.
func (f Finder) notFound(backing string) error {
	if strings.HasPrefix(backing, "azure-") {
		dir := f.azureDir()
		why := "the machine has no such disk"
		if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
			why = "udev makes no links there"
		}
		return fmt.Errorf("find disk %s: %w under %s: %s; install azure-vm-utils or Azure's agent, which bring the rules, or name the device under `disks` in the agent's configuration",
			backing, ErrNotFound, dir, why)
	}
	return fmt.Errorf("find disk %s: %w under %s; set disk.EnableUUID = TRUE on the VM, or name the device under `disks` in the agent's configuration",
		backing, ErrNotFound, f.dir())
}

func (f Finder) azureDir() string {
	if f.Azure != "" {
		return f.Azure
	}
	return Azure
}
