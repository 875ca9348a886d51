package azurearm

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"path"
	"slices"
	"strings"
)

// Resource is a resource as JSON.
type Resource struct {
	ID   string
	Type string // lower case, e.g. microsoft.compute/disks
	Body map[string]any
}

// kind says what one type of resource does beyond being kept.
type kind struct {
	status int // of a PUT
	// check refuses a PUT; it sees the resource as it will be.
	check func(s *Server, r *Resource) *problem
	// made completes a resource when its operation ends.
	made func(s *Server, r *Resource) *problem
	// gone refuses a DELETE.
	gone func(s *Server, r *Resource) *problem
	// removed cleans up when it is deleted.
	removed func(s *Server, r *Resource)
}

var kinds map[string]kind

func init() { //nolint:gochecknoinits // the kinds refer to each other
	kinds = map[string]kind{
		typeDisk:     {status: http.StatusAccepted, check: (*Server).checkDisk, made: (*Server).madeDisk, gone: (*Server).diskGone, removed: (*Server).removedDisk},
		typeNIC:      {status: http.StatusCreated, check: (*Server).checkNIC, gone: (*Server).nicGone},
		typeVM:       {status: http.StatusCreated, check: (*Server).checkVM, made: (*Server).madeVM, removed: (*Server).removedVM},
		typeVNet:     {status: http.StatusCreated, gone: (*Server).vnetGone},
		typeSnapshot: {status: http.StatusAccepted},
	}
}

// ID makes the id of a resource.
func ID(group, kind, name string) string {
	return fmt.Sprintf("/subscriptions/%s/resourceGroups/%s/providers/%s/%s", Subscription, group, kind, name)
}

// Put puts a resource there as it is, as somebody else would have.
func (s *Server) Put(group, kind, name string, body map[string]any) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := ID(group, kind, name)
	b, _ := json.Marshal(body)
	r := &Resource{ID: id, Type: strings.ToLower(kind)}
	_ = json.Unmarshal(b, &r.Body)
	s.complete(r)
	r.set("Succeeded", "properties", "provisioningState")
	s.resources[strings.ToLower(id)] = r
	return id
}

// List gives the ids of all resources of a type that are there, sorted.
func (s *Server) List(kind string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for _, r := range s.resources {
		if r.Type == strings.ToLower(kind) {
			out = append(out, r.ID)
		}
	}
	slices.Sort(out)
	return out
}

// Get gives a value of a resource, nil when one of them is not there.
func (s *Server) Get(id string, at ...any) any {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.resources[strings.ToLower(id)]
	if r == nil {
		return nil
	}
	return clone(r.at(at...))
}

// Set changes a value of a resource.
func (s *Server) Set(id string, value any, at ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.resources[strings.ToLower(id)].set(value, at...)
}

func clone(v any) any {
	b, _ := json.Marshal(v)
	var out any
	_ = json.Unmarshal(b, &out)
	return out
}

// at walks into the body: names of fields, numbers of elements.
func (r *Resource) at(at ...any) any { return walk(r.Body, at...) }

func walk(v any, at ...any) any {
	for _, a := range at {
		switch key := a.(type) {
		case string:
			m, _ := v.(map[string]any)
			v = m[key]
		case int:
			l, _ := v.([]any)
			if key >= len(l) {
				return nil
			}
			v = l[key]
		}
	}
	return v
}

func text(v any, at ...any) string {
	s, _ := walk(v, at...).(string)
	return s
}

func list(v any, at ...any) []any {
	l, _ := walk(v, at...).([]any)
	return l
}

func (r *Resource) set(value any, at ...string) {
	m := r.Body
	for _, key := range at[:len(at)-1] {
		next, ok := m[key].(map[string]any)
		if !ok {
			next = map[string]any{}
			m[key] = next
		}
		m = next
	}
	m[at[len(at)-1]] = value
}

// complete gives a resource what every one has.
func (*Server) complete(r *Resource) {
	if r.Body == nil {
		r.Body = map[string]any{}
	}
	r.Body["id"], r.Body["name"], r.Body["type"] = r.ID, path.Base(r.ID), r.Type
	if _, ok := r.Body["properties"].(map[string]any); !ok {
		r.Body["properties"] = map[string]any{}
	}
}

// manage is Azure Resource Manager.
func (s *Server) manage(w http.ResponseWriter, r *http.Request, body []byte, f *Fault) {
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	lower := strings.ToLower(r.URL.Path)
	if s.special(w, r, body, f, lower, parts) {
		return
	}
	at := slices.IndexFunc(parts, func(p string) bool { return strings.EqualFold(p, "providers") })
	if at < 0 || len(parts) < at+3 {
		write(w, nil, nil, refuse(http.StatusNotFound, "NotFound", "nothing at %s", r.URL.Path))
		return
	}
	rest := parts[at+1:] // provider, type, name, sub...
	kindOf := strings.ToLower(rest[0] + "/" + rest[1])
	switch {
	case len(rest) == 2 && r.Method == http.MethodGet:
		s.list(w, strings.Join(parts[:at], "/"), kindOf)
	case len(rest) == 3:
		s.one(w, r, body, f, "/"+strings.Join(parts, "/"), kindOf)
	default:
		write(w, nil, nil, refuse(http.StatusNotFound, "InvalidResourceType", "nothing at %s", r.URL.Path))
	}
}

