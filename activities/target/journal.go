package target

import (
	"context"
	"maps"
	"sync"
	"time"

	"go.temporal.io/sdk/activity"
)

// beatEvery is how often an activity tells that it lives; the heartbeat timeout is
// several times longer.
const beatEvery = 2 * time.Second

// Progress is the heartbeat of the activities on a target.
type Progress struct {
	Disk  string `json:"disk,omitempty"`
	Done  int64  `json:"done,omitempty"`
	Total int64  `json:"total,omitempty"`
	// Operations are the cloud's long-running operations that were begun and not
	// seen to end, by what they are about: their resume tokens.
	Operations map[string]string `json:"operations,omitempty"`
}

// Journal is what the next try of an activity finds when its worker has died. Each
// change goes into the heartbeat at once; of one that the worker's death loses, the
// cloud itself has to be asked, by the names and tags of what was made.
type Journal struct {
	mu   sync.Mutex
	now  Progress
	tell func(Progress) // nil outside of activities
}

type journalKey struct{}

// JournalOf gives the journal of the activity under way; one that nobody reads
// when there is none.
func JournalOf(ctx context.Context) *Journal {
	if j, ok := ctx.Value(journalKey{}).(*Journal); ok {
		return j
	}
	return &Journal{}
}

// Begin opens the journal of an activity, with what an earlier try left in it, and
// beats until the function it gives is called.
func Begin(ctx context.Context) (context.Context, func()) {
	j := &Journal{}
	ctx = context.WithValue(ctx, journalKey{}, j)
	if !activity.IsActivity(ctx) {
		return ctx, func() {}
	}
	if activity.HasHeartbeatDetails(ctx) {
		if err := activity.GetHeartbeatDetails(ctx, &j.now); err != nil {
			j.now = Progress{} // of another version: the cloud is asked
		}
	}
	j.tell = func(p Progress) { activity.RecordHeartbeat(ctx, p) }
	done, ended := make(chan struct{}), make(chan struct{})
	go func() { defer close(ended); j.beat(done) }()
	return ctx, func() { close(done); <-ended }
}

func (j *Journal) beat(done <-chan struct{}) {
	ticker := time.NewTicker(beatEvery)
	defer ticker.Stop()
	for {
		j.change(func(*Progress) {})
		select {
		case <-done:
			return
		case <-ticker.C:
		}
	}
}

func (j *Journal) change(f func(*Progress)) {
	j.mu.Lock()
	defer j.mu.Unlock()
	f(&j.now)
	if j.tell != nil {
		p := j.now
		p.Operations = maps.Clone(p.Operations)
		j.tell(p)
	}
}

// Operation gives the resume token of an operation that was begun; "" for none.
func (j *Journal) Operation(about string) string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.now.Operations[about]
}

// UnderWay gives what of the list an earlier try began and did not see to end; "" for
// nothing.
func (j *Journal) UnderWay(about ...string) string {
	for _, a := range about {
		if j.Operation(a) != "" {
			return a
		}
	}
	return ""
}

// Begun notes an operation.
func (j *Journal) Begun(about, token string) {
	j.change(func(p *Progress) {
		if p.Operations == nil {
			p.Operations = map[string]string{}
		}
		p.Operations[about] = token
	})
}

// Ended forgets an operation.
func (j *Journal) Ended(about string) {
	if j.Operation(about) != "" {
		j.change(func(p *Progress) { delete(p.Operations, about) })
	}
}

// Filled gives how far a disk is filled, by an earlier try too.
func (j *Journal) Filled(disk string) int64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.now.Disk != disk {
		return 0
	}
	return j.now.Done
}

// Fill notes how far a disk is filled; the beat tells it.
func (j *Journal) Fill(disk string, done, total int64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.now.Disk, j.now.Done, j.now.Total = disk, done, total
}
