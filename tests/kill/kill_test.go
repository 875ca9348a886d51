package kill

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"drover/agent/controlapi"
	"drover/datapath/cachestore"
	"drover/datapath/cachestore/blockblob"
	"drover/datapath/failpoint"
	"drover/datapath/ident"
	"drover/datapath/replica"
	"drover/datapath/replica/pageblob"
	"drover/datapath/spool"
	pipe "drover/datapath/stream"
	"drover/tests/azurite"
	"drover/tests/rig"
)

const (
	dirVariable  = "DROVER_KILL_DIR"  // of the child
	seedVariable = "DROVER_KILL_SEED" // of its load
	ownVariable  = "DROVER_KILL_OWN"  // epoch of its grant
	longVariable = "DROVER_KILL_LONG" // rounds of its load
	// azureVariable is the endpoint of its storage account, if it has no directories.
	azureVariable = "DROVER_KILL_AZURE"
	atOnce        = 2               // children
	lifeLimit     = 3 * time.Minute // of a child
	cadence       = 4 * time.Millisecond
	azureCadence  = 400 * time.Millisecond // faster, and a busy emulator gets a backlog
	beforeKill    = 400                    // rounds, of which a few are enough to be killed
	afterKill     = 3
	held          = time.Hour
)

// sizes of the machine's disks; the last block of the second is a short one.
var sizes = []int64{96 * rig.Block, 40*rig.Block + 1536}

// retention thins fast what nobody holds: most points, at that cadence.
func retention(every time.Duration) replica.Retention {
	return replica.Retention{Keep: time.Hour, Steps: []replica.ThinStep{{Until: 5 * every}, {Until: time.Hour, Every: 10 * every}}}
}

// counts are how often a place is reached until the process is killed there; 0 is
// any number up to mostCount.
var counts = []int{1, 2, 5, 0}

const mostCount = 15

// newRig is the machine in the directory, whose disks are made by who comes first.
func newRig(t *testing.T, dir, azure string) *rig.Rig {
	r := rig.New(t)
	every := cadence
	if azure != "" {
		every = azureCadence
		r.Stores = func() (replica.Store, cachestore.Store) { return containers(t, azure, dir) }
	}
	r.Dir, r.Machine, r.Retention = dir, ident.NewMachineID("vc", "killed"), retention(every)
	for i, size := range sizes {
		uuid := string(rune('a' + i))
		r.Disks = append(r.Disks, controlapi.Disk{ID: ident.NewDiskID(r.Machine, uuid), BackingUUID: uuid, Size: size})
		f, err := os.OpenFile(r.Path(uuid), os.O_CREATE|os.O_WRONLY, 0o600)
		require.NoError(t, err)
		require.NoError(t, errors.Join(f.Truncate(size), f.Close()))
	}
	return r
}

// containers are the stores in an emulator that lives longer than the processes.
func containers(t *testing.T, endpoint, dir string) (replica.Store, cachestore.Store) {
	t.Helper()
	s, err := pageblob.Open(t.Context(), pageblob.Config{Account: azurite.AccountAt(endpoint, dir), Limits: azurite.Unlimited()})
	require.NoError(t, err)
	c, err := blockblob.Open(t.Context(), blockblob.Config{Account: azurite.AccountAt(endpoint, dir)})
	require.NoError(t, err)
	return s, c
}

var inAzure = flag.Bool("azure", false, "kill at every place of the page blob store, too (minutes)")

// TestKilledAtEveryPlaceInAzure is the matrix of the page blob store.
func TestKilledAtEveryPlaceInAzure(t *testing.T) {
	if !failpoint.Enabled || !*inAzure {
		t.Skip("not asked for: run make test-azure")
	}
	room := make(chan struct{}, atOnce)
	for _, place := range failpoint.PageBlobNames {
		for _, count := range []int{1, 4} {
			t.Run(fmt.Sprintf("%s:%d", place, count), func(t *testing.T) {
				t.Parallel()
				room <- struct{}{}
				defer func() { <-room }()
				// Each has an emulator of its own: one for all gets slower by the minute.
				s, err := azurite.Start(t.Context(), "")
				azurite.Need(t, err)
				t.Cleanup(func() { require.NoError(t, s.Stop()) })
				dir := t.TempDir()
				s.Account(t, dir)
				kill(t, place, count, dir, s.Endpoint())
			})
		}
	}
}

