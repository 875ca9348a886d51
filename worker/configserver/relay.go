package configserver

import (
	"errors"

	"drover/activities/relay"
	"drover/activities/target"
	"drover/datapath/ident"
	"drover/worker/registry"
)

// relays makes the activities of the temporary process server, which only a target that
// is configured for it has.
func (s *server) relays(cloud target.Cloud) *relay.Activities {
	c := relay.Config{
		State:  s.config.State,
		Token:  func(p ident.Peer) (string, error) { return s.tokenOf(p, "") },
		Revoke: s.revoke, Relays: s.enrolledRelays, MasterTargets: s.masterTargets, Logger: s.log,
	}
	if azure := s.config.Target.Azure; azure != nil && azure.Relay != nil {
		c.Cloud, _ = cloud.(target.Relayer)
		c.Server = azure.Relay.ConfigServer
	}
	return relay.New(c)
}

func (s *server) revoke(p ident.Peer) error {
	if err := s.registry.Revoke(p); !errors.Is(err, registry.ErrUnknown) {
		return err
	}
	return nil // it never enrolled
}

func (s *server) enrolledRelays() ([]relay.Server, error) {
	all, err := s.registry.Servers(ident.RoleRelay)
	out := make([]relay.Server, len(all))
	for i, r := range all {
		out[i] = relay.Server{Name: r.Name, LastSeen: r.LastSeen}
	}
	return out, err
}

func (s *server) masterTargets() ([]string, error) {
	all, err := s.registry.Servers(ident.RoleMasterTarget)
	var out []string
	for _, m := range all {
		if m.DataAddress != "" {
			out = append(out, m.DataAddress)
		}
	}
	return out, err
}
