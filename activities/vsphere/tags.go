package vsphere

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/vmware/govmomi/vapi/rest"
	"github.com/vmware/govmomi/vapi/tags"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"drover/workflows/api"
)

// Bounds of reading tags.
const (
	tagsTimeout = 30 * time.Second // all of it: what else is seen waits for it
	tagsPage    = 500              // VMs in one question
	maxTags     = 2000             // different ones of a vCenter; each is a question
	maxTagged   = 50_000           // on VMs, in one go: some 170 KiB of a history
)

// tagsOf are the tags of VMs.
type tagsOf map[types.ManagedObjectReference][]api.VMTag

// tagNames are the names of tags and categories, by their ids. They are read once for
// each pass or watch: one that is renamed shows with the next.
type tagNames struct {
	tags       map[string]api.VMTag // without a name: one that the user may not see
	categories map[string]string
}

func newTagNames() tagNames {
	return tagNames{map[string]api.VMTag{}, map[string]string{}}
}

// tags reads the tags of VMs over REST. Discovery does without them: whatever goes wrong is
// said by why. nil tags: none were read.
func (s *session) tags(ctx context.Context, vms []types.ManagedObjectReference, names tagNames) (out tagsOf, why string) {
	if len(vms) == 0 {
		return tagsOf{}, ""
	}
	ctx, cancel := context.WithTimeout(ctx, tagsTimeout)
	defer cancel()
	err := s.onREST(ctx, func(c *rest.Client) (err error) {
		out, why, err = readTags(ctx, tags.NewManager(c), vms, names)
		return err
	})
	if err != nil {
		return nil, messageOf(failed(api.CodeVCenter, err, "read the tags of VMs in vCenter %s", s.name))
	}
	return out, why
}

// readTags asks for many VMs at once, and then for each tag that is not known.
func readTags(ctx context.Context, m *tags.Manager, vms []types.ManagedObjectReference, names tagNames) (out tagsOf, why string, err error) {
	out = tagsOf{}
	room := maxTagged
	for page := range slices.Chunk(vms, tagsPage) {
		refs := make([]mo.Reference, len(page))
		for i := range page {
			refs[i] = page[i]
		}
		attached, err := m.ListAttachedTagsOnObjects(ctx, refs)
		if err != nil {
			return nil, "", err
		}
		for _, a := range attached {
			var known []api.VMTag
			for _, id := range a.TagIDs {
				if _, known := names.tags[id]; !known && len(names.tags) >= maxTags {
					why = fmt.Sprintf("there are more than %d different tags: some are left out", maxTags)
					continue
				}
				if err := names.learn(ctx, m, id); err != nil {
					return nil, "", err
				}
				known = append(known, names.tags[id])
			}
			if known = orderly(known); len(known) > room {
				why = fmt.Sprintf("the VMs have more than %d tags: some are left out", maxTagged)
				continue
			}
			if len(known) > 0 {
				out[a.ObjectID.Reference()], room = known, room-len(known)
			}
		}
	}
	return out, why, nil
}

// learn reads what a tag is called, if that is not known. One that is not there any more,
// or that the user may not see, has no name.
func (n tagNames) learn(ctx context.Context, m *tags.Manager, id string) error {
	if _, known := n.tags[id]; known {
		return nil
	}
	tag, err := named(id, func() (*tags.Tag, error) { return m.GetTag(ctx, id) })
	if err != nil {
		return err
	}
	category, known := n.categories[tag.CategoryID]
	if !known {
		c, err := named(tag.CategoryID, func() (*tags.Category, error) { return m.GetCategory(ctx, tag.CategoryID) })
		if err != nil {
			return err
		}
		category = c.Name
		n.categories[tag.CategoryID] = category
	}
	n.tags[id] = api.NewVMTag(category, tag.Name)
	return nil
}

// named asks for something by its id.
func named[T any](id string, ask func() (*T, error)) (*T, error) {
	if !strings.HasPrefix(id, "urn:") { // the client would take it for a name, and read all there are
		return new(T), nil
	}
	found, err := ask()
	if rest.IsStatusError(err, http.StatusNotFound) || rest.IsStatusError(err, http.StatusForbidden) {
		return new(T), nil
	}
	return found, err
}

// orderly leaves out what has no name and what is too much.
func orderly(all []api.VMTag) []api.VMTag {
	all = slices.DeleteFunc(all, func(t api.VMTag) bool { return t.Name == "" })
	slices.SortFunc(all, func(a, b api.VMTag) int {
		return cmp.Or(cmp.Compare(a.Category, b.Category), cmp.Compare(a.Name, b.Name))
	})
	return slices.Clip(all[:min(len(all), api.MaxVMTags)])
}

// tagging reports whether an event tells that a VM got or lost a tag.
func tagging(e types.BaseEvent) bool {
	x, ok := e.(*types.EventEx)
	return ok && strings.HasPrefix(strings.ToLower(x.EventTypeId), "com.vmware.cis.tagging.")
}
