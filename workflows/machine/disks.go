package machine

import "drover/workflows/api"

// reported takes what the machine's agent says of itself and its guest.
func (e *entity) reported(r api.AgentReport) {
	if r.Machine != e.s.Machine {
		return
	}
	r.State, r.Detail = "", "" // of a moment that is over; the stream says what goes on
	e.s.Agent = &r
}
