package vsim

import (
	"bytes"
	"errors"
	"fmt"
	"os"

	"github.com/goccy/go-yaml"
)

// Spec says what is in the simulated vCenter.
type Spec struct {
	// Name makes its instance uuid another than that of other simulated vCenters; empty: "1".
	Name         string `yaml:"name"`
	User         string `yaml:"user"`
	Password     string `yaml:"password"`
	MasterTarget struct {
		Name string `yaml:"name"`
	} `yaml:"masterTarget"`
	VMs []VMSpec `yaml:"vms"`
	// Hosts beside the first, and datastores beside it, that all hosts mount.
	Hosts      int      `yaml:"hosts"`
	Datastores []string `yaml:"datastores"`
}

// VMSpec is a VM, with the sizes of its disks in bytes.
type VMSpec struct {
	Name     string  `yaml:"name"`
	CPUs     int32   `yaml:"cpus"`
	MemoryMB int64   `yaml:"memoryMB"`
	Disks    []int64 `yaml:"disks"`
	// Tags are "category/name".
	Tags []string `yaml:"tags"`
}

// ReadSpec reads a spec; unknown fields are refused.
func ReadSpec(path string) (Spec, error) {
	var s Spec
	b, err := os.ReadFile(path)
	if err != nil {
		return s, fmt.Errorf("read the vCenter's spec: %w", err)
	}
	if err := yaml.NewDecoder(bytes.NewReader(b), yaml.Strict()).Decode(&s); err != nil {
		return s, fmt.Errorf("read the vCenter's spec %s: %w", path, err)
	}
	if s.User == "" || s.Password == "" || s.MasterTarget.Name == "" {
		return s, errors.New("the vCenter's spec needs user, password and masterTarget.name")
	}
	return s, nil
}

// Info is what vsim.json tells about the running vCenter.
type Info struct {
	URL        string   `json:"url"`
	Thumbprint string   `json:"thumbprint"` // SHA-256 of the certificate
	UUID       string   `json:"uuid"`       // the vCenter's instance uuid
	VMs        []VMInfo `json:"vms"`        // without the master target
}

// VMInfo is a VM of the vCenter.
type VMInfo struct {
	Name         string     `json:"name"`
	InstanceUUID string     `json:"instanceUUID"`
	BIOSUUID     string     `json:"biosUUID"`
	Disks        []DiskInfo `json:"disks"`
}

// DiskInfo is a disk and the file that holds its content.
type DiskInfo struct {
	Label       string `json:"label"`
	BackingUUID string `json:"backingUUID"`
	Size        int64  `json:"size"`
	Path        string `json:"path"`
}
