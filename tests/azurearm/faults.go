package azurearm

import (
	"net/http"
	"strings"
)

// Fault is something that goes wrong with a call.
type Fault struct {
	Method string // of the calls; empty: any
	Path   string // contained in their path, in any case of letters
	Times  int    // how often; 0 is once

	// Status, Code, Message and RetryAfter of the answer, when nothing is done.
	Status        int
	Code, Message string
	RetryAfter    string
	// Lost: it is done, and the answer is a timeout.
	Lost bool
	// Async is the code with which the operation fails, after it was accepted.
	Async string
}

// Inject makes calls fail from now on.
func (s *Server) Inject(f Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.Times == 0 {
		f.Times = 1
	}
	s.faults = append(s.faults, &f)
}

// fault finds the one for a call and uses it up.
func (s *Server) fault(r *http.Request) *Fault {
	for _, f := range s.faults {
		if f.Times > 0 && (f.Method == "" || f.Method == r.Method) && strings.Contains(strings.ToLower(r.URL.Path), strings.ToLower(f.Path)) {
			f.Times--
			return f
		}
	}
	return nil
}

// Hold keeps operations on resources whose id contains the text under way until
// Release.
func (s *Server) Hold(path string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held = append(s.held, strings.ToLower(path))
}

// Release lets all operations go on.
func (s *Server) Release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held = nil
}
