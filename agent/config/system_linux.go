package config

import "os"

const dmiUUID = "/sys/class/dmi/id/product_uuid"

// DefaultFile is where the configuration is.
func DefaultFile() string { return "/etc/drover/agent.yaml" }

// firmwareUUID is the hardware uuid that vCenter shows too.
func firmwareUUID() (string, error) {
	b, err := os.ReadFile(dmiUUID)
	return string(b), err
}
