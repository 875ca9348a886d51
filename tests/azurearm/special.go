package azurearm

import (
	"net/http"
	"path"
	"strconv"
	"strings"
)

// special answers what is no plain resource; false when it is one.
func (s *Server) special(w http.ResponseWriter, r *http.Request, body []byte, f *Fault, lower string, parts []string) bool {
	parent := s.find("/" + strings.Join(parts[:len(parts)-1], "/"))
	last := path.Base(lower)
	switch {
	case strings.HasSuffix(lower, "/providers/microsoft.compute/skus"):
		write(w, nil, map[string]any{"value": s.skus()}, nil)
	case strings.Contains(lower, "/microsoft.compute/locations/") && last == "usages":
		write(w, nil, map[string]any{"value": s.usages()}, nil)
	case strings.HasSuffix(lower, "/providers/microsoft.authorization/permissions"):
		write(w, nil, map[string]any{"value": []any{map[string]any{"actions": s.actions, "notActions": []any{}}}}, nil)
	case strings.Contains(lower, "/microsoft.automation/"):
		s.automation(w, r, body, parts)
	case len(parts) == 4 && strings.EqualFold(parts[2], "resourcegroups"):
		write(w, nil, map[string]any{"id": r.URL.Path, "name": parts[3], "location": Location}, nil)
	case parent != nil && parent.Type == typeVM && r.Method == http.MethodPost:
		s.vmAction(w, r, body, f, parent, last)
	case parent != nil && parent.Type == typeVM && last == "instanceview":
		s.instanceView(w, parent)
	case parent != nil && parent.Type == typeDisk && r.Method == http.MethodPost:
		s.diskAction(w, r, f, parent, last)
	case parent != nil && parent.Type == typeVNet && last == "checkipaddressavailability":
		s.checkAddress(w, parent, r.URL.Query().Get("ipAddress"))
	default:
		return false
	}
	return true
}

func (s *Server) skus() []any {
	out := []any{}
	for _, size := range s.sizes {
		restrictions := []any{}
		if size.Restricted {
			restrictions = append(restrictions, map[string]any{
				"type": "Location", "values": []any{Location}, "reasonCode": "NotAvailableForSubscription",
				"restrictionInfo": map[string]any{"locations": []any{Location}},
			})
		}
		zones := []any{}
		for _, z := range size.Zones {
			zones = append(zones, z)
		}
		capability := func(name, value string) map[string]any { return map[string]any{"name": name, "value": value} }
		out = append(out, map[string]any{
			"resourceType": "virtualMachines", "name": size.Name, "family": size.Family, "locations": []any{Location},
			"locationInfo": []any{map[string]any{"location": Location, "zones": zones}}, "restrictions": restrictions,
			"capabilities": []any{
				capability("vCPUs", strconv.FormatInt(size.CPUs, 10)), capability("MemoryGB", size.MemoryGB),
				capability("MaxDataDiskCount", strconv.Itoa(size.DataDisks)), capability("HyperVGenerations", size.Generations),
			},
		})
	}
	return append(out, map[string]any{"resourceType": "disks", "name": "Standard_LRS", "locations": []any{Location}})
}

func (s *Server) usages() []any {
	out := []any{}
	for name, limit := range s.quota {
		out = append(out, map[string]any{
			"name": map[string]any{"value": name, "localizedValue": name}, "limit": limit, "currentValue": s.used(name, ""), "unit": "Count",
		})
	}
	return out
}
