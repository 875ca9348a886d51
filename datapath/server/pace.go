package server

import (
	"time"

	"drover/datapath/stream"
	"drover/datapath/throttle"
)

// schedule is the machine's own throttle. One that cannot be read was refused when
// it was granted; after a change of programs it must not keep the machine away.
func (m *machine) schedule(g stream.Grant) throttle.Schedule {
	s, err := throttle.Compile(g.Throttle)
	if err != nil {
		m.s.Logger.Error("the machine's throttle cannot be used; it streams without", "machine", m.id.String(), "error", err.Error())
	}
	return s
}

// pace holds the agent to the limits of its machine and of the server from here
// on, until the session is to end: then what is on its way is read at once.
func (x *session) pace() {
	pacer := throttle.NewPacer(x.m.line, x.m.s.line)
	x.conn.Pace(func(n int) { pacer.Wait(x.ctx, n, x.alive) })
}

// alive notes that the agent is heard: it is us who do not read on.
func (x *session) alive() {
	x.m.mu.Lock()
	defer x.m.mu.Unlock()
	x.m.seen = time.Now()
	x.m.heard = x.m.seen
}
