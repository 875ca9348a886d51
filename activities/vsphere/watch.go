package vsphere

import (
	"context"
	"reflect"
	"slices"
	"time"

	"github.com/vmware/govmomi/event"
	"github.com/vmware/govmomi/property"
	"github.com/vmware/govmomi/view"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"drover/workflows/api"
)

// Bounds of a watch.
const (
	watchWait  = 10 * time.Second // one wait in vCenter, which holds a session's end back
	watchSlack = 60 * time.Second // for vCenter to answer after it
	watchPause = time.Second      // between two reports: what comes meanwhile goes together
	tagsRest   = 10               // such pauses after all tags were read
	tagsRetry  = 60               // such pauses after tags could not be read
	watchPage  = 100              // objects in one answer
	watchMost  = time.Hour
	destroying = 10 * time.Second
)

// watchProperties are what describe needs, one by one: a change then brings no more.
var watchProperties = []string{
	"name", "parent", "config.instanceUuid", "config.uuid", "config.name", "config.guestId", "config.firmware", "config.template",
	"config.hardware.numCPU", "config.hardware.memoryMB", "config.hardware.numCoresPerSocket", "config.hardware.device", "config.bootOptions",
	"config.extraConfig",
	"runtime.powerState", "runtime.cleanPowerOff", "runtime.host",
}

// watcher is one watch over a vCenter: the VMs as its property collector tells them, and
// the tail of its events.
type watcher struct {
	s         *session
	vcenter   string
	url       string
	uuid      string
	collector *property.Collector
	history   *event.HistoryCollector
	version   string
	names     names
	raw       map[types.ManagedObjectReference]*mo.VirtualMachine
	known     map[types.ManagedObjectReference]api.VM
	changed   map[types.ManagedObjectReference]bool
	gone      map[types.ManagedObjectReference]bool
	events    eventTail
	tags      tagsOf
	tagNames  tagNames
	retag     bool      // all tags are to be read anew
	tagsAfter time.Time // which is not before
	noTags    string    // why they could not be read
	full      bool      // the next report is of all
	gather    time.Duration
	tell      func(context.Context, api.WatchReport) error
}

// Watch tells the discovery's workflow what changes in a vCenter, for a while. It begins
// with all there is. Whatever goes wrong ends it: the next one begins with all again.
func (a *Activities) Watch(ctx context.Context, in api.WatchInput) error {
	if in.For <= 0 || in.For.D() > watchMost {
		return failed(api.CodeInvalid, nil, "watch vCenter %s for %s: want up to %s", in.VCenter.Name, in.For, watchMost)
	}
	until := time.Now().Add(in.For.D())
	return a.on(ctx, in.VCenter, func(s *session) error {
		w := &watcher{
			s: s, vcenter: in.VCenter.Name, url: in.VCenter.URL, uuid: s.client.ServiceContent.About.InstanceUuid, full: true,
			names: names{}, raw: map[types.ManagedObjectReference]*mo.VirtualMachine{}, known: map[types.ManagedObjectReference]api.VM{},
			changed: map[types.ManagedObjectReference]bool{}, gone: map[types.ManagedObjectReference]bool{},
			events: eventTail{after: in.After}, gather: a.config.Gather, tags: tagsOf{}, tagNames: newTagNames(), retag: true,
			tell: func(ctx context.Context, r api.WatchReport) error { return a.config.Tell(ctx, in.VCenter.Name, r) },
		}
		return w.run(ctx, until)
	})
}

func (w *watcher) run(ctx context.Context, until time.Time) error {
	end, err := w.begin(ctx)
	defer end()
	if err != nil {
		return failed(api.CodeVCenter, err, "watch vCenter %s", w.vcenter)
	}
	for time.Now().Before(until) && ctx.Err() == nil {
		truncated, err := w.wait(ctx)
		if err == nil && !truncated {
			err = w.report(ctx)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return failed(api.CodeVCenter, err, "watch vCenter %s", w.vcenter)
		}
	}
	return ctx.Err()
}

// begin makes what vCenter keeps for a watch; end takes it away again.
func (w *watcher) begin(ctx context.Context) (end func(), err error) {
	var made []func(context.Context) error
	end = func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), destroying)
		defer cancel()
		for _, destroy := range made {
			_ = destroy(ctx) // the session's end takes it away otherwise
		}
	}
	client := w.s.client.Client
	all, err := view.NewManager(client).CreateContainerView(ctx, client.ServiceContent.RootFolder, []string{"VirtualMachine"}, true)
	if err != nil {
		return end, err
	}
	made = append(made, all.Destroy)
	if w.history, err = w.events.open(ctx, client); err != nil {
		return end, err
	}
	made = append(made, w.history.Destroy)
	if w.collector, err = property.DefaultCollector(client).Create(ctx); err != nil {
		return end, err
	}
	made = append(made, w.collector.Destroy)
	for _, spec := range []types.PropertyFilterSpec{
		{
			ObjectSet: []types.ObjectSpec{{Obj: all.Reference(), Skip: types.NewBool(true),
				SelectSet: []types.BaseSelectionSpec{&types.TraversalSpec{Type: "ContainerView", Path: "view"}}}},
			PropSet: []types.PropertySpec{{Type: "VirtualMachine", PathSet: watchProperties}},
		},
		{ // wakes the wait when an event comes
			ObjectSet: []types.ObjectSpec{{Obj: w.history.Reference()}},
			PropSet:   []types.PropertySpec{{Type: "EventHistoryCollector", PathSet: []string{"latestPage"}}},
		},
	} {
		if _, err := w.collector.CreateFilter(ctx, types.CreateFilter{Spec: spec}); err != nil {
			return end, err
		}
	}
	return end, nil
}

