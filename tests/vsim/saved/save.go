package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/vmware/govmomi"
	"github.com/vmware/govmomi/property"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/view"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
	"github.com/vmware/govmomi/vim25/xml"
)

// save writes all objects with all their properties, one in each file, as govc's object.save
// does: first the ServiceInstance, then what it names, then the inventory and what hangs on it.
func save(ctx context.Context, server *simulator.Server, dir string) error {
	c, err := govmomi.NewClient(ctx, server.URL, true) // its own certificate, in its own process
	if err != nil {
		return err
	}
	defer func() { _ = c.Logout(ctx) }()
	s := &saver{dir: dir}
	var root []types.ObjectContent
	if err := property.DefaultCollector(c.Client).RetrieveOne(ctx, vim25.ServiceInstance, []string{"content"}, &root); err != nil {
		return err
	}
	if err := s.write(root); err != nil {
		return err
	}
	v, err := view.NewManager(c.Client).CreateContainerView(ctx, c.ServiceContent.RootFolder, nil, true)
	if err != nil {
		return err
	}
	return errors.Join(s.all(ctx, c.Client, append(managers(c.ServiceContent), inventory(v.Reference()))), v.Destroy(ctx))
}

// managers are what the ServiceInstance names.
func managers(content types.ServiceContent) (out []types.PropertyFilterSpec) {
	for _, ref := range mo.References(content) {
		all := types.NewBool(true)
		if ref.Type == "ServiceManager" || ref.Type == "LicenseManager" { // as object.save: without their properties
			all = nil
		}
		out = append(out, types.PropertyFilterSpec{
			ObjectSet: []types.ObjectSpec{{Obj: ref}}, PropSet: []types.PropertySpec{{Type: ref.Type, All: all}},
		})
	}
	return out
}

// beside is what hangs on the inventory's objects and is not part of it: type and path.
var beside = [][2]string{
	{"ComputeResource", "environmentBrowser"}, {"Datastore", "browser"}, {"HostSystem", "configManager.networkSystem"},
	{"HostSystem", "configManager.virtualNicManager"}, {"HostSystem", "configManager.certificateManager"},
	{"HostSystem", "configManager.datastoreSystem"}, {"ManagedEntity", "recentTask"},
}

// inventory is all in a view, and what hangs on it.
func inventory(v types.ManagedObjectReference) types.PropertyFilterSpec {
	in := &types.TraversalSpec{Type: v.Type, Path: "view"}
	follow := []types.BaseSelectionSpec{in}
	for _, b := range beside {
		name := b[0] + b[1]
		in.SelectSet = append(in.SelectSet, &types.SelectionSpec{Name: name})
		follow = append(follow, &types.TraversalSpec{SelectionSpec: types.SelectionSpec{Name: name}, Type: b[0], Path: b[1]})
	}
	out := types.PropertyFilterSpec{ObjectSet: []types.ObjectSpec{{Obj: v, Skip: types.NewBool(false), SelectSet: follow}}}
	for _, kind := range []string{"EnvironmentBrowser", "HostDatastoreBrowser", "HostDatastoreSystem", "HostNetworkSystem", "HostVirtualNicManager",
		"HostCertificateManager", "ManagedEntity", "Task"} {
		out.PropSet = append(out.PropSet, types.PropertySpec{Type: kind, All: types.NewBool(true)})
	}
	return out
}

type saver struct {
	dir string
	n   int
}

// all writes what the specs tell, page by page.
func (s *saver) all(ctx context.Context, c *vim25.Client, specs []types.PropertyFilterSpec) error {
	this := c.ServiceContent.PropertyCollector
	res, err := methods.RetrievePropertiesEx(ctx, c, &types.RetrievePropertiesEx{This: this, SpecSet: specs, Options: types.RetrieveOptions{MaxObjects: 100}})
	if err != nil {
		return err
	}
	for page := res.Returnval; ; {
		if err := s.write(page.Objects); err != nil {
			return err
		}
		if page.Token == "" {
			return nil
		}
		next, err := methods.ContinueRetrievePropertiesEx(ctx, c, &types.ContinueRetrievePropertiesEx{This: this, Token: page.Token})
		if err != nil {
			return err
		}
		page = &next.Returnval
	}
}

// write writes objects in their order: they are loaded in that of the files' names.
func (s *saver) write(objects []types.ObjectContent) error {
	for _, o := range objects {
		o.MissingSet = nil
		f, err := os.Create(filepath.Join(s.dir, fmt.Sprintf("%06d-%s.xml", s.n, o.Obj.Encode())))
		if err != nil {
			return err
		}
		s.n++
		e := xml.NewEncoder(f)
		e.Indent("", "  ")
		if err := errors.Join(e.Encode(o), f.Close()); err != nil {
			return err
		}
	}
	return nil
}
