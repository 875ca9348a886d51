package vsphere

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/types"

	"drover/tests/vsim"
	"drover/workflows/api"
)

func tag(category, name string) api.VMTag { return api.VMTag{Category: category, Name: name} }

// newTagged: db-1 has two tags, app-1 one, the master target none.
func newTagged(t *testing.T) *world {
	t.Helper()
	return newWorldOf(t, vsim.VMSpec{Name: "db-1", CPUs: 2, MemoryMB: 2048, Disks: []int64{1 << 20, 2 << 20}, Tags: []string{"tier/gold", "app/erp"}},
		vsim.VMSpec{Name: "app-1", CPUs: 1, MemoryMB: 1024, Disks: []int64{1 << 20}, Tags: []string{"app/erp"}})
}

func (w *world) tagsByName(t *testing.T) (map[string][]api.VMTag, string) {
	t.Helper()
	out, err := w.Inventory(t.Context(), w.vcenter)
	require.NoError(t, err, "a pass does without tags")
	require.Len(t, out.VMs, 3)
	by := map[string][]api.VMTag{}
	for _, vm := range out.VMs {
		by[vm.Name] = vm.Tags
	}
	return by, out.TagsError
}

var taggedBefore = map[string][]api.VMTag{"db-1": {tag("app", "erp"), tag("tier", "gold")}, "app-1": {tag("app", "erp")}, "mt-1": nil}

// TestTagsAreWatched: those that a VM has when the watch begins, gets, and loses; those of
// a VM that is new.
func TestTagsAreWatched(t *testing.T) {
	w := newTagged(t)
	ctx := t.Context()
	before, err := w.Inventory(ctx, w.vcenter)
	require.NoError(t, err)
	require.Empty(t, before.TagsError)
	x := w.watch(t, api.EventCursor{})
	first := x.see("all", full)
	require.Equal(t, before.VMs, first.VMs, "a watch and a pass see the same tags")
	require.Equal(t, taggedBefore["db-1"], first.VMs[1].Tags)

	is := func(name string, tags ...api.VMTag) func(api.WatchReport) bool {
		return vmThat(func(vm api.VM) bool { return vm.Name == name && fmt.Sprint(vm.Tags) == fmt.Sprint(tags) })
	}
	require.NoError(t, w.sim.Tag(ctx, "mt-1", "tier/none"))
	r := x.see("a tag that came", is("mt-1", tag("tier", "none")))
	require.Len(t, r.VMs, 1)
	require.NoError(t, w.sim.Untag(ctx, "db-1", "app/erp"))
	x.see("a tag that went", is("db-1", tag("tier", "gold")))
	x.make("new-1")
	x.see("a new VM", is("new-1"))
	require.NoError(t, w.sim.Tag(ctx, "new-1", "tier/gold"))
	x.see("its tag", is("new-1", tag("tier", "gold")))

	// REST goes and comes again while VMs are watched.
	w.sim.REST(http.NotFoundHandler())
	require.NoError(t, w.sim.Tag(ctx, "app-1", "tier/gold"))
	r = x.see("why tags are not read", func(r api.WatchReport) bool { return r.TagsError != "" })
	require.Contains(t, r.TagsError, "404")
	db, err := w.sim.VM(ctx, "db-1")
	require.NoError(t, err)
	x.do(db.PowerOff(ctx))
	r = x.see("what is no tag", vmThat(func(vm api.VM) bool { return vm.Name == "db-1" && !vm.PoweredOn }))
	require.Equal(t, []api.VMTag{tag("tier", "gold")}, r.VMs[0].Tags, "what is known stays")
	w.sim.REST(nil)
	r = x.see("the tag that came meanwhile", is("app-1", tag("app", "erp"), tag("tier", "gold")))
	require.Empty(t, r.TagsError)
}

