package azure

import (
	"context"
	"fmt"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/arm"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/network/armnetwork/v9"

	"drover/activities/target"
)

// Subnets that Azure reserves for what leads out of a network.
var outward = map[string]string{
	"gatewaysubnet": "a subnet for gateways", "azurefirewallsubnet": "a firewall", "azurebastionsubnet": "a bastion host", "routeserversubnet": "a route server",
}

// Network gives a virtual network, by its name in the networks' resource group or by
// its resource id, and all that leads out of it.
func (c *Cloud) Network(ctx context.Context, network string) (target.Network, error) {
	v, err := c.network(ctx, network)
	if err != nil {
		return target.Network{}, err
	}
	out := target.Network{Name: network}
	for _, s := range v.Properties.Subnets {
		out.Subnets = append(out.Subnets, value(s.Name))
	}
	out.WaysOut, err = c.waysOut(ctx, v)
	return out, err
}

// where tells the resource group and the name of a network.
func (c *Cloud) where(network string) (group, name string) {
	if id, err := arm.ParseResourceID(network); err == nil && strings.EqualFold(id.SubscriptionID, c.Subscription) {
		return id.ResourceGroupName, id.Name
	}
	return c.NetworkGroup, network
}

func (c *Cloud) network(ctx context.Context, network string) (armnetwork.VirtualNetwork, error) {
	group, n := c.where(network)
	if !groupForm.MatchString(n) {
		return armnetwork.VirtualNetwork{}, invalid("network %q: want the name or the resource id of a virtual network of subscription %s", network, c.Subscription)
	}
	r, err := c.networks.Get(ctx, group, n, nil)
	if err != nil {
		return r.VirtualNetwork, fault(err, "look at virtual network %s in resource group %s", n, group)
	}
	if r.Properties == nil {
		return r.VirtualNetwork, fault(fmt.Errorf("it has no properties"), "look at virtual network %s", n)
	}
	return r.VirtualNetwork, nil
}

// waysOut lists what leads out of a network. Of what is not said to lead nowhere it
// is assumed that it does.
func (c *Cloud) waysOut(ctx context.Context, v armnetwork.VirtualNetwork) ([]string, error) {
	var out []string
	add := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	for _, p := range v.Properties.VirtualNetworkPeerings {
		add("peering %s", value(p.Name))
	}
	for _, s := range v.Properties.Subnets {
		ways, err := c.subnetWaysOut(ctx, s)
		if err != nil {
			return nil, err
		}
		out = append(out, ways...)
	}
	gateways, err := c.gatewaysOf(ctx, value(v.ID))
	return append(out, gateways...), err
}

func (c *Cloud) subnetWaysOut(ctx context.Context, s *armnetwork.Subnet) ([]string, error) {
	var out []string
	add := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	n := value(s.Name)
	if what := outward[strings.ToLower(n)]; what != "" {
		add("subnet %s for %s", n, what)
	}
	p := s.Properties
	if p == nil {
		return append(out, "subnet "+n+", which tells nothing of itself"), nil
	}
	if p.NatGateway != nil {
		add("a NAT gateway on subnet %s", n)
	}
	for _, e := range p.ServiceEndpoints {
		add("service endpoint %s on subnet %s", value(e.Service), n)
	}
	if len(p.PrivateEndpoints) > 0 {
		add("private endpoints in subnet %s", n)
	}
	blocked, ways, err := c.routesOf(ctx, p.RouteTable)
	if err != nil {
		return nil, err
	}
	for _, w := range ways {
		add("%s on subnet %s", w, n)
	}
	if !blocked && (p.DefaultOutboundAccess == nil || *p.DefaultOutboundAccess) {
		add("default outbound access to the Internet on subnet %s", n)
	}
	return out, nil
}

// routesOf tells which routes lead out, and whether there is one that ends all that
// would leave.
func (c *Cloud) routesOf(ctx context.Context, table *armnetwork.RouteTable) (blocked bool, ways []string, err error) {
	if table == nil {
		return false, nil, nil
	}
	id, err := arm.ParseResourceID(value(table.ID))
	if err != nil {
		return false, nil, fault(err, "look at a route table")
	}
	r, err := c.routes.Get(ctx, id.ResourceGroupName, id.Name, nil)
	if err != nil {
		return false, nil, fault(err, "look at route table %s", id.Name)
	}
	if r.Properties == nil {
		return false, []string{"route table " + id.Name + ", which tells nothing of itself"}, nil
	}
	for _, route := range r.Properties.Routes {
		if route.Properties == nil {
			ways = append(ways, "route "+value(route.Name))
			continue
		}
		switch value(route.Properties.NextHopType) {
		case armnetwork.RouteNextHopTypeNone:
			blocked = blocked || value(route.Properties.AddressPrefix) == "0.0.0.0/0"
		case armnetwork.RouteNextHopTypeVnetLocal:
		default:
			ways = append(ways, fmt.Sprintf("route %s (%s by %s)", value(route.Name), value(route.Properties.AddressPrefix), value(route.Properties.NextHopType)))
		}
	}
	return blocked, ways, nil
}

// gatewaysOf finds the gateways in a network. They are in its resource group: Azure
// wants them there.
func (c *Cloud) gatewaysOf(ctx context.Context, network string) ([]string, error) {
	id, err := arm.ParseResourceID(network)
	if err != nil {
		return nil, fault(err, "look for gateways")
	}
	var out []string
	for pager := c.gateways.NewListPager(id.ResourceGroupName, nil); pager.More(); {
		page, err := pager.NextPage(ctx)
		if err != nil {
			return nil, fault(err, "list the gateways in resource group %s", id.ResourceGroupName)
		}
		for _, g := range page.Value {
			if inNetwork(g, network) {
				out = append(out, "gateway "+value(g.Name))
			}
		}
	}
	return out, nil
}

func inNetwork(g *armnetwork.VirtualNetworkGateway, network string) bool {
	if g.Properties == nil {
		return true // not known to be elsewhere
	}
	for _, ip := range g.Properties.IPConfigurations {
		if ip.Properties != nil && ip.Properties.Subnet != nil && strings.HasPrefix(strings.ToLower(value(ip.Properties.Subnet.ID)), strings.ToLower(network)+"/") {
			return true
		}
	}
	return false
}

// subnet finds a subnet of a network; "" is the only one there is.
func subnet(v armnetwork.VirtualNetwork, n string) (*armnetwork.Subnet, error) {
	all := v.Properties.Subnets
	if n == "" && len(all) == 1 {
		return all[0], nil
	}
	names := make([]string, 0, len(all))
	for _, s := range all {
		if n != "" && strings.EqualFold(value(s.Name), n) {
			return s, nil
		}
		names = append(names, value(s.Name))
	}
	if n == "" {
		return nil, invalid("virtual network %s has several subnets: name one of %s", value(v.Name), strings.Join(names, ", "))
	}
	return nil, invalid("virtual network %s has no subnet %s, but %s", value(v.Name), n, strings.Join(names, ", "))
}
