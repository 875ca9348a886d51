package disk

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"drover/agent/controlapi"
)

// azureDev makes a /dev with three disks, and links to them as udev has them in Azure.
func azureDev(t *testing.T, links map[string]string) string {
	t.Helper()
	dev := t.TempDir()
	for i, name := range []string{"sda", "sdb", "sdc"} {
		require.NoError(t, os.WriteFile(filepath.Join(dev, name), make([]byte, (i+1)*4096), 0o600))
	}
	for link, to := range links {
		link = filepath.Join(dev, "disk/azure", link)
		require.NoError(t, os.MkdirAll(filepath.Dir(link), 0o700))
		require.NoError(t, os.Symlink(filepath.Join(dev, to), link))
	}
	return dev
}

// TestFindInAzure: by the rules of Azure's agent, for both generations of machines, and by
// those of azure-vm-utils, where disks are NVMe, too. Linux may name disks in any order.
func TestFindInAzure(t *testing.T) {
	for name, links := range map[string]map[string]string{
		"agent, generation 1": {"root": "sdb", "root-part1": "sdb1", "resource": "sdx", "scsi1/lun0": "sda", "scsi1/lun0-part1": "sda1", "scsi1/lun10": "sdc"},
		"agent, generation 2": {"scsi0/lun0": "sdb", "scsi0/lun1": "sdx", "scsi1/lun0": "sda", "scsi1/lun10": "sdc"},
		"azure-vm-utils":      {"os": "sdb", "os-part1": "sdb1", "data/by-lun/0": "sda", "data/by-lun/10": "sdc"},
		"both":                {"root": "sdb", "os": "sdb", "scsi1/lun0": "sda", "data/by-lun/0": "sda", "data/by-lun/10": "sdc"},
	} {
		t.Run(name, func(t *testing.T) {
			dev := azureDev(t, links)
			f := Finder{ByID: filepath.Join(dev, "disk/by-id"), Azure: filepath.Join(dev, "disk/azure")}
			for id, want := range map[string]string{"azure-root": "sdb", "azure-lun-0": "sda", "azure-lun-10": "sdc"} {
				path, err := f.Find(id)
				require.NoError(t, err, id)
				real, err := filepath.EvalSymlinks(path)
				require.NoError(t, err)
				require.Equal(t, filepath.Join(dev, want), real, id)
			}
			_, err := f.Find("azure-lun-1")
			require.ErrorIs(t, err, ErrNotFound)
			require.ErrorContains(t, err, "no such disk")
			all, err := f.List()
			require.NoError(t, err)
			require.Len(t, all, 3, "each once, no partitions, not the temporary disk")
		})
	}
}

// TestConfigurationWinsInAzure, and a link to a disk that has gone is none.
func TestConfigurationWinsInAzure(t *testing.T) {
	dev := azureDev(t, map[string]string{"root": "sda", "scsi1/lun0": "gone"})
	f := Finder{Azure: filepath.Join(dev, "disk/azure"), ByID: dev, Paths: map[string]string{"azure-root": "/images/a.img"}}
	path, err := f.Find("azure-root")
	require.NoError(t, err)
	require.Equal(t, "/images/a.img", path)
	_, err = f.Find("azure-lun-0")
	require.ErrorIs(t, err, ErrNotFound)
	f.Azure = filepath.Join(dev, "none")
	_, err = f.Find("azure-lun-0")
	require.ErrorContains(t, err, "azure-vm-utils")
}

// TestInventoryInAzure: what was assigned by its place is known by it.
func TestInventoryInAzure(t *testing.T) {
	dev := azureDev(t, map[string]string{"root": "sdb", "scsi1/lun0": "sda"})
	w := Watch{Finder: Finder{Azure: filepath.Join(dev, "disk/azure"), ByID: dev}}
	found := w.configured([]controlapi.InventoryDisk{
		{BackingUUID: "60022480a", Path: filepath.Join(dev, "sda"), Size: 4096}, {BackingUUID: "60022480b", Path: filepath.Join(dev, "sdb"), Size: 8192},
	})
	as := controlapi.Assignment{Action: controlapi.ActionReplicate, Disks: []controlapi.Disk{{BackingUUID: "azure-root", Size: 8192}}}
	require.Empty(t, explain(found, as))
	require.Equal(t, "azure-lun-0", found[0].BackingUUID)
	require.Equal(t, "azure-root", found[1].BackingUUID)
	require.True(t, found[1].Protected)
	require.Empty(t, w.gone(time.Now(), map[string]bool{}, nil))
}