// TestRESTSession: it is opened when it is needed, shared, opened again once when it is
// lost, and ended with the session over SOAP.
func TestRESTSession(t *testing.T) {
	w := newTagged(t)
	_, err := w.CheckPrivileges(t.Context(), api.CheckVCenterInput{VCenter: "vc-1", Functions: []string{api.VCenterDiscover}})
	require.NoError(t, err)
	require.Zero(t, w.sim.RESTLogins(), "nothing needed it yet")

	all := func() {
		t.Helper()
		done := make(chan error, 8)
		for range cap(done) {
			go func() {
				out, err := w.Inventory(t.Context(), w.vcenter)
				if err == nil && out.TagsError != "" {
					err = fmt.Errorf("tags: %s", out.TagsError)
				}
				done <- err
			}()
		}
		for range cap(done) {
			require.NoError(t, <-done)
		}
	}
	all()
	require.Equal(t, 1, w.sim.RESTLogins())
	require.Equal(t, 1, w.sim.RESTSessions())

	for n := 2; n < 4; n++ {
		require.Equal(t, 1, w.sim.EndRESTSessions())
		all()
		require.Equal(t, n, w.sim.RESTLogins(), "one log-in, however many asked")
	}

	// A password that is changed: both halves log in with it.
	w.sim.Logins(func(user, password string) bool { return user == "rotated" && password == "new word" })
	w.rotate(t, "rotated", "new word")
	got, why := w.tagsByName(t)
	require.Empty(t, why)
	require.Equal(t, taggedBefore, got)
	require.Equal(t, 4, w.sim.RESTLogins())
	require.Equal(t, 1, w.sim.RESTSessions(), "the old one was ended")

	w.Close(t.Context())
	require.Zero(t, w.sim.RESTSessions())
}

// TestRESTIsLostInAWatch: the session over SOAP goes on.
func TestRESTIsLostInAWatch(t *testing.T) {
	w := newTagged(t)
	p := w.through(t)
	x := w.watch(t, api.EventCursor{})
	x.see("all", full)
	require.Equal(t, 1, w.sim.EndRESTSessions())
	require.NoError(t, w.sim.Tag(t.Context(), "mt-1", "tier/none"))
	r := x.see("a tag", vmThat(func(vm api.VM) bool { return vm.Name == "mt-1" && len(vm.Tags) == 1 }))
	require.False(t, r.Full, "the same watch")
	require.Equal(t, 2, w.sim.RESTLogins())
	require.Equal(t, 1, p.Calls("Login"))
}

// TestIdleREST: a sign of life keeps it; without one it ends, and is opened again.
func TestIdleREST(t *testing.T) {
	for name, every := range map[string]time.Duration{"kept": 300 * time.Millisecond, "opened again": time.Hour} {
		t.Run(name, func(t *testing.T) {
			w := newTagged(t)
			w.config.KeepAlive = every
			options := object.NewOptionManager(w.sim.Client().Client, *w.sim.Client().ServiceContent.Setting)
			require.NoError(t, options.Update(t.Context(), []types.BaseOptionValue{&types.OptionValue{Key: "config.vmacore.soap.sessionTimeout", Value: "1s"}}))
			_, why := w.tagsByName(t)
			require.Empty(t, why)
			time.Sleep(3 * time.Second)
			got, why := w.tagsByName(t)
			require.Empty(t, why)
			require.Equal(t, taggedBefore, got)
			want := 1
			if every == time.Hour {
				want = 2
			}
			require.Equal(t, want, w.sim.RESTLogins())
		})
	}
}

// TestWithoutREST: a pass does without tags and says why; nothing secret goes astray.
func TestWithoutREST(t *testing.T) {
	var astray atomic.Int32
	elsewhere := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { astray.Add(1) }))
	defer elsewhere.Close()
	long := `{"value":"` + strings.Repeat("x", maxREST+1) + `"}`
	for name, c := range map[string]struct {
		instead http.HandlerFunc
		why     string
	}{
		"none":        {http.NotFound, "seems to have none"},
		"unavailable": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }, "503"},
		"refused":     {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) }, "as the user of credentials vc"},
		"elsewhere": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, elsewhere.URL, http.StatusTemporaryRedirect)
		}, "307"},
		"too long": {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(long)) }, "too large"},
		"no JSON":  {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) }, "invalid character"},
		"long error": {func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusBadRequest)
			_, _ = w.Write([]byte(long))
		}, "too large"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newTagged(t)
			w.sim.REST(c.instead)
			got, why := w.tagsByName(t)
			require.Equal(t, map[string][]api.VMTag{"db-1": nil, "app-1": nil, "mt-1": nil}, got)
			require.Contains(t, why, "read the tags of VMs in vCenter vc-1")
			require.Contains(t, why, c.why)
			require.Less(t, len(why), 1000)
			require.NotContains(t, why, "secret word")
			w.sim.REST(nil)
			got, why = w.tagsByName(t)
			require.Empty(t, why)
			require.Equal(t, taggedBefore, got)
		})
	}
	require.Zero(t, astray.Load(), "no redirection is followed")
}

