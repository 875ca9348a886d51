package vsim

import (
	"context"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path"
	"strings"
	"sync"

	"github.com/vmware/govmomi/vapi/rest"
	vapi "github.com/vmware/govmomi/vapi/simulator"
	"github.com/vmware/govmomi/vapi/tags"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

const (
	sessionHeader = "vmware-api-session-id"
	sessionPath   = rest.Path + "/com/vmware/cis/session"
)

// restDoor is what REST requests go through on their way to the simulator's vAPI.
type restDoor struct {
	vapi http.Handler

	mu       sync.Mutex
	sessions map[string]bool // but the administrator's
	logins   int
	instead  http.Handler // answers in vCenter's place
}

// serveREST puts vAPI into the vCenter, with the same users.
func (s *Sim) serveREST() {
	_, handler := vapi.New(s.model.Service.Listen, s.model.Map())
	s.rest = &restDoor{vapi: handler, sessions: map[string]bool{}}
	s.model.Service.Handle(rest.Path+"/", s.rest)
}

func (d *restDoor) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get(asAdministrator) != "" {
		d.vapi.ServeHTTP(w, r)
		return
	}
	d.mu.Lock()
	instead := d.instead
	d.mu.Unlock()
	if instead != nil {
		instead.ServeHTTP(w, r)
		return
	}
	if r.URL.Path != sessionPath || r.URL.RawQuery != "" {
		d.vapi.ServeHTTP(w, r)
		return
	}
	answer := httptest.NewRecorder()
	d.vapi.ServeHTTP(answer, r)
	d.note(r, answer)
	w.WriteHeader(answer.Code)
	_, _ = w.Write(answer.Body.Bytes())
}

// note keeps count of sessions as they come and go.
func (d *restDoor) note(r *http.Request, answer *httptest.ResponseRecorder) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch r.Method {
	case http.MethodDelete:
		delete(d.sessions, r.Header.Get(sessionHeader))
	case http.MethodPost:
		d.logins++
		if _, id, ok := strings.Cut(answer.Body.String(), `"value":"`); ok && answer.Code == http.StatusOK {
			id, _, _ = strings.Cut(id, `"`)
			d.sessions[id] = true
		}
	}
}

// RESTLogins says how often somebody tried to log in to REST.
func (s *Sim) RESTLogins() int {
	s.rest.mu.Lock()
	defer s.rest.mu.Unlock()
	return s.rest.logins
}

// RESTSessions says how many there are.
func (s *Sim) RESTSessions() int {
	s.rest.mu.Lock()
	defer s.rest.mu.Unlock()
	return len(s.rest.sessions)
}

// EndRESTSessions ends all, and says how many there were.
func (s *Sim) EndRESTSessions() int {
	s.rest.mu.Lock()
	defer s.rest.mu.Unlock()
	for id := range s.rest.sessions {
		r := httptest.NewRequest(http.MethodDelete, sessionPath, nil)
		r.Header.Set(sessionHeader, id)
		s.rest.vapi.ServeHTTP(httptest.NewRecorder(), r)
	}
	n := len(s.rest.sessions)
	clear(s.rest.sessions)
	return n
}

// REST lets something else answer in place of vCenter's REST; nil: vCenter again.
func (s *Sim) REST(instead http.Handler) {
	s.rest.mu.Lock()
	defer s.rest.mu.Unlock()
	s.rest.instead = instead
}

// asAdministrator marks the requests of this package.
const asAdministrator = "Drover-Vsim-Administrator"

// withTags calls f as the administrator.
func (s *Sim) withTags(ctx context.Context, f func(context.Context, *tags.Manager) error) error {
	client := rest.NewClient(s.client.Client)
	ctx = client.WithHeader(ctx, http.Header{asAdministrator: []string{"yes"}})
	if err := client.Login(ctx, url.UserPassword(s.spec.User, s.spec.Password)); err != nil {
		return err
	}
	defer func() { _ = client.Logout(ctx) }()
	return f(ctx, tags.NewManager(client))
}

// Tag puts a tag ("category/name") on a VM, and makes it if it is not there. vCenter tells
// of it with an event.
func (s *Sim) Tag(ctx context.Context, vm, tag string) error {
	return s.retag(ctx, vm, tag, "attach", (*tags.Manager).AttachTag)
}

// Untag takes it off.
func (s *Sim) Untag(ctx context.Context, vm, tag string) error {
	return s.retag(ctx, vm, tag, "detach", (*tags.Manager).DetachTag)
}

func (s *Sim) retag(ctx context.Context, name, tag, what string, do func(*tags.Manager, context.Context, string, mo.Reference) error) error {
	vm, err := s.VM(ctx, name)
	if err != nil {
		return err
	}
	err = s.withTags(ctx, func(ctx context.Context, m *tags.Manager) error {
		id, err := tagID(ctx, m, path.Dir(tag), path.Base(tag))
		if err != nil {
			return err
		}
		return do(m, ctx, id, vm)
	})
	if err != nil {
		return err
	}
	return s.Post(ctx, &types.EventEx{EventTypeId: "com.vmware.cis.tagging." + what, ObjectType: "VirtualMachine", ObjectId: vm.Reference().Value})
}

// tagID finds a tag, or makes it.
func tagID(ctx context.Context, m *tags.Manager, category, name string) (string, error) {
	all, err := m.GetCategories(ctx)
	if err != nil {
		return "", err
	}
	in := ""
	for _, c := range all {
		if c.Name == category {
			in = c.ID
		}
	}
	if in == "" {
		if in, err = m.CreateCategory(ctx, &tags.Category{Name: category, Cardinality: "MULTIPLE"}); err != nil {
			return "", err
		}
	}
	known, err := m.GetTagsForCategory(ctx, in)
	if err != nil {
		return "", err
	}
	for _, t := range known {
		if t.Name == name {
			return t.ID, nil
		}
	}
	return m.CreateTag(ctx, &tags.Tag{Name: name, CategoryID: in})
}
