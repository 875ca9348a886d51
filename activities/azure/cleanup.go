package azure

import (
	"context"
	"errors"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/compute/armcompute/v7"

	"drover/activities/target"
)

// Delete deletes all that carries the ref's tags, and the copies. What does not carry
// them is not touched, whatever it is called.
func (c *Cloud) Delete(ctx context.Context, ref target.Ref) error {
	found, err := c.find(ctx, ref)
	if err != nil {
		return err
	}
	for _, n := range found.machines { // first: it holds the others
		if err := c.deleteMachine(ctx, n); err != nil {
			return err
		}
	}
	for _, n := range found.cards {
		err = errors.Join(err, c.deleteCard(ctx, n))
	}
	for _, n := range found.disks {
		err = errors.Join(err, c.deleteDisk(ctx, n))
	}
	return errors.Join(err, c.deleteCopies(ctx, ref))
}

// parts are the names of what was made for a ref.
type parts struct{ machines, cards, disks []string }

// find lists what carries the ref's tags. It asks each kind itself: Azure's list of
// all resources is minutes behind.
func (c *Cloud) find(ctx context.Context, ref target.Ref) (parts, error) {
	var out parts
	for pager := c.machines.NewListPager(c.ResourceGroup, nil); pager.More(); {
		page, err := pager.NextPage(ctx)
		if err != nil {
			return out, fault(err, "list the virtual machines of resource group %s", c.ResourceGroup)
		}
		for _, vm := range page.Value {
			if ours(vm.Tags, ref) {
				out.machines = append(out.machines, value(vm.Name))
			}
		}
	}
	for pager := c.cards.NewListPager(c.ResourceGroup, nil); pager.More(); {
		page, err := pager.NextPage(ctx)
		if err != nil {
			return out, fault(err, "list the network cards of resource group %s", c.ResourceGroup)
		}
		for _, card := range page.Value {
			if ours(card.Tags, ref) {
				out.cards = append(out.cards, value(card.Name))
			}
		}
	}
	for pager := c.disks.NewListByResourceGroupPager(c.ResourceGroup, nil); pager.More(); {
		page, err := pager.NextPage(ctx)
		if err != nil {
			return out, fault(err, "list the disks of resource group %s", c.ResourceGroup)
		}
		for _, d := range page.Value {
			if ours(d.Tags, ref) {
				out.disks = append(out.disks, value(d.Name))
			}
		}
	}
	return out, nil
}

func (c *Cloud) deleteMachine(ctx context.Context, n string) error {
	_, err := await(ctx, c, "delete machine "+n, func(token string) (*runtime.Poller[armcompute.VirtualMachinesClientDeleteResponse], error) {
		return c.machines.BeginDelete(ctx, c.ResourceGroup, n, &armcompute.VirtualMachinesClientBeginDeleteOptions{ResumeToken: token})
	})
	if notFound(err) {
		return nil
	}
	return fault(err, "delete virtual machine %s", n)
}

// Commit deletes the copies that are left and marks the machine: it stays.
func (c *Cloud) Commit(ctx context.Context, ref target.Ref) error {
	if err := c.deleteCopies(ctx, ref); err != nil {
		return err
	}
	vm, err := c.settledMachine(ctx, ref)
	switch {
	case err != nil:
		return err
	case !ours(vm.Tags, ref):
		return notOurs("virtual machine", name(ref))
	case tag(vm.Tags, tagCommitted) != "":
		return nil
	}
	vm.Tags[tagCommitted] = to.Ptr("true")
	_, err = await(ctx, c, "commit", func(token string) (*runtime.Poller[armcompute.VirtualMachinesClientUpdateResponse], error) {
		return c.machines.BeginUpdate(ctx, c.ResourceGroup, name(ref), armcompute.VirtualMachineUpdate{Tags: vm.Tags}, &armcompute.VirtualMachinesClientBeginUpdateOptions{ResumeToken: token})
	})
	return fault(err, "mark virtual machine %s as committed", name(ref))
}