// TestKilledAtEveryPlace is the matrix.
func TestKilledAtEveryPlace(t *testing.T) {
	if !failpoint.Enabled {
		t.Skip("not built with the tag failpoint: run make kill-matrix")
	}
	room := make(chan struct{}, atOnce)
	for _, place := range failpoint.Names {
		for _, count := range counts {
			if count == 0 {
				count = 1 + rand.IntN(mostCount)
			}
			t.Run(fmt.Sprintf("%s:%d", place, count), func(t *testing.T) {
				t.Parallel()
				room <- struct{}{}
				defer func() { <-room }()
				kill(t, place, count, t.TempDir(), "")
			})
		}
	}
}

// kill kills one process at the place, the next one at the same place if it gets
// there, and has the third one go on.
func kill(t *testing.T, place string, count int, dir, azure string) {
	t.Helper()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	told := &told{points: map[ident.Seq]string{}, azure: azure, epoch: 1}
	if place == failpoint.LeaseBroken { // an older owner's
		require.False(t, told.child(t, dir, seed+3, afterKill, ""))
		told.epoch++
	}
	require.True(t, told.child(t, dir, seed, beforeKill, fmt.Sprintf("%s:%d", place, count)), "the place was not reached %d times in %d rounds", count, beforeKill)
	told.child(t, dir, seed+1, afterKill, place+":1")
	require.False(t, told.child(t, dir, seed+2, afterKill, ""))
	require.NotEmpty(t, told.points)
	told.check(t, newRig(t, dir, azure))
}

// check compares the replica with all that was told of it.
func (o *told) check(t *testing.T, r *rig.Rig) {
	t.Helper()
	points := map[ident.Seq]replica.Point{}
	for _, p := range r.Points() {
		points[p.ID] = p
	}
	for id, want := range o.points {
		p, ok := points[id]
		require.True(t, ok, "point %d was told and is gone", id)
		require.Equal(t, want, r.DigestAt(p), "point %d is not what the disks were", id)
	}
	st, err := r.Reader().State(t.Context())
	require.NoError(t, err)
	require.GreaterOrEqual(t, st.Position.Seq, o.acked, "an acknowledged change set is gone")
	require.Equal(t, r.Digest(), r.DigestAt(st.Points[len(st.Points)-1]), "the replica is what the disks are")
	sp, err := spool.Open(filepath.Join(r.Dir, "server", "spool"), 1<<30)
	require.NoError(t, err)
	left, err := sp.List(r.Machine)
	require.NoError(t, err)
	cached, err := r.Cache().List(t.Context(), r.Machine)
	require.NoError(t, err)
	for _, e := range left { // a set may have come in while the server stopped
		require.Greater(t, e.Seq, st.Position.Seq, "what is applied is in no spool")
	}
	for _, e := range cached {
		require.Greater(t, e.Seq, st.Position.Seq, "what is applied is in no cache")
	}
}

// told is what a child said before it ended.
type told struct {
	points map[ident.Seq]string
	acked  ident.Seq
	epoch  ident.Epoch
	azure  string       // endpoint of the stores; empty: directories
	rest   bytes.Buffer // what else it said
}

