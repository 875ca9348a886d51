// Package waterfall says where the time of a stream goes. Every chunk of data has,
// from the moment it is read until it is in the replica, exactly one stage that it
// waits for or is worked on by; the times are summed per disk. The largest sum names
// the bottleneck.
package waterfall

import (
	"fmt"
	"sync"
	"time"
)

// Stage is what a chunk waits for. The numbers are part of the wire format.
type Stage uint8

// The stages, in the order in which a chunk passes them.
const (
	Read     Stage = iota // from the source's disk
	Hash                  // checksums, at the source and again where it arrives
	Compress              // at the agent, or at the server if the policy says so
	Net                   // the line and its encryption, and the agent's queue for it
	Encrypt               // sealing at the server
	Spool                 // writing to the spool, and waiting there for the set's end
	Fsync                 // of the spool
	Upload                // to the cache storage, and the queue for it
	Apply                 // to the replica, and the queue for it
	Stages   = iota
)

var names = [Stages]string{"read", "hash", "compress", "net", "encrypt", "spool", "fsync", "upload", "apply"}

func (s Stage) String() string {
	if int(s) >= len(names) {
		return fmt.Sprintf("stage(%d)", uint8(s))
	}
	return names[s]
}

// Times are what the chunks of one disk spent in each stage, summed over them.
type Times struct {
	Chunks int64                 `json:"chunks"`
	Spent  [Stages]time.Duration `json:"spent"` // in the order of the stages
}

// Add adds other times.
func (t *Times) Add(o Times) {
	t.Chunks += o.Chunks
	for i := range t.Spent {
		t.Spent[i] += o.Spent[i]
	}
}

// Sub gives what was spent since an earlier reading.
func (t Times) Sub(earlier Times) Times {
	t.Chunks -= earlier.Chunks
	for i := range t.Spent {
		t.Spent[i] -= earlier.Spent[i]
	}
	return t
}

// Worst gives the stage that took most, and its part of all in percent.
func (t Times) Worst() (worst Stage, percent int) {
	var all time.Duration
	for s, d := range t.Spent {
		all += d
		if d > t.Spent[worst] {
			worst = Stage(s)
		}
	}
	if all <= 0 {
		return worst, 0
	}
	return worst, int(100 * t.Spent[worst] / all)
}

// Table sums times per disk. The zero Table is ready; it is safe for concurrent use.
type Table struct {
	mu    sync.Mutex
	disks []Times // by the disk's index
}

// Spend adds what n chunks of a disk spent in a stage, each of them d.
func (t *Table) Spend(disk int, s Stage, n int64, d time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.at(disk).Spent[s] += time.Duration(n) * d
}

// Add adds times of a disk.
func (t *Table) Add(disk int, o Times) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.at(disk).Add(o)
}

func (t *Table) at(disk int) *Times {
	for len(t.disks) <= disk {
		t.disks = append(t.disks, Times{})
	}
	return &t.disks[disk]
}

// Take gives all times by disk and starts anew.
func (t *Table) Take() []Times {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := t.disks
	t.disks = nil
	return out
}

// Read gives all times by disk.
func (t *Table) Read() []Times {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]Times(nil), t.disks...)
}

// Lap measures the stages that one chunk passes, one after the other.
type Lap struct {
	last  time.Time
	Spent [Stages]time.Duration
}

// Start begins with the chunk in its first stage.
func Start() Lap { return Lap{last: time.Now()} }

// Done ends a stage; the next one begins.
func (l *Lap) Done(s Stage) {
	now := time.Now()
	l.Spent[s] += now.Sub(l.last)
	l.last = now
}

// Move says that a part of one stage's time, at most all of it, was another's.
func (l *Lap) Move(from, to Stage, d time.Duration) {
	d = min(d, l.Spent[from])
	l.Spent[from] -= d
	l.Spent[to] += d
}

// Since gives how long after a moment the last stage ended.
func (l *Lap) Since(t time.Time) time.Duration { return l.last.Sub(t) }

// Times of the one chunk.
func (l *Lap) Times() Times { return Times{Chunks: 1, Spent: l.Spent} }
