package azurearm

import (
	"fmt"
	"net/http"
	"net/netip"
	"path"
	"strings"
)

const (
	typeNIC     = "microsoft.network/networkinterfaces"
	typeVNet    = "microsoft.network/virtualnetworks"
	typeGateway = "microsoft.network/virtualnetworkgateways"

	reservedFirst = 4 // addresses of each subnet that are Azure's, and the last
)

// VNet makes a virtual network with one subnet from which nothing leads out.
func (s *Server) VNet(group, name, subnet, prefix string) string {
	id := ID(group, "Microsoft.Network/virtualNetworks", name)
	return s.Put(group, "Microsoft.Network/virtualNetworks", name, map[string]any{
		"location": Location,
		"properties": map[string]any{
			"addressSpace": map[string]any{"addressPrefixes": []any{prefix}},
			"subnets": []any{map[string]any{
				"id": id + "/subnets/" + subnet, "name": subnet,
				"properties": map[string]any{"addressPrefix": prefix, "defaultOutboundAccess": false, "provisioningState": "Succeeded"},
			}},
		},
	})
}

// subnet finds a subnet in its network.
func (s *Server) subnet(id string) map[string]any {
	vnet := s.find(path.Dir(path.Dir(id)))
	if vnet == nil {
		return nil
	}
	for _, sub := range list(vnet.Body, "properties", "subnets") {
		if strings.EqualFold(text(sub, "name"), path.Base(id)) {
			found, _ := sub.(map[string]any)
			return found
		}
	}
	return nil
}

// taken says which network card has an address in a subnet.
func (s *Server) taken(subnet, address, without string) string {
	for _, r := range s.resources {
		if r.Type != typeNIC || strings.EqualFold(r.ID, without) {
			continue
		}
		for _, c := range list(r.Body, "properties", "ipConfigurations") {
			if strings.EqualFold(text(c, "properties", "subnet", "id"), subnet) && text(c, "properties", "privateIPAddress") == address {
				return r.ID
			}
		}
	}
	return ""
}

// usable says whether an address of a subnet may be given away.
func usable(prefix netip.Prefix, address netip.Addr) bool {
	if !prefix.Contains(address) {
		return false
	}
	low := prefix.Masked().Addr()
	for range reservedFirst {
		if address == low {
			return false
		}
		low = low.Next()
	}
	return prefix.Contains(address.Next()) // the last is the broadcast
}

func (s *Server) free(subnet string, prefix netip.Prefix, most int) []string {
	var out []string
	for a := prefix.Masked().Addr(); prefix.Contains(a) && len(out) < most; a = a.Next() {
		if usable(prefix, a) && s.taken(subnet, a.String(), "") == "" {
			out = append(out, a.String())
		}
	}
	return out
}

// checkNIC gives the card its address, or refuses it.
func (s *Server) checkNIC(r *Resource) *problem {
	old := s.find(r.ID)
	for i, c := range list(r.Body, "properties", "ipConfigurations") {
		id := text(c, "properties", "subnet", "id")
		sub := s.subnet(id)
		if sub == nil {
			return refuse(http.StatusBadRequest, "InvalidResourceReference", "Resource %s referenced by resource %s was not found.", id, r.ID)
		}
		prefix, err := netip.ParsePrefix(text(sub, "properties", "addressPrefix"))
		if err != nil {
			return refuse(http.StatusBadRequest, "InvalidAddressPrefixFormat", "%v", err)
		}
		properties, _ := walk(c, "properties").(map[string]any)
		want := text(properties, "privateIPAddress")
		switch {
		case text(properties, "privateIPAllocationMethod") == "Static":
			address, err := netip.ParseAddr(want)
			if err != nil || !usable(prefix, address) {
				return refuse(http.StatusBadRequest, "PrivateIPAddressNotInSubnet", "Private static IP address %s does not belong to the range of subnet prefix %s, or is reserved.", want, prefix)
			}
			if by := s.taken(id, want, r.ID); by != "" {
				return refuse(http.StatusBadRequest, "PrivateIPAddressInUse", "IP configuration %s is using the private IP address %s which is already allocated to resource %s.", r.ID, want, by)
			}
		case old != nil:
			properties["privateIPAddress"] = text(old.Body, "properties", "ipConfigurations", i, "properties", "privateIPAddress")
		default:
			free := s.free(id, prefix, 1)
			if len(free) == 0 {
				return refuse(http.StatusBadRequest, "SubnetIsFull", "Subnet %s with address prefix %s does not have enough capacity for 1 IP addresses.", id, prefix)
			}
			properties["privateIPAddress"] = free[0]
		}
	}
	if old != nil {
		if vm := old.at("properties", "virtualMachine"); vm != nil {
			r.set(vm, "properties", "virtualMachine")
		}
	}
	return nil
}

func (*Server) nicGone(r *Resource) *problem {
	if vm := text(r.Body, "properties", "virtualMachine", "id"); vm != "" {
		return refuse(http.StatusBadRequest, "NicInUse", "Network Interface %s is used by existing resource %s.", r.ID, vm)
	}
	return nil
}

func (s *Server) vnetGone(r *Resource) *problem {
	for _, other := range s.resources {
		if other.Type == typeNIC && strings.HasPrefix(strings.ToLower(text(other.Body, "properties", "ipConfigurations", 0, "properties", "subnet", "id")), strings.ToLower(r.ID)+"/") {
			return refuse(http.StatusBadRequest, "InUseSubnetCannotBeDeleted", "Subnet is in use by %s and cannot be deleted.", other.ID)
		}
	}
	return nil
}

// checkAddress says whether an address of a network is free, and which are.
func (s *Server) checkAddress(w http.ResponseWriter, vnet *Resource, address string) {
	a, err := netip.ParseAddr(address)
	if err != nil {
		write(w, nil, nil, refuse(http.StatusBadRequest, "InvalidIPAddress", "%s", address))
		return
	}
	for _, sub := range list(vnet.Body, "properties", "subnets") {
		prefix, err := netip.ParsePrefix(text(sub, "properties", "addressPrefix"))
		if err != nil || !prefix.Contains(a) {
			continue
		}
		id := fmt.Sprintf("%s/subnets/%s", vnet.ID, text(sub, "name"))
		ok := usable(prefix, a) && s.taken(id, address, "") == ""
		write(w, nil, map[string]any{"available": ok, "availableIPAddresses": s.free(id, prefix, 5), "isPlatformReserved": !usable(prefix, a)}, nil)
		return
	}
	write(w, nil, nil, refuse(http.StatusBadRequest, "PrivateIPAddressNotInAnySubnet", "Private static IP address %s does not belong to any subnet.", address))
}
