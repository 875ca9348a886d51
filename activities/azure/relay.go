package azure

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/compute/armcompute/v7"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/network/armnetwork/v9"
	"golang.org/x/crypto/ssh"

	"drover/activities/target"
)

// Relay says what the temporary process server is made from.
type Relay struct {
	// Owner is the configuration server's name: each has a machine of its own.
	Owner string
	// Image has drover-process-server and its service: a resource id, or
	// publisher:offer:sku:version.
	Image   string
	Size    string
	Network string
	Subnet  string
}

const (
	tagRelay   = "drover-relay" // what it is enrolled as
	aboutRelay = "relay"
	relayUser  = "drover" // whom nobody can log in as
)

var _ target.Relayer = (*Cloud)(nil)

func (c *Cloud) relayRef() target.Ref {
	return target.Ref{Name: "drover-relay", Run: "relay of " + c.Relay.Owner}
}

// MakeRelay makes the temporary process server, or finds the one that is there. What it
// does when it boots is asked for when it is made and never again: it holds a token.
func (c *Cloud) MakeRelay(ctx context.Context, firstBoot func(name, address string) ([]byte, error)) (target.RelayMachine, error) {
	ref := c.relayRef()
	card, err := c.relayCard(ctx, ref)
	if err != nil {
		return target.RelayMachine{}, err
	}
	out := target.RelayMachine{Name: tag(card.Tags, tagRelay), Address: addressOf(card)}
	if target.JournalOf(ctx).Operation(aboutRelay) == "" {
		there, err := c.relayThere(ctx, ref)
		if there || err != nil {
			return out, err
		}
	}
	_, err = await(ctx, c, aboutRelay, func(token string) (*runtime.Poller[armcompute.VirtualMachinesClientCreateOrUpdateResponse], error) {
		var vm armcompute.VirtualMachine
		if token == "" { // else it is under way
			boot, err := firstBoot(out.Name, out.Address)
			if err != nil {
				return nil, err
			}
			if vm, err = c.relayMachine(ref, card, boot); err != nil {
				return nil, err
			}
		}
		return c.machines.BeginCreateOrUpdate(ctx, c.ResourceGroup, name(ref), vm, &armcompute.VirtualMachinesClientBeginCreateOrUpdateOptions{ResumeToken: token})
	})
	return out, fault(err, "make virtual machine %s of size %s", name(ref), c.Relay.Size)
}

// relayThere says whether the machine is there. One whose making failed is deleted.
func (c *Cloud) relayThere(ctx context.Context, ref target.Ref) (bool, error) {
	vm, err := c.settledMachine(ctx, ref)
	switch {
	case errors.Is(err, target.ErrNotFound):
		return false, nil
	case err != nil:
		return false, err
	case !ours(vm.Tags, ref):
		return false, notOurs("virtual machine", name(ref))
	case value(vm.Properties.ProvisioningState) == succeeded:
		return true, nil
	}
	return false, errors.Join(c.deleteMachine(ctx, name(ref)), c.deleteDisk(ctx, diskName(ref, 0)))
}

// relayCard finds the machine's network card or makes it. What the relay is enrolled as
// is new with each card: a name that was revoked does not come back.
func (c *Cloud) relayCard(ctx context.Context, ref target.Ref) (armnetwork.Interface, error) {
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
	v, err := c.network(ctx, c.Relay.Network)
	if err != nil {
		return have, err
	}
	in, err := subnet(v, c.Relay.Subnet)
	if err != nil {
		return have, err
	}
	id := make([]byte, 4)
	if _, err := rand.Read(id); err != nil {
		return have, err
	}
	spec := target.MachineSpec{Size: c.Relay.Size, Tags: map[string]string{
		target.TagRun: ref.Run, target.TagName: ref.Name, tagRelay: "relay-" + hex.EncodeToString(id),
	}}
	return c.putCard(ctx, ref, spec, value(in.ID), "")
}

func (c *Cloud) relayMachine(ref target.Ref, card armnetwork.Interface, boot []byte) (armcompute.VirtualMachine, error) {
	key, err := throwAwayKey()
	if err != nil {
		return armcompute.VirtualMachine{}, err
	}
	gone := to.Ptr(armcompute.DiskDeleteOptionTypesDelete)
	return armcompute.VirtualMachine{
		Location: &c.Location, Tags: tags(plain(card.Tags), "vm"),
		Properties: &armcompute.VirtualMachineProperties{
			HardwareProfile: &armcompute.HardwareProfile{VMSize: to.Ptr(armcompute.VirtualMachineSizeTypes(c.Relay.Size))},
			StorageProfile: &armcompute.StorageProfile{
				ImageReference: image(c.Relay.Image),
				OSDisk: &armcompute.OSDisk{
					Name: to.Ptr(diskName(ref, 0)), CreateOption: to.Ptr(armcompute.DiskCreateOptionTypesFromImage), DeleteOption: gone,
					ManagedDisk: &armcompute.ManagedDiskParameters{StorageAccountType: to.Ptr(armcompute.StorageAccountTypes(c.DiskType))},
				},
			},
			OSProfile: &armcompute.OSProfile{
				ComputerName: to.Ptr(tag(card.Tags, tagRelay)), AdminUsername: to.Ptr(relayUser),
				CustomData: to.Ptr(base64.StdEncoding.EncodeToString(boot)),
				LinuxConfiguration: &armcompute.LinuxConfiguration{
					DisablePasswordAuthentication: to.Ptr(true),
					SSH: &armcompute.SSHConfiguration{PublicKeys: []*armcompute.SSHPublicKey{
						{Path: to.Ptr("/home/" + relayUser + "/.ssh/authorized_keys"), KeyData: &key},
					}},
				},
			},
			NetworkProfile: &armcompute.NetworkProfile{NetworkInterfaces: []*armcompute.NetworkInterfaceReference{{ID: card.ID}}},
			DiagnosticsProfile: &armcompute.DiagnosticsProfile{
				BootDiagnostics: &armcompute.BootDiagnostics{Enabled: to.Ptr(true)},
			},
		},
	}, nil
}

// throwAwayKey is the public half of a key that nobody has: Azure wants one.
func throwAwayKey() (string, error) {
	public, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return "", err
	}
	key, err := ssh.NewPublicKey(public)
	if err != nil {
		return "", err
	}
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key))), nil
}

// image is a resource id, or publisher:offer:sku:version.
func image(of string) *armcompute.ImageReference {
	if p := strings.Split(of, ":"); len(p) == 4 {
		return &armcompute.ImageReference{Publisher: &p[0], Offer: &p[1], SKU: &p[2], Version: &p[3]}
	}
	return &armcompute.ImageReference{ID: &of}
}

// DeleteRelay deletes the machine, its card and its disk; nothing there is no error.
func (c *Cloud) DeleteRelay(ctx context.Context) error {
	ref := c.relayRef()
	if err := c.Delete(ctx, ref); err != nil {
		return err
	}
	// Left by a machine whose making failed: Azure puts no tags on a disk from an image.
	return c.deleteDisk(ctx, diskName(ref, 0))
}
