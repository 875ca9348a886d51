package tracking

import (
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const (
	fioTool  = "fio"
	fioSlack = 2 * time.Minute // beyond its time, on a busy machine
)

// pattern is a way to write. A file system is made for it if it wants one.
type pattern struct {
	name       string
	fileSystem bool
	args       []string
}

var patterns = []pattern{
	{"random sizes, direct", false, []string{"--rw=randwrite", "--direct=1", "--bsrange=512-192k", "--blockalign=512", "--ioengine=libaio", "--iodepth=16", "--numjobs=2"}},
	{"4 KiB, direct", false, []string{"--rw=randwrite", "--direct=1", "--bs=4k", "--ioengine=libaio", "--iodepth=32", "--numjobs=1"}},
	{"2 KiB, buffered", false, []string{"--rw=randwrite", "--bs=2k", "--ioengine=psync", "--fsync=64", "--numjobs=1"}},
	{"discards and writes", false, []string{"--rw=randtrimwrite", "--direct=1", "--bs=64k", "--ioengine=psync", "--numjobs=1"}},
	{"sequential", false, []string{"--rw=write", "--direct=1", "--bs=1m", "--ioengine=libaio", "--iodepth=4", "--numjobs=1"}},
	{"files, with fsync", true, []string{"--rw=randwrite", "--bs=4k", "--ioengine=psync", "--fsync=16", "--numjobs=2", "--size=16m"}},
}

// fio starts fio on a device or a directory for so long.
func fio(ctx context.Context, p pattern, target string, seed uint64, length time.Duration) *exec.Cmd {
	where := "--filename=" + target
	if p.fileSystem {
		where = "--directory=" + target
	}
	args := append([]string{"--name=load", where, "--time_based", fmt.Sprintf("--runtime=%dms", length.Milliseconds()), fmt.Sprintf("--randseed=%d", seed),
		"--refill_buffers", "--group_reporting", "--output-format=json", "--allow_mounted_write=1"}, p.args...)
	return exec.CommandContext(ctx, fioTool, args...) //nolint:gosec // the test's own
}

// iops runs fio and gives its writes per second.
func iops(t *testing.T, p pattern, target string, length time.Duration) float64 {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), length+fioSlack)
	defer cancel()
	out, err := fio(ctx, p, target, 1, length).CombinedOutput()
	require.NoError(t, err, "%s", out)
	var result struct {
		Jobs []struct {
			Write struct {
				IOPS float64 `json:"iops"`
			} `json:"write"`
		} `json:"jobs"`
	}
	require.NoError(t, json.Unmarshal(out, &result))
	require.Len(t, result.Jobs, 1)
	require.Positive(t, result.Jobs[0].Write.IOPS)
	return result.Jobs[0].Write.IOPS
}
