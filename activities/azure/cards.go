package azure

import (
	"context"
	"errors"
	"strconv"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/arm"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/network/armnetwork/v9"

	"drover/activities/target"
	"drover/workflows/api"
)

// maxAddresses bounds how many addresses are tried when one is taken.
const maxAddresses = 8

// CreateMachine makes the network card, with all that is to be known when the
// machine is started in its tags. Azure has no machines that were never started, so
// that the machine itself is made by Start.
func (c *Cloud) CreateMachine(ctx context.Context, ref target.Ref, spec target.MachineSpec) (target.Machine, error) {
	card, err := c.card(ctx, ref, spec)
	if err != nil {
		return target.Machine{}, err
	}
	m := target.Machine{
		Name: ref.Name, Size: spec.Size, Network: networkOf(card), Address: addressOf(card), Tags: plain(card.Tags),
	}
	m.Disks, err = c.disksOf(ctx, ref, spec.Disks)
	return m, err
}

// card finds the card that an earlier try made, or makes it.
func (c *Cloud) card(ctx context.Context, ref target.Ref, spec target.MachineSpec) (armnetwork.Interface, error) {
	have, err := c.settledCard(ctx, ref)
	switch {
	case errors.Is(err, target.ErrNotFound):
	case err != nil:
		return have, err
	case !ours(have.Tags, ref):
		return have, notOurs("network card", cardName(ref))
	case value(have.Properties.ProvisioningState) == armnetwork.ProvisioningStateSucceeded:
		return have, nil
	}
	v, err := c.network(ctx, spec.Network)
	if err != nil {
		return have, err
	}
	in, err := subnet(v, spec.Subnet)
	if err != nil {
		return have, err
	}
	return c.makeCard(ctx, ref, spec, value(in.ID))
}

// makeCard makes it with the address to keep, or what the policy allows instead. Two
// machines may race for an address: Azure decides, and the loser looks again.
func (c *Cloud) makeCard(ctx context.Context, ref target.Ref, spec target.MachineSpec, subnet string) (armnetwork.Interface, error) {
	want := spec.Address
	for tries := 1; ; tries++ {
		card, err := c.putCard(ctx, ref, spec, subnet, want)
		if err == nil || want == "" || !hasCode(err, api.CodeAddressTaken) {
			return card, err
		}
		if spec.AddressPolicy != api.AddressNext {
			return card, &target.Fault{Code: api.CodeAddressTaken, Text: err.Error() + "; free the address, or let the target take the next one"}
		}
		want = "" // any
		if free, err := c.free(ctx, spec.Network, spec.Address); err == nil && len(free) > 0 && tries < maxAddresses {
			want = free[0]
		}
	}
}

// free lists addresses near the one that is taken; none when it is free itself or
// in no subnet.
func (c *Cloud) free(ctx context.Context, network, address string) ([]string, error) {
	group, n := c.where(network)
	r, err := c.networks.CheckIPAddressAvailability(ctx, group, n, address, nil)
	if err != nil {
		return nil, fault(err, "look whether address %s is free in network %s", address, n)
	}
	if value(r.Available) {
		return []string{address}, nil
	}
	out := make([]string, 0, len(r.AvailableIPAddresses))
	for _, a := range r.AvailableIPAddresses {
		out = append(out, value(a))
	}
	return out, nil
}

func (c *Cloud) putCard(ctx context.Context, ref target.Ref, spec target.MachineSpec, subnet, address string) (armnetwork.Interface, error) {
	ip := &armnetwork.InterfaceIPConfigurationPropertiesFormat{
		Subnet: &armnetwork.Subnet{ID: &subnet}, PrivateIPAllocationMethod: to.Ptr(armnetwork.IPAllocationMethodDynamic), Primary: to.Ptr(true),
	}
	if address != "" {
		ip.PrivateIPAllocationMethod, ip.PrivateIPAddress = to.Ptr(armnetwork.IPAllocationMethodStatic), &address
	}
	card := armnetwork.Interface{
		Location: &c.Location, Tags: c.cardTags(spec),
		Properties: &armnetwork.InterfacePropertiesFormat{
			IPConfigurations: []*armnetwork.InterfaceIPConfiguration{{Name: to.Ptr("primary"), Properties: ip}},
		},
	}
	n := cardName(ref)
	_, err := await(ctx, c, "card "+n, func(token string) (*runtime.Poller[armnetwork.InterfacesClientCreateOrUpdateResponse], error) {
		return c.cards.BeginCreateOrUpdate(ctx, c.ResourceGroup, n, card, &armnetwork.InterfacesClientBeginCreateOrUpdateOptions{ResumeToken: token})
	})
	if err != nil {
		return card, fault(err, "make network card %s", n)
	}
	return c.settledCard(ctx, ref)
}

// cardTags say what has to be known when the machine is started.
func (*Cloud) cardTags(spec target.MachineSpec) map[string]*string {
	out := tags(spec.Tags, "nic")
	for key, v := range map[string]string{
		tagSizes: strings.Join(append([]string{spec.Size}, spec.FallBack...), ","), tagDisks: strconv.Itoa(spec.Disks),
		tagGeneration: string(generation(spec.Firmware)), tagSystem: system(spec.Windows),
		tagZone: spec.Zone, tagSet: spec.AvailabilitySet, tagHealth: spec.Health,
	} {
		if v != "" {
			out[key] = &v
		}
	}
	return out
}

func (c *Cloud) settledCard(ctx context.Context, ref target.Ref) (armnetwork.Interface, error) {
	var card armnetwork.Interface
	err := c.settle(ctx, func() (string, error) {
		r, err := c.cards.Get(ctx, c.ResourceGroup, cardName(ref), nil)
		card = r.Interface
		if err != nil {
			return "", fault(err, "look at network card %s", cardName(ref))
		}
		return string(value(card.Properties.ProvisioningState)), nil
	})
	return card, err
}

func (c *Cloud) deleteCard(ctx context.Context, n string) error {
	_, err := await(ctx, c, "delete card "+n, func(token string) (*runtime.Poller[armnetwork.InterfacesClientDeleteResponse], error) {
		return c.cards.BeginDelete(ctx, c.ResourceGroup, n, &armnetwork.InterfacesClientBeginDeleteOptions{ResumeToken: token})
	})
	if notFound(err) {
		return nil
	}
	return fault(err, "delete network card %s", n)
}

func subnetOf(card armnetwork.Interface) string {
	if card.Properties == nil || len(card.Properties.IPConfigurations) == 0 {
		return ""
	}
	p := card.Properties.IPConfigurations[0].Properties
	if p == nil || p.Subnet == nil {
		return ""
	}
	return value(p.Subnet.ID)
}

// networkOf gives the id of the virtual network that a card is in.
func networkOf(card armnetwork.Interface) string {
	id, err := arm.ParseResourceID(subnetOf(card))
	if err != nil || id.Parent == nil {
		return ""
	}
	return id.Parent.String()
}

func addressOf(card armnetwork.Interface) string {
	if subnetOf(card) == "" {
		return ""
	}
	return value(card.Properties.IPConfigurations[0].Properties.PrivateIPAddress)
}
