package azure

import (
	"context"
	"errors"
	"net/netip"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/compute/armcompute/v7"

	"drover/activities/target"
	"drover/workflows/api"
)

// maxBoot is the largest disk that Azure boots from.
const maxBoot = 4095 << 30

// wanted are the actions of Drover's role on its resource group; docs/azure.md has
// the whole role.
var wanted = []string{
	"Microsoft.Compute/disks/read", "Microsoft.Compute/disks/write", "Microsoft.Compute/disks/delete",
	"Microsoft.Compute/disks/beginGetAccess/action", "Microsoft.Compute/disks/endGetAccess/action",
	"Microsoft.Compute/virtualMachines/read", "Microsoft.Compute/virtualMachines/write", "Microsoft.Compute/virtualMachines/delete",
	"Microsoft.Compute/virtualMachines/start/action", "Microsoft.Compute/virtualMachines/deallocate/action",
	"Microsoft.Compute/virtualMachines/instanceView/read",
	"Microsoft.Network/networkInterfaces/read", "Microsoft.Network/networkInterfaces/write",
	"Microsoft.Network/networkInterfaces/delete", "Microsoft.Network/networkInterfaces/join/action",
}

// Precheck refuses what Azure would refuse later, before anything is made.
func (c *Cloud) Precheck(ctx context.Context, ref target.Ref, spec target.MachineSpec, disks []target.DiskSpec) error {
	if err := errors.Join(checkTags(spec.Tags), checkDisks(disks), c.checkHealth(spec)); err != nil {
		return err
	}
	for _, check := range []func(context.Context, target.Ref, target.MachineSpec) error{
		c.checkPermissions, c.checkSource, c.checkNames, c.checkPlace, c.checkAddress, c.checkQuota,
	} {
		if err := check(ctx, ref, spec); err != nil {
			return err
		}
	}
	return nil
}

func checkDisks(disks []target.DiskSpec) error {
	for _, d := range disks {
		switch {
		case d.Size > maxDisk:
			return invalid("disk %d has %d bytes; a managed disk has at most %d", d.Number, d.Size, int64(maxDisk))
		case d.Number == 0 && d.Size > maxBoot:
			return invalid("the disk that the machine boots from has %d bytes; Azure boots from at most %d", d.Size, int64(maxBoot))
		}
	}
	return nil
}

func (c *Cloud) checkHealth(spec target.MachineSpec) error {
	if spec.Health == api.HealthAgent && c.Heard == nil {
		return invalid("the health check by agent is not possible here: choose another")
	}
	return nil
}

// checkPermissions compares what our identity may do with what it will have to.
func (c *Cloud) checkPermissions(ctx context.Context, _ target.Ref, spec target.MachineSpec) error {
	need := slices.Clone(wanted)
	if spec.Health == api.HealthCommand {
		need = append(need, "Microsoft.Compute/virtualMachines/runCommand/action")
	}
	var missing []string
	allowed := map[string]bool{}
	for pager := c.permissions.NewListForResourceGroupPager(c.ResourceGroup, nil); pager.More(); {
		page, err := pager.NextPage(ctx)
		if err != nil {
			return fault(err, "look what Drover's identity may do in resource group %s", c.ResourceGroup)
		}
		for _, p := range page.Value {
			for _, action := range need {
				if matches(p.Actions, action) && !matches(p.NotActions, action) {
					allowed[action] = true
				}
			}
		}
	}
	for _, action := range need {
		if !allowed[action] {
			missing = append(missing, action)
		}
	}
	if len(missing) > 0 {
		return &target.Fault{Code: api.CodeTargetDenied, Text: "Drover's identity lacks on resource group " + c.ResourceGroup + ": " +
			strings.Join(missing, ", ") + "; give it the role of docs/azure.md"}
	}
	return nil
}

// checkSource: the account of the replicas gives us keys to sign addresses with, if we will
// need them.
func (c *Cloud) checkSource(ctx context.Context, _ target.Ref, _ target.MachineSpec) error {
	if c.Snapshots == nil || c.Way != WayUpload {
		return nil
	}
	return fault(c.delegate.Check(ctx), "get a user delegation key of %s, to have Azure read the replicas", c.Account.Endpoint)
}

