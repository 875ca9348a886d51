package replication

import (
	"context"
	"slices"

	"drover/activities/activityerr"
	"drover/datapath/health"
	"drover/datapath/ident"
	"drover/workflows/api"
)

// ListServers lists the process servers and master targets with their health: what
// each one said of itself last, and whether it still says anything.
func (c *Control) ListServers(context.Context) ([]api.ServerStatus, error) {
	out := []api.ServerStatus{}
	for _, role := range []ident.Role{ident.RoleProcessServer, ident.RoleMasterTarget} {
		servers, err := c.Registry.Servers(role)
		if err != nil {
			return nil, activityerr.Of(err, "list the servers of role %s", role)
		}
		for _, s := range servers {
			st := api.ServerStatus{Name: s.Name, Role: role, Address: s.Address, Version: s.Version, LastSeen: s.LastSeen, Assigned: s.Assigned}
			if s.Health != nil {
				st.Health = *s.Health
				st.Health.Findings = slices.Clone(st.Health.Findings) // the registry's stay as they are
			}
			if !s.LastSeen.IsZero() { // else it has only been enrolled
				st.Health.Add(health.Silent(s.Name, c.Now().Sub(s.LastSeen)))
			}
			out = append(out, st)
		}
	}
	return out, nil
}
