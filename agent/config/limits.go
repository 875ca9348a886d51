package config

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml/ast"

	"drover/agent/pace"
)

// Defaults and bounds of the limits.
const (
	DefaultMemory = 64 << 20 // bytes, beside what is kept of each block
	minMemory     = 48 << 20
	DefaultNice   = 10 // of the agent's threads
	maxNice       = 19
)

// Limits keep the agent out of the guest's way.
type Limits struct {
	Memory   Bytes    `yaml:"memory"`   // of the agent, beside what it keeps of each block of the disks
	ReadRate Bytes    `yaml:"readRate"` // per second, over all disks; 0: none
	Nice     int      `yaml:"nice"`     // 0 to 19
	Pressure Pressure `yaml:"pressure"`
}

// Pressure is the share of time, in percent, that programs of the guest may wait for
// something before reads pause; 0: it does not matter.
type Pressure struct {
	CPU    float64 `yaml:"cpu"`
	IO     float64 `yaml:"io"`
	Memory float64 `yaml:"memory"`
}

func defaultLimits() Limits {
	d := pace.Default()
	return Limits{Memory: DefaultMemory, Nice: DefaultNice, Pressure: Pressure{CPU: d.CPU, IO: d.IO, Memory: d.Memory}}
}

// Pace is what of the limits holds for reads.
func (l Limits) Pace() pace.Limits {
	return pace.Limits{Rate: int64(l.ReadRate), CPU: l.Pressure.CPU, IO: l.Pressure.IO, Memory: l.Pressure.Memory}
}

func (l Limits) check() error {
	if l.Memory < minMemory {
		return fmt.Errorf("limits.memory: %d bytes: want %d MiB at least", l.Memory, minMemory>>20)
	}
	if l.ReadRate != 0 && l.ReadRate < pace.MinRate {
		return fmt.Errorf("limits.readRate: %d bytes per second: want %d MiB at least, or 0 for none", l.ReadRate, pace.MinRate>>20)
	}
	if l.Nice < 0 || l.Nice > maxNice {
		return fmt.Errorf("limits.nice: %d: want 0 to %d", l.Nice, maxNice)
	}
	for name, v := range map[string]float64{"cpu": l.Pressure.CPU, "io": l.Pressure.IO, "memory": l.Pressure.Memory} {
		if !(v >= 0 && v <= 100) { // not a number is neither
			return fmt.Errorf("limits.pressure.%s: %g: want 0 to 100 percent", name, v)
		}
	}
	return nil
}

// Bytes is a size in YAML: "64MiB", "10MB", "4096".
type Bytes int64

var units = map[string]float64{"": 1, "B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}

// UnmarshalYAML reads a number with a unit.
func (b *Bytes) UnmarshalYAML(n ast.Node) error {
	text := strings.Trim(n.String(), `"' `)
	digits := strings.TrimRight(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ ")
	v, err := strconv.ParseFloat(digits, 64)
	unit, known := units[strings.ToUpper(strings.TrimSpace(strings.TrimPrefix(text, digits)))]
	if err != nil || !known || !(v >= 0 && v*unit < math.MaxInt64/2) {
		return &wrongValue{n.GetToken().Position.Line, fmt.Sprintf("%q: want a size such as 64MiB", text)}
	}
	*b = Bytes(v * unit)
	return nil
}