// matches: * stands for anything, and case does not count.
func matches(patterns []*string, action string) bool {
	return slices.ContainsFunc(patterns, func(p *string) bool {
		form := "(?i)^" + strings.ReplaceAll(regexp.QuoteMeta(value(p)), `\*`, ".*") + "$"
		ok, err := regexp.MatchString(form, action)
		return err == nil && ok
	})
}

// checkNames: what has our names is ours, or is not there.
func (c *Cloud) checkNames(ctx context.Context, ref target.Ref, _ target.MachineSpec) error {
	vm, err := c.machines.Get(ctx, c.ResourceGroup, name(ref), nil)
	switch {
	case err == nil && !ours(vm.Tags, ref):
		return notOurs("virtual machine", name(ref))
	case err != nil && !notFound(err):
		return fault(err, "look at virtual machine %s", name(ref))
	}
	card, err := c.cards.Get(ctx, c.ResourceGroup, cardName(ref), nil)
	switch {
	case err == nil && !ours(card.Tags, ref):
		return notOurs("network card", cardName(ref))
	case err != nil && !notFound(err):
		return fault(err, "look at network card %s", cardName(ref))
	}
	return nil
}

// checkPlace: region, zone and availability set fit together.
func (c *Cloud) checkPlace(ctx context.Context, _ target.Ref, spec target.MachineSpec) error {
	v, err := c.network(ctx, spec.Network)
	if err != nil {
		return err
	}
	if !sameRegion(value(v.Location), c.Location) {
		return invalid("virtual network %s is in region %s, and machines are made in %s: name a network there", spec.Network, value(v.Location), c.Location)
	}
	if spec.AvailabilitySet == "" {
		return nil
	}
	if spec.Zone != "" {
		return invalid("a machine is in zone %s or in availability set %s, not both", spec.Zone, spec.AvailabilitySet)
	}
	id := c.id("Microsoft.Compute/availabilitySets", spec.AvailabilitySet)
	set, err := c.sets.Get(ctx, c.ResourceGroup, path.Base(id), nil)
	if err != nil {
		return fault(err, "look at availability set %s", spec.AvailabilitySet)
	}
	if !sameRegion(value(set.Location), c.Location) {
		return invalid("availability set %s is in region %s, and machines are made in %s", spec.AvailabilitySet, value(set.Location), c.Location)
	}
	return nil
}

// sameRegion: Azure writes "West Europe" and "westeurope".
func sameRegion(a, b string) bool {
	plain := func(s string) string { return strings.ToLower(strings.ReplaceAll(s, " ", "")) }
	return plain(a) == plain(b)
}

// checkAddress: the subnet is there, and the address to keep is in it and free.
func (c *Cloud) checkAddress(ctx context.Context, ref target.Ref, spec target.MachineSpec) error {
	v, err := c.network(ctx, spec.Network)
	if err != nil {
		return err
	}
	in, err := subnet(v, spec.Subnet)
	if err != nil || spec.Address == "" {
		return err
	}
	address, err := netip.ParseAddr(spec.Address)
	if err != nil {
		return invalid("address %q: want an IP address", spec.Address)
	}
	prefixes := in.Properties.AddressPrefixes
	if in.Properties.AddressPrefix != nil {
		prefixes = append(prefixes, in.Properties.AddressPrefix)
	}
	if !slices.ContainsFunc(prefixes, func(p *string) bool {
		prefix, err := netip.ParsePrefix(value(p))
		return err == nil && prefix.Contains(address)
	}) {
		return &target.Fault{Code: api.CodeAddressTaken, Text: "address " + spec.Address + " is not in subnet " + value(in.Name)}
	}
	if spec.AddressPolicy == api.AddressNext {
		return nil
	}
	if card, err := c.cards.Get(ctx, c.ResourceGroup, cardName(ref), nil); err == nil && addressOf(card.Interface) == spec.Address {
		return nil // an earlier try's
	}
	free, err := c.free(ctx, spec.Network, spec.Address)
	if err != nil {
		return err
	}
	if !slices.Contains(free, spec.Address) {
		return &target.Fault{Code: api.CodeAddressTaken, Text: "address " + spec.Address + " is taken or reserved; free it, or let the target take the next one"}
	}
	return nil
}