// TestRESTThatHangs: what else is seen waits for it no longer than its limit, which the
// caller's is here.
func TestRESTThatHangs(t *testing.T) {
	w := newTagged(t)
	hung := make(chan struct{})
	defer close(hung)
	w.sim.REST(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-hung }))
	err := w.on(t.Context(), w.vcenter, func(s *session) error {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		vms, err := s.list(t.Context(), []string{"name"})
		require.NoError(t, err)
		out, why := s.tags(ctx, []types.ManagedObjectReference{vms[0].Self}, newTagNames())
		require.Nil(t, out)
		require.Contains(t, why, "deadline")
		return nil
	})
	require.NoError(t, err)
}

// TestRESTByTheSameTrust: the certificate is looked at as over SOAP.
func TestRESTByTheSameTrust(t *testing.T) {
	w := newTagged(t)
	p := w.through(t)
	w.vcenter.Thumbprint, w.vcenter.CA = "", "ca.pem"
	require.NoError(t, os.WriteFile(filepath.Join(w.secrets, "ca.pem"), p.CA, 0o600))
	got, why := w.tagsByName(t)
	require.Empty(t, why)
	require.Equal(t, taggedBefore, got)
	require.Equal(t, 1, p.Calls("POST session"), "through the proxy")

	// Another certificate than was wanted, from one request to the next.
	err := w.on(t.Context(), w.vcenter, func(s *session) error {
		s.trust.VerifyConnection = pin(strings.Repeat("00", 32))
		s.client.CloseIdleConnections()
		vms := []types.ManagedObjectReference{{Type: "VirtualMachine", Value: "vm-1"}}
		_, why := s.tags(t.Context(), vms, newTagNames())
		require.Contains(t, why, errPin.Error())
		return nil
	})
	require.NoError(t, err)
}

// TestTagsAreBounded: of many tags some are left out, long names are cut, and none is asked
// for twice.
func TestTagsAreBounded(t *testing.T) {
	w := newTagged(t)
	ctx := t.Context()
	vm, err := w.sim.VM(ctx, "mt-1")
	require.NoError(t, err)
	long := strings.Repeat("ä", 200) + "\x1b"
	for i := range api.MaxVMTags + 3 {
		require.NoError(t, w.sim.Tag(ctx, "mt-1", fmt.Sprintf("%s/t-%02d", long, i)))
	}
	got, why := w.tagsByName(t)
	require.Empty(t, why)
	require.Len(t, got["mt-1"], api.MaxVMTags)
	require.Equal(t, "t-15", got["mt-1"][15].Name)
	require.Equal(t, strings.Repeat("ä", 63)+"…", got["mt-1"][0].Category)

	err = w.on(ctx, w.vcenter, func(s *session) error {
		names := newTagNames()
		for i := range maxTags {
			names.tags[fmt.Sprintf("urn:other:%d", i)] = tag("c", "n")
		}
		out, why := s.tags(ctx, []types.ManagedObjectReference{vm.Reference()}, names)
		require.Contains(t, why, "2000 different tags")
		require.NotNil(t, out)
		require.Empty(t, out[vm.Reference()])
		return nil
	})
	require.NoError(t, err)
}