// child runs this program on the directory, with a place to be killed at or none. It
// reports whether it was killed; every other end but a good one fails the test.
func (o *told) child(t *testing.T, dir string, seed uint64, rounds int, at string) (killed bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), lifeLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestChild$", "-test.count=1")
	cmd.Env = append(os.Environ(), dirVariable+"="+dir, fmt.Sprintf("%s=%d", seedVariable, seed), fmt.Sprintf("%s=%d", longVariable, rounds), failpoint.Variable+"="+at, azureVariable+"="+o.azure, fmt.Sprintf("%s=%d", ownVariable, o.epoch),
		"TMPDIR="+t.TempDir()) // what it leaves when it is killed
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	cmd.Stderr = cmd.Stdout // one pipe for both
	require.NoError(t, cmd.Start())
	for lines := bufio.NewScanner(out); lines.Scan(); {
		var id, acked ident.Seq
		var digest string
		switch line := lines.Text(); {
		case scan(line, "point %d %s", &id, &digest):
			o.points[id] = digest
		case scan(line, "acked %d", &acked):
			o.acked = max(o.acked, acked)
		default:
			fmt.Fprintln(&o.rest, line)
		}
	}
	err = cmd.Wait()
	require.NoError(t, ctx.Err(), "it hangs\n%s", o.rest.String())
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		status, ok := exit.Sys().(syscall.WaitStatus)
		killed = ok && status.Signaled() && status.Signal() == syscall.SIGKILL && at != ""
	}
	if !killed {
		require.NoError(t, err, "with %q:\n%s", at, o.rest.String())
	}
	return killed
}

func scan(line, format string, into ...any) bool {
	n, err := fmt.Sscanf(line, format, into...)
	return err == nil && n == len(into)
}

// TestChild is the process that is killed, and the one after it.
func TestChild(t *testing.T) {
	dir := os.Getenv(dirVariable)
	if dir == "" {
		t.Skip("run by TestKilledAtEveryPlace")
	}
	var seed uint64
	var rounds int
	var epoch ident.Epoch
	_, err := fmt.Sscan(os.Getenv(seedVariable)+" "+os.Getenv(longVariable)+" "+os.Getenv(ownVariable), &seed, &rounds, &epoch)
	require.NoError(t, err)
	rnd := rand.New(rand.NewPCG(seed, 3))
	azure, every := os.Getenv(azureVariable), cadence
	if azure != "" {
		every = azureCadence
	}
	r := newRig(t, dir, azure)
	write(t, r, rnd)
	r.StartServer()
	r.Grant(epoch, every)
	r.StartAgent(epoch)
	for range rounds {
		write(t, r, rnd)
		tell(t, r)
	}
	r.StopAgent()
	r.Await("all is applied", func(st pipe.Status) bool { return st.Applied == st.Spooled && st.BacklogSets == 0 })
}

// underWay is how many sets may have been begun, and not be known to the server, when
// the disks were written last.
const underWay = 3

// tell waits for a point of the disks as they are, holds it, and tells of it. It goes
// by the sequence: a point's time is as good as the measured offset of the clocks.
func tell(t *testing.T, r *rig.Rig) {
	t.Helper()
	next := r.Status().Spooled.Seq + underWay
	for {
		st := r.Await("a point from now on", func(st pipe.Status) bool { return st.LastPoint >= next })
		err := r.Reader().Hold(t.Context(), st.LastPoint, replica.Hold{Owner: "test", Expires: time.Now().Add(held)})
		if errors.Is(err, replica.ErrNotFound) { // thinned by now
			next = st.LastPoint + 1
			continue
		}
		require.NoError(t, err)
		fmt.Printf("\npoint %d %s\nacked %d\n", st.LastPoint, r.Digest(), r.Status().Spooled.Seq)
		return
	}
}

// write changes some blocks of the disks, to noise or to zeros.
func write(t *testing.T, r *rig.Rig, rnd *rand.Rand) {
	t.Helper()
	for range 1 + rnd.IntN(12) {
		disk := rnd.IntN(len(sizes))
		data := make([]byte, rig.Block)
		if rnd.IntN(4) > 0 {
			for i := range data {
				data[i] = byte(rnd.Uint32())
			}
		}
		r.Write(disk, rnd.Int64N(sizes[disk]/rig.Block), data)
	}
}
