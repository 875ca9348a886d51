package configserver

import (
	"context"
	"strings"
	"time"

	"drover/activities/action"
	"drover/activities/azure"
	"drover/activities/target"
	"drover/activities/target/local"
	"drover/datapath/ident"
	"drover/datapath/replica"
	"drover/worker/config"
)

// target opens what machines are failed over to, and its runbooks if it has any.
func (s *server) target() (target.Cloud, action.Runbooks, error) {
	c := s.config.Target.Azure
	if c == nil {
		cloud, err := local.Open(s.config.Target.Local.Directory)
		return cloud, nil, err
	}
	conf, err := azureConfig(c)
	if err != nil {
		return nil, nil, err
	}
	conf.Logger, conf.Heard = s.log, s.heard
	if store, ok := any(s.store).(azure.Snapshots); ok {
		conf.Snapshots = store
		if account := s.config.Store.Azure; account != nil {
			conf.Account.Endpoint = account.Endpoint
		}
		if c.StorageEndpoint != "" {
			conf.Snapshots = publicly{store, conf.Account.Endpoint, c.StorageEndpoint}
			conf.Account.Endpoint = c.StorageEndpoint
		}
	}
	if r := c.Relay; r != nil {
		conf.Relay = &azure.Relay{Owner: s.config.Name, Image: r.Image, Size: r.Size, Network: r.Network, Subnet: r.Subnet}
	}
	cloud, err := azure.Open(conf)
	if err != nil {
		return nil, nil, err
	}
	return cloud, cloud, nil
}

// publicly gives the addresses of snapshots that Azure itself reads from, where ours are
// known to this network alone.
type publicly struct {
	azure.Snapshots
	ours, public string // the blob service's URL
}

// SnapshotURL is that of the store, at the other endpoint.
func (p publicly) SnapshotURL(ctx context.Context, machine ident.MachineID, point replica.Point, disk ident.DiskID) (string, int64, error) {
	address, size, err := p.Snapshots.SnapshotURL(ctx, machine, point, disk)
	if path, ok := strings.CutPrefix(address, strings.TrimSuffix(p.ours, "/")+"/"); ok {
		address = strings.TrimSuffix(p.public, "/") + "/" + path
	}
	return address, size, err
}

func azureConfig(c *config.AzureTarget) (azure.Config, error) {
	e := azure.Endpoints{Cloud: c.Cloud}
	if c.Endpoints != nil {
		e.Authority, e.Manager, e.Audience, e.CAFile = c.Endpoints.Authority, c.Endpoints.Manager, c.Endpoints.Audience, c.Endpoints.CA
	}
	cloud, err := e.Configuration()
	if err != nil {
		return azure.Config{}, err
	}
	transport, err := e.Transport()
	if err != nil {
		return azure.Config{}, err
	}
	auth := azure.Auth{Method: c.Auth.Method, TenantID: c.Auth.TenantID, ClientID: c.Auth.ClientID, SecretFile: c.Auth.SecretFile}
	credential, err := auth.Credential(cloud, transport, c.Endpoints != nil)
	if err != nil {
		return azure.Config{}, err
	}
	way := c.Disks
	if way == "" {
		way = azure.WayImport
	}
	return azure.Config{
		Subscription: c.Subscription, ResourceGroup: c.ResourceGroup, Location: c.Location, NetworkGroup: c.NetworkGroup,
		DiskType: c.DiskType, Automation: c.Automation, Way: way, Copies: c.Copies,
		Account: azure.Account{ID: c.StorageAccount}, Credential: credential, Cloud: cloud, Transport: transport,
	}, nil
}

// heard says when the machine's agent was last heard from the hardware uuid.
func (s *server) heard(machine ident.MachineID, instance string) (time.Time, bool) {
	all, err := reports{s.registry}.of(machine)
	if err != nil {
		s.log.Warn("what is known of agents could not be read", "error", err)
		return time.Time{}, false
	}
	for _, a := range all {
		if strings.EqualFold(a.Instance, instance) {
			return a.LastSeen, true
		}
	}
	return time.Time{}, false
}