// wait takes one answer of the property collector. truncated: more of the same is to come.
func (w *watcher) wait(ctx context.Context) (truncated bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, watchWait+watchSlack)
	defer cancel()
	seconds := int32(watchWait / time.Second)
	if w.retag { // tags are due before that
		seconds = min(seconds, 1+int32(max(0, time.Until(w.tagsAfter))/time.Second))
	}
	res, err := methods.WaitForUpdatesEx(ctx, w.s.client.Client, &types.WaitForUpdatesEx{
		This: w.collector.Reference(), Version: w.version,
		Options: &types.WaitOptions{MaxWaitSeconds: &seconds, MaxObjectUpdates: watchPage},
	})
	if err != nil || res.Returnval == nil { // nothing within the time
		return false, err
	}
	set := res.Returnval
	w.version = set.Version
	for _, f := range set.FilterSet {
		for _, u := range f.ObjectSet {
			if u.Obj.Type == "VirtualMachine" {
				w.update(u)
			}
		}
	}
	return set.Truncated != nil && *set.Truncated, nil
}

// update notes what is new of one VM.
func (w *watcher) update(u types.ObjectUpdate) {
	ref := u.Obj
	if u.Kind == types.ObjectUpdateKindLeave {
		delete(w.raw, ref)
		delete(w.tags, ref)
		delete(w.changed, ref)
		w.gone[ref] = true
		return
	}
	vm := w.raw[ref]
	if vm == nil || u.Kind == types.ObjectUpdateKindEnter {
		vm = &mo.VirtualMachine{}
		vm.Self = ref
		w.raw[ref] = vm
	}
	delete(w.gone, ref)
	var usable []types.PropertyChange
	for _, c := range u.ChangeSet {
		if c.Op == types.PropertyChangeOpAssign && c.Val != nil {
			usable = append(usable, c) // what vCenter cannot read now stays as it was
		}
	}
	mo.ApplyPropertyChange(vm, usable)
	if vm.Config != nil {
		vm.Config.ExtraConfig = ours(vm.Config.ExtraConfig)
	}
	w.changed[ref] = true
}

// report tells what has gathered.
func (w *watcher) report(ctx context.Context) error {
	events, err := w.events.read(ctx, w.history)
	if err != nil {
		return err
	}
	if len(w.raw) > MaxVMs {
		return failed(api.CodeInvalid, nil, "vCenter %s has %d VMs, at most %d can be handled: give the user a narrower view", w.vcenter, len(w.raw), MaxVMs)
	}
	if err := w.names.learn(ctx, w.s, w.raw, w.changed); err != nil {
		return err
	}
	told := w.noTags
	w.readTags(ctx, events)
	r := api.WatchReport{Full: w.full, From: w.url, UUID: w.uuid, TagsError: w.noTags}
	for ref := range w.changed {
		raw := w.raw[ref]
		if raw.Config == nil || raw.Config.InstanceUuid == "" || raw.Config.Template {
			continue
		}
		vm := describe(w.vcenter, w.uuid, *raw, w.names)
		vm.Tags = w.tags[ref]
		if before, told := w.known[ref]; told && !w.full && reflect.DeepEqual(before, vm) {
			continue // what changed is nothing of ours
		}
		w.known[ref] = vm
		r.VMs = append(r.VMs, vm)
	}
	for ref := range w.gone {
		if vm, known := w.known[ref]; known {
			r.Gone = append(r.Gone, vm.InstanceUUID)
		}
	}
	r.Events = w.events.judge(events, w.raw, w.known)
	for ref := range w.gone {
		delete(w.known, ref)
	}
	r.After = w.events.after
	if !r.Full && len(r.VMs) == 0 && len(r.Gone) == 0 && len(r.Events) == 0 && r.TagsError == told {
		w.settled()
		return nil
	}
	api.SortVMs(r.VMs)
	if err := w.tell(ctx, r); err != nil {
		return err
	}
	w.settled()
	select {
	case <-ctx.Done():
	case <-time.After(w.gather):
	}
	return nil
}

// readTags reads the tags of VMs that are new, and of all when an event tells that some
// changed: no update of the property collector does. They are read at once in the first
// report, and with a rest between two times.
func (w *watcher) readTags(ctx context.Context, events []types.BaseEvent) {
	w.retag = w.retag || slices.ContainsFunc(events, tagging)
	if time.Now().Before(w.tagsAfter) {
		return
	}
	var ask []types.ManagedObjectReference
	for ref := range w.raw {
		if _, known := w.tags[ref]; w.retag || !known {
			ask = append(ask, ref)
		}
	}
	if len(ask) == 0 {
		return
	}
	found, why := w.s.tags(ctx, ask, w.tagNames)
	if w.retag || why != "" {
		w.noTags = why
	}
	if found == nil {
		w.retag, w.tagsAfter = true, time.Now().Add(tagsRetry*w.gather)
		return
	}
	for _, ref := range ask {
		if !slices.Equal(w.tags[ref], found[ref]) {
			w.changed[ref] = true
		}
		w.tags[ref] = found[ref] // nil: it is known to have none
	}
	if w.retag {
		w.retag, w.tagsAfter = false, time.Now().Add(tagsRest*w.gather)
	}
}

func (w *watcher) settled() {
	w.full = false
	clear(w.changed)
	clear(w.gone)
}