// TestTagsOfOthers: a tag that the user may not see, or that was deleted in between, is left
// out; what is no id of a tag is not asked for.
func TestTagsOfOthers(t *testing.T) {
	var asked []string
	vm := types.ManagedObjectReference{Type: "VirtualMachine", Value: "vm-7"}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /rest/com/vmware/cis/session", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"value":"id"}`)) })
	mux.HandleFunc("DELETE /rest/com/vmware/cis/session", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("POST /rest/com/vmware/cis/tagging/tag-association", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte(`{"value":[{"object_id":{"type":"VirtualMachine","id":"vm-7"},"tag_ids":["urn:gone","urn:hidden","name","urn:good","urn:lost"]}]}`))
	})
	mux.HandleFunc("GET /rest/com/vmware/cis/tagging/", func(w http.ResponseWriter, r *http.Request) {
		what := filepath.Base(r.URL.Path)
		asked = append(asked, what)
		switch what {
		case "id:urn:gone":
			w.WriteHeader(http.StatusNotFound)
		case "id:urn:hidden", "id:urn:secret":
			w.WriteHeader(http.StatusForbidden)
		case "id:urn:good":
			_, _ = w.Write([]byte(`{"value":{"name":"gold","category_id":"urn:tier"}}`))
		case "id:urn:lost":
			_, _ = w.Write([]byte(`{"value":{"name":"silver","category_id":"urn:secret"}}`))
		case "id:urn:tier":
			_, _ = w.Write([]byte(`{"value":{"name":"tier"}}`))
		}
	})
	w := newTagged(t)
	w.sim.REST(mux)
	err := w.on(t.Context(), w.vcenter, func(s *session) error {
		names := newTagNames()
		for range 2 {
			out, why := s.tags(t.Context(), []types.ManagedObjectReference{vm}, names)
			require.Empty(t, why)
			require.Equal(t, tagsOf{vm: {tag("", "silver"), tag("tier", "gold")}}, out)
		}
		return nil
	})
	require.NoError(t, err)
	require.Equal(t, []string{"id:urn:gone", "id:urn:hidden", "id:urn:good", "id:urn:tier", "id:urn:lost", "id:urn:secret"}, asked, "each once")
}

// TestManyTaggedVMs: they are asked for in few questions, and what they have is bounded.
func TestManyTaggedVMs(t *testing.T) {
	var questions atomic.Int32
	w := newTagged(t)
	vms := make([]types.ManagedObjectReference, 2*tagsPage+1)
	for i := range vms {
		vms[i] = types.ManagedObjectReference{Type: "VirtualMachine", Value: fmt.Sprintf("vm-%d", i)}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/rest/com/vmware/cis/session", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"value":"id"}`)) })
	mux.HandleFunc("/rest/com/vmware/cis/tagging/tag-association", func(w http.ResponseWriter, _ *http.Request) {
		questions.Add(1)
		_, _ = w.Write([]byte(`{"value":[]}`))
	})
	w.sim.REST(mux)
	err := w.on(t.Context(), w.vcenter, func(s *session) error {
		out, why := s.tags(t.Context(), vms, newTagNames())
		require.Empty(t, why)
		require.Empty(t, out)
		return nil
	})
	require.NoError(t, err)
	require.EqualValues(t, 3, questions.Load())

	// Each of the many has as many tags as a VM may have.
	var answer strings.Builder
	names := newTagNames()
	for i := range api.MaxVMTags {
		names.tags[fmt.Sprintf("urn:%d", i)] = tag("c", fmt.Sprint(i))
		fmt.Fprintf(&answer, `,"urn:%d"`, i)
	}
	ids, n := answer.String()[1:], 0
	w.sim.REST(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = fmt.Fprint(w, `{"value":[`)
		for i := range tagsPage {
			if i > 0 {
				_, _ = fmt.Fprint(w, ",")
			}
			_, _ = fmt.Fprintf(w, `{"object_id":{"type":"VirtualMachine","id":"vm-%d"},"tag_ids":[%s]}`, n, ids)
			n++
		}
		_, _ = fmt.Fprint(w, `]}`)
	}))
	err = w.on(t.Context(), w.vcenter, func(s *session) error {
		out, why := s.tags(t.Context(), make([]types.ManagedObjectReference, 4000), names)
		require.Contains(t, why, "more than 50000 tags")
		require.Len(t, out, maxTagged/api.MaxVMTags)
		return nil
	})
	require.NoError(t, err)
}