// checkQuota: there is quota for one of the sizes.
func (c *Cloud) checkQuota(ctx context.Context, ref target.Ref, spec target.MachineSpec) error {
	if vm, err := c.machines.Get(ctx, c.ResourceGroup, name(ref), nil); err == nil && ours(vm.Tags, ref) {
		return nil // it is there already
	}
	left := map[string]int64{}
	for pager := c.usage.NewListPager(c.Location, nil); pager.More(); {
		page, err := pager.NextPage(ctx)
		if err != nil {
			return fault(err, "look at the quotas in %s", c.Location)
		}
		for _, u := range page.Value {
			if u.Name != nil {
				left[strings.ToLower(value(u.Name.Value))] = value(u.Limit) - int64(value(u.CurrentValue))
			}
		}
	}
	all, err := c.offers(ctx)
	if err != nil {
		return err
	}
	var why []string
	for _, n := range append([]string{spec.Size}, spec.FallBack...) {
		i := slices.IndexFunc(all, func(o offer) bool { return o.Name == n })
		if i < 0 {
			continue
		}
		short := ""
		for _, q := range []string{"cores", all[i].family} {
			if have, limited := left[strings.ToLower(q)]; limited && have < int64(all[i].CPUs) {
				short = n + " needs " + strconv.Itoa(int(all[i].CPUs)) + " of " + q + ", " + strconv.FormatInt(max(have, 0), 10) + " are left"
			}
		}
		if short == "" {
			return nil
		}
		why = append(why, short)
	}
	return &target.Fault{Code: api.CodeQuota, Text: "the quota in " + c.Location + " does not allow it: " + strings.Join(why, "; ") + "; have it raised, or choose other sizes"}
}

// offer is a size that the subscription may have.
type offer struct {
	target.Size
	family string
}

// Sizes lists what the subscription may have in the region, smallest first.
func (c *Cloud) Sizes(ctx context.Context) ([]target.Size, error) {
	all, err := c.offers(ctx)
	out := make([]target.Size, len(all))
	for i := range all {
		out[i] = all[i].Size
	}
	return out, err
}

func (c *Cloud) offers(ctx context.Context) ([]offer, error) {
	var out []offer
	for pager := c.skus.NewListPager(&armcompute.ResourceSKUsClientListOptions{Filter: to.Ptr("location eq '" + c.Location + "'")}); pager.More(); {
		page, err := pager.NextPage(ctx)
		if err != nil {
			return nil, fault(err, "list the machine sizes of %s", c.Location)
		}
		for _, sku := range page.Value {
			if value(sku.ResourceType) == "virtualMachines" && !restricted(sku) && !capable(sku, "CpuArchitectureType", "Arm64") {
				out = append(out, read(sku))
			}
		}
	}
	slices.SortStableFunc(out, func(a, b offer) int {
		if a.CPUs != b.CPUs {
			return int(a.CPUs - b.CPUs)
		}
		return int(a.MemoryMB - b.MemoryMB)
	})
	return out, nil
}

// restricted: not for this subscription in the whole region.
func restricted(sku *armcompute.ResourceSKU) bool {
	return slices.ContainsFunc(sku.Restrictions, func(r *armcompute.ResourceSKURestrictions) bool {
		return value(r.Type) == armcompute.ResourceSKURestrictionsTypeLocation
	})
}

func capable(sku *armcompute.ResourceSKU, what, v string) bool {
	return slices.ContainsFunc(sku.Capabilities, func(k *armcompute.ResourceSKUCapabilities) bool {
		return value(k.Name) == what && value(k.Value) == v
	})
}

func read(sku *armcompute.ResourceSKU) offer {
	o := offer{Size: target.Size{Name: value(sku.Name), MaxDisks: 1}, family: value(sku.Family)}
	for _, l := range sku.LocationInfo {
		for _, z := range l.Zones {
			o.Zones = append(o.Zones, value(z))
		}
	}
	for _, k := range sku.Capabilities {
		switch v := value(k.Value); value(k.Name) {
		case "vCPUs":
			n, _ := strconv.Atoi(v)
			o.CPUs = int32(n) //nolint:gosec // a few hundred
		case "MemoryGB":
			n, _ := strconv.ParseFloat(v, 64)
			o.MemoryMB = int32(n * 1024)
		case "MaxDataDiskCount":
			n, _ := strconv.Atoi(v)
			o.MaxDisks = 1 + n
		case "HyperVGenerations":
			if strings.Contains(v, "V1") {
				o.Firmware = append(o.Firmware, "bios")
			}
			if strings.Contains(v, "V2") {
				o.Firmware = append(o.Firmware, "efi")
			}
		}
	}
	return o
}
