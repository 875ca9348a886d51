package azurearm

import (
	"encoding/json"
	"net/http"
	"strings"
)

// Runbook is a runbook of an automation account.
type Runbook struct {
	Name   string
	State  string   // Published, or New
	Ends   string   // Completed, Failed, Suspended; "" never ends
	Output string   // of each job
	Error  string   // its exception
	Jobs   []string // parameters of the jobs so far, as JSON
	Stops  int
}

// AddRunbook puts a runbook into every automation account.
func (s *Server) AddRunbook(r *Runbook) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.runbooks[r.Name] = r
}

const typeJob = "microsoft.automation/jobs"

// automation: .../automationAccounts/{account}/{runbooks|jobs}/{name}[/output|/stop].
func (s *Server) automation(w http.ResponseWriter, r *http.Request, body []byte, parts []string) {
	if len(parts) < 10 {
		write(w, nil, nil, refuse(http.StatusNotFound, "NotFound", "nothing at %s", r.URL.Path))
		return
	}
	switch parts[8] {
	case "runbooks":
		book := s.runbooks[parts[9]]
		if book == nil {
			write(w, nil, nil, refuse(http.StatusNotFound, "NotFound", "The runbook %s does not exist.", parts[9]))
			return
		}
		write(w, nil, map[string]any{"id": r.URL.Path, "name": book.Name, "location": Location, "properties": map[string]any{"state": book.State}}, nil)
	case "jobs":
		s.job(w, r, body, "/"+strings.Join(parts[:10], "/"), parts[10:])
	}
}

func (s *Server) job(w http.ResponseWriter, r *http.Request, body []byte, id string, below []string) {
	have := s.find(id)
	switch {
	case r.Method == http.MethodPut && have == nil:
		s.startJob(w, id, body)
	case r.Method == http.MethodPut:
		write(w, nil, nil, refuse(http.StatusConflict, "Conflict", "The job already exists."))
	case have == nil:
		write(w, nil, nil, refuse(http.StatusNotFound, "NotFound", "The job does not exist."))
	case len(below) == 1 && below[0] == "output":
		w.Header().Set("Content-Type", "text/plain")
		_, _ = w.Write([]byte(s.runbooks[text(have.Body, "properties", "runbook", "name")].Output))
	case len(below) == 1 && below[0] == "stop":
		s.runbooks[text(have.Body, "properties", "runbook", "name")].Stops++
		have.set("Stopped", "properties", "status")
		write(w, nil, nil, nil)
	default:
		s.stepJob(have)
		write(w, nil, have.Body, nil)
	}
}

func (s *Server) startJob(w http.ResponseWriter, id string, body []byte) {
	job := &Resource{ID: id, Type: typeJob}
	if err := json.Unmarshal(body, &job.Body); err != nil {
		write(w, nil, nil, refuse(http.StatusBadRequest, "BadRequest", "%v", err))
		return
	}
	s.complete(job)
	book := s.runbooks[text(job.Body, "properties", "runbook", "name")]
	if book == nil || book.State != "Published" {
		write(w, nil, nil, refuse(http.StatusBadRequest, "BadRequest", "The runbook is not there or not published."))
		return
	}
	parameters, _ := json.Marshal(job.at("properties", "parameters"))
	book.Jobs = append(book.Jobs, string(parameters))
	job.set("New", "properties", "status")
	s.resources[strings.ToLower(id)] = job
	created := http.StatusCreated
	write(w, &created, job.Body, nil)
}

// stepJob brings a job on by one look.
func (s *Server) stepJob(job *Resource) {
	book := s.runbooks[text(job.Body, "properties", "runbook", "name")]
	switch text(job.Body, "properties", "status") {
	case "New":
		job.set("Running", "properties", "status")
	case "Running":
		if book.Ends != "" {
			job.set(book.Ends, "properties", "status")
			job.set(book.Error, "properties", "exception")
		}
	}
}
