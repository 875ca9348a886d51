package server

import (
	"time"

	"drover/datapath/ident"
	"drover/datapath/replica"
	"drover/datapath/stream"
)

// facts are what happened to a machine's stream since it was granted here.
type facts struct {
	stored        ident.Position
	storedTime    time.Time
	applied       ident.Position
	dataBytes     int64
	wireBytes     int64
	cacheBytes    int64
	baseDataBytes int64
	baseWireBytes int64
	baseStarted   time.Time
	baseFinished  time.Time
	freeze        time.Duration
	disks         []stream.DiskProgress // in the grant's order
}

// reset forgets everything, for a new grant.
func (f *facts) reset(g stream.Grant) { *f = facts{disks: progressOf(g.Spec.Disks)} }

// begin starts counting a base pass.
func (f *facts) begin(disks []replica.Disk) {
	f.baseDataBytes, f.baseWireBytes, f.baseStarted, f.baseFinished = 0, 0, time.Now(), time.Time{}
	f.disks = progressOf(disks)
}

func progressOf(disks []replica.Disk) []stream.DiskProgress {
	out := make([]stream.DiskProgress, len(disks))
	for i, d := range disks {
		out[i] = stream.DiskProgress{ID: d.ID, Name: d.Name, Size: d.Size}
	}
	return out
}

// disk finds the progress of a disk, whatever its place in the replica.
func (f *facts) disk(id ident.DiskID) *stream.DiskProgress {
	for i := range f.disks {
		if f.disks[i].ID == id {
			return &f.disks[i]
		}
	}
	return nil
}

// status puts together what is known now.
func (m *machine) status() stream.Status {
	m.mu.Lock()
	f, w, p, group := m.facts, m.writer, m.pipe, m.rec.Grant.Group
	st := stream.Status{
		Machine: m.id, Epoch: m.rec.Grant.Epoch, Broken: m.rec.Broken, Connected: m.session != nil, LastSeen: m.heard,
		Stored: f.stored, Applied: f.applied, StoredTime: f.storedTime,
		Disks:     append([]stream.DiskProgress(nil), f.disks...),
		DataBytes: f.dataBytes, WireBytes: f.wireBytes, CacheBytes: f.cacheBytes,
		BaseDataBytes: f.baseDataBytes, BaseWireBytes: f.baseWireBytes,
		BaseStarted: f.baseStarted, BaseFinished: f.baseFinished, FreezeLast: f.freeze, ServerTime: time.Now().UTC(),
	}
	if c := m.comparison; c != nil {
		st.Verify = &stream.VerifyProgress{Deep: c.order.Deep, Done: c.read, Total: c.total, Started: c.started.UTC(), Waits: m.waits(c)}
	}
	m.mu.Unlock()
	st.Group = m.s.groups.status(m.id, group)
	m.s.mu.Lock()
	if v, ok := m.s.records[m.id]; ok {
		st.Verified = &v
	}
	m.s.mu.Unlock()
	if w != nil {
		rs := w.State()
		fromReplica(&st, rs)
		m.fillTimes(&st, rs.Spec.Disks)
	}
	if p != nil {
		st.Spooled, _ = p.Tail()
		st.BacklogSets, st.BacklogBytes = p.Backlog()
	}
	st.Phase = phaseOf(st)
	return st
}

// fillTimes gives each disk the times that are counted by its place in the replica.
func (m *machine) fillTimes(st *stream.Status, order []replica.Disk) {
	for i, t := range m.times.Read() {
		for j := range st.Disks {
			if i < len(order) && st.Disks[j].ID == order[i].ID {
				st.Disks[j].Times = t
			}
		}
	}
}

func fromReplica(st *stream.Status, s replica.State) {
	st.Generation, st.Complete, st.Points = s.Generation, s.Complete, len(s.Points)
	if st.Applied.IsZero() {
		st.Applied = s.Position
	}
	if st.Stored.IsZero() {
		st.Stored = s.Position
	}
	if n := len(s.Points); n > 0 {
		st.LastPoint, st.PointTime = s.Points[n-1].ID, s.Points[n-1].Time
		if st.StoredTime.Before(st.PointTime) {
			st.StoredTime = st.PointTime
		}
	}
}

func phaseOf(st stream.Status) stream.Phase {
	switch {
	case st.Broken != nil:
		return stream.PhaseBroken
	case st.LastSeen.IsZero():
		return stream.PhaseWaiting
	case !st.Complete:
		return stream.PhaseBase
	}
	return stream.PhaseDelta
}