func (s *Server) list(w http.ResponseWriter, scope, kindOf string) {
	all := []any{}
	for _, id := range slices.Sorted(maps.Keys(s.resources)) {
		res := s.resources[id]
		if res.Type == kindOf && strings.HasPrefix(id, "/"+strings.ToLower(scope)+"/") {
			s.progress(id)
			if s.resources[id] != nil {
				all = append(all, res.Body)
			}
		}
	}
	write(w, nil, map[string]any{"value": all}, nil)
}

// one is a call on a resource itself.
func (s *Server) one(w http.ResponseWriter, r *http.Request, body []byte, f *Fault, id, kindOf string) {
	have := s.resources[strings.ToLower(id)]
	switch r.Method {
	case http.MethodGet:
		s.progress(id)
		if have = s.resources[strings.ToLower(id)]; have == nil {
			write(w, nil, nil, refuse(http.StatusNotFound, "ResourceNotFound", "the resource %s was not found", id))
			return
		}
		write(w, nil, have.Body, nil)
	case http.MethodPut:
		s.put(w, r, body, f, id, kindOf)
	case http.MethodPatch:
		s.patch(w, r, body, f, have, id)
	case http.MethodDelete:
		s.remove(w, r, f, have, id, kindOf)
	default:
		write(w, nil, nil, refuse(http.StatusMethodNotAllowed, "MethodNotAllowed", "%s", r.Method))
	}
}

func (s *Server) put(w http.ResponseWriter, r *http.Request, body []byte, f *Fault, id, kindOf string) {
	res := &Resource{ID: id, Type: kindOf}
	if err := json.Unmarshal(body, &res.Body); err != nil {
		write(w, nil, nil, refuse(http.StatusBadRequest, "InvalidRequestContent", "%v", err))
		return
	}
	s.complete(res)
	old := s.resources[strings.ToLower(id)]
	if old != nil && old.at("properties", "provisioningState") == "Creating" {
		write(w, nil, nil, refuse(http.StatusConflict, "AnotherOperationInProgress", "another operation is in progress on %s", id))
		return
	}
	if text(res.Body, "location") == "" {
		write(w, nil, nil, refuse(http.StatusBadRequest, "LocationRequired", "the location is missing"))
		return
	}
	k := kinds[kindOf]
	if k.check != nil {
		if p := k.check(s, res); p != nil {
			write(w, nil, nil, p)
			return
		}
	}
	res.set("Creating", "properties", "provisioningState")
	s.resources[strings.ToLower(id)] = res
	s.begin(w, r, f, id, func() *problem {
		if k.made != nil {
			if p := k.made(s, res); p != nil {
				res.set("Failed", "properties", "provisioningState")
				return p
			}
		}
		res.set("Succeeded", "properties", "provisioningState")
		return nil
	})
	status := k.status
	if status == 0 {
		status = http.StatusCreated
	}
	write(w, &status, res.Body, nil)
}

func (s *Server) patch(w http.ResponseWriter, r *http.Request, body []byte, f *Fault, have *Resource, id string) {
	if have == nil {
		write(w, nil, nil, refuse(http.StatusNotFound, "ResourceNotFound", "the resource %s was not found", id))
		return
	}
	var change map[string]any
	if err := json.Unmarshal(body, &change); err != nil {
		write(w, nil, nil, refuse(http.StatusBadRequest, "InvalidRequestContent", "%v", err))
		return
	}
	if tags, ok := change["tags"]; ok {
		have.Body["tags"] = tags
	}
	if have.Type == typeNIC { // its update is no long-running operation
		write(w, nil, have.Body, nil)
		return
	}
	s.begin(w, r, f, id, func() *problem { return nil })
	status := http.StatusAccepted
	if have.Type == typeVM {
		status = http.StatusOK
	}
	write(w, &status, have.Body, nil)
}

func (s *Server) remove(w http.ResponseWriter, r *http.Request, f *Fault, have *Resource, id, kindOf string) {
	if have == nil {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	k := kinds[kindOf]
	if k.gone != nil {
		if p := k.gone(s, have); p != nil {
			write(w, nil, nil, p)
			return
		}
	}
	have.set("Deleting", "properties", "provisioningState")
	s.begin(w, r, f, id, func() *problem {
		if k.removed != nil {
			k.removed(s, have)
		}
		delete(s.resources, strings.ToLower(id))
		return nil
	})
	w.WriteHeader(http.StatusAccepted)
}
