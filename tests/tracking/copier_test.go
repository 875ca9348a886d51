package tracking

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"drover/agent/config"
	"drover/agent/disk"
	"drover/agent/pace"
	"drover/agent/tracker"
	"drover/agent/tracker/live"
	"drover/datapath/changeset"
	"drover/datapath/ident"
	"drover/tests/loop"
)

// copierVariable makes a process a copier: the source's name and the device.
const copierVariable = "DROVER_TRACKING_COPIER"

// copier is what another process needs to copy.
type copier struct {
	Source string
	Device loop.Device
	Every  time.Duration // a pass begins; 0: after a short pause
}

// ready is what a copier says once it has copied the disk and goes on with changes.
const ready = "ready"

// TestCopier is no test: it is a process of its own that copies, pass after pass, what has
// changed into memory, giving way to the guest as the agent does.
func TestCopier(t *testing.T) {
	text := os.Getenv(copierVariable)
	if text == "" {
		t.Skip("it is run by the others")
	}
	var c copier
	require.NoError(t, json.Unmarshal([]byte(text), &c))
	i := slices.IndexFunc(sources, func(s source) bool { return s.name == c.Source })
	require.GreaterOrEqual(t, i, 0, c.Source)
	p := &proof{t: t, d: &c.Device, copy: make([]byte, size)}
	var err error
	p.disk, err = disk.Open(c.Device.Path)
	require.NoError(t, err)
	opened, err := sources[i].open()
	require.NoError(t, err)
	p.tracker = live.New(opened)
	_, err = p.tracker.Attach([]tracker.Disk{p.disk})
	require.NoError(t, err)
	p.tracker.Begin([]changeset.Disk{{ID: ident.DiskID{1}, Size: size, Seed: seed}})
	p.pass()
	p.sent, p.passes = 0, 0
	fmt.Println(ready)
	ctx, stop := context.WithCancel(pace.With(t.Context(), pace.New(pace.Default())))
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin) // until the other test ends it, or itself
		stop()
	}()
	for ; ctx.Err() == nil; p.passes++ {
		next := time.Now().Add(c.Every)
		if err := p.tracker.Pass(ctx, 0, p.put, nil); ctx.Err() == nil {
			require.NoError(t, err)
		}
		pause(ctx, max(time.Until(next), between))
	}
	fmt.Printf("%d passes, %d MiB copied\n", p.passes, p.sent/mib)
	require.NoError(t, errors.Join(p.tracker.Close(), p.disk.Close()))
}

func pause(ctx context.Context, length time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(length):
	}
}

// whileCopied measures while another process copies what has changed, at the priority of
// the agent, and gives what that process has done.
func whileCopied(t *testing.T, s source, d *loop.Device, every time.Duration) (reached float64, did string) {
	t.Helper()
	text, err := json.Marshal(copier{s.name, *d, every})
	require.NoError(t, err)
	self, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.CommandContext(t.Context(), "nice", "-n", strconv.Itoa(config.DefaultNice), self, "-test.run=^TestCopier$") //nolint:gosec // the test's own
	cmd.Env = append(os.Environ(), copierVariable+"="+string(text))
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	lines := bufio.NewScanner(out)
	for lines.Scan() && lines.Text() != ready {
		t.Log(lines.Text())
	}
	reached = iops(t, patterns[1], d.Path, overheadRound)
	require.NoError(t, in.Close())
	var said []string
	for lines.Scan() {
		said = append(said, lines.Text())
	}
	require.NoError(t, cmd.Wait(), strings.Join(said, "\n"))
	return reached, said[0]
}
