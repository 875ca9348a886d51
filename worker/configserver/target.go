package configserver

import (
	"strings"
	"time"

	"drover/activities/action"
	"drover/activities/azure"
	"drover/activities/target"
	"drover/activities/target/local"
	"drover/datapath/ident"
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
	}
	cloud, err := azure.Open(conf)
	if err != nil {
		return nil, nil, err
	}
	return cloud, cloud, nil
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
