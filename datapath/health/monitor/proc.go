package monitor

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// cpuTimes are the counters of /proc/stat, in ticks; the zero value is not known.
type cpuTimes struct{ busy, all int64 }

// Columns of the line "cpu" that count as idle: waiting for disks is no load.
const (
	columnIdle   = 3
	columnWait   = 4
	columnsOfCPU = 8 // the rest, guests, is in the first ones already
)

func readCPU(proc string) cpuTimes {
	b, err := os.ReadFile(filepath.Join(proc, "stat"))
	if err != nil {
		return cpuTimes{}
	}
	line, _, _ := strings.Cut(string(b), "\n")
	fields := strings.Fields(line)
	if len(fields) <= columnWait+1 || fields[0] != "cpu" {
		return cpuTimes{}
	}
	var t cpuTimes
	for i, f := range fields[1:min(len(fields), columnsOfCPU+1)] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return cpuTimes{}
		}
		t.all += n
		if i != columnIdle && i != columnWait {
			t.busy += n
		}
	}
	return t
}

// since gives the percentage that was busy since the earlier reading; negative when
// not known.
func (t cpuTimes) since(before cpuTimes) float64 {
	if before.all == 0 || t.all <= before.all {
		return -1
	}
	// The kernel may take a little of what waited back.
	return 100 * min(1, max(0, float64(t.busy-before.busy)/float64(t.all-before.all)))
}

// memory gives the percentage of the memory that cannot be had; negative when not
// known.
func memory(proc string) float64 {
	b, err := os.ReadFile(filepath.Join(proc, "meminfo"))
	if err != nil {
		return -1
	}
	values := map[string]float64{}
	for line := range strings.Lines(string(b)) {
		name, rest, _ := strings.Cut(line, ":")
		if fields := strings.Fields(rest); len(fields) > 0 {
			if v, err := strconv.ParseFloat(fields[0], 64); err == nil {
				values[name] = v
			}
		}
	}
	total, ok := values["MemTotal"]
	available, known := values["MemAvailable"]
	if !ok || !known || total <= 0 {
		return -1
	}
	return 100 * (1 - available/total)
}

// diskFree gives what a directory's file system has left for us; negative when not
// known.
func diskFree(dir string) int64 {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return -1
	}
	return int64(st.Bavail) * st.Bsize //nolint:gosec // no file system is that large
}
