package azurearm

import (
	"fmt"
	"net/http"
	"path"
	"strings"
)

// operation is a long-running operation. It goes on with each look at it or at its
// resource, so that tests do not depend on time.
type operation struct {
	id       string
	number   int
	resource string // lower-case id
	left     int
	fail     string // code, when it ends in failure
	end      func() *problem
	output   any
	done     bool
	failed   *problem
}

// begin starts an operation on a resource. What it changes at its end is in end.
func (s *Server) begin(w http.ResponseWriter, r *http.Request, f *Fault, id string, end func() *problem) *operation {
	s.serial++
	op := &operation{id: fmt.Sprintf("op-%d", s.serial), number: s.serial, resource: strings.ToLower(id), left: pollsOfAnOperation, end: end}
	if f != nil {
		op.fail = f.Async
	}
	s.operations[op.id] = op
	url := fmt.Sprintf("%s/operations/%s?api-version=%s", s.URL, op.id, r.URL.Query().Get("api-version"))
	w.Header().Set("Azure-AsyncOperation", url)
	w.Header().Set("Location", url+"&result=true")
	w.Header().Set("Retry-After-Ms", "5")
	return op
}

// step brings an operation on by one look. Those on one resource happen in the order
// in which they were begun.
func (s *Server) step(op *operation) {
	if op.done {
		return
	}
	for _, other := range s.operations {
		if other.resource == op.resource && !other.done && other.number < op.number {
			op = other
		}
	}
	for _, h := range s.held {
		if strings.Contains(op.resource, h) {
			return
		}
	}
	if op.left--; op.left > 0 {
		return
	}
	op.done = true
	if op.fail != "" {
		op.failed = refuse(http.StatusConflict, op.fail, "the operation failed: %s", op.fail)
		if r := s.resources[op.resource]; r != nil {
			r.set("Failed", "properties", "provisioningState")
		}
		return
	}
	op.failed = op.end()
}

// progress brings the operations on a resource on.
func (s *Server) progress(id string) {
	for _, op := range s.operations {
		if op.resource == strings.ToLower(id) && !op.done {
			s.step(op)
			return
		}
	}
}

// poll answers Azure-AsyncOperation, and Location with result=true.
func (s *Server) poll(w http.ResponseWriter, r *http.Request) {
	op := s.operations[path.Base(r.URL.Path)]
	if op == nil {
		write(w, nil, nil, refuse(http.StatusNotFound, "OperationNotFound", "no such operation"))
		return
	}
	result := r.URL.Query().Get("result") != ""
	if !result {
		s.step(op)
	}
	answer := map[string]any{"name": op.id, "status": "InProgress", "startTime": "2026-01-01T00:00:00Z"}
	switch {
	case !op.done:
		w.Header().Set("Retry-After-Ms", "5")
	case op.failed != nil:
		answer["status"] = "Failed"
		answer["error"] = map[string]any{"code": op.failed.code, "message": op.failed.message}
	default:
		answer["status"] = "Succeeded"
		if op.output != nil {
			answer["properties"] = map[string]any{"output": op.output}
			if result {
				write(w, nil, op.output, nil)
				return
			}
		}
	}
	write(w, nil, answer, nil)
}
