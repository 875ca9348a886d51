package azurearm_test

import (
	"errors"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/arm"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/compute/armcompute/v7"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/network/armnetwork/v9"
	"github.com/stretchr/testify/require"

	"drover/tests/azurearm"
)

const group = "rg"

// clients are the SDK's own, unmodified.
type clients struct {
	disks *armcompute.DisksClient
	vms   *armcompute.VirtualMachinesClient
	nics  *armnetwork.InterfacesClient
	vnets *armnetwork.VirtualNetworksClient
}

func start(t *testing.T) (*azurearm.Server, clients) {
	t.Helper()
	s := azurearm.Start()
	t.Cleanup(s.Close)
	return s, connect(t, s, azurearm.Secret)
}

func connect(t *testing.T, s *azurearm.Server, secret string) clients {
	t.Helper()
	options := policy.ClientOptions{
		Cloud: cloud.Configuration{ActiveDirectoryAuthorityHost: s.URL, Services: map[cloud.ServiceName]cloud.ServiceConfiguration{
			cloud.ResourceManager: {Endpoint: s.URL, Audience: "https://management.azure.com"},
		}},
		Transport: s.Client(),
		Retry:     policy.RetryOptions{RetryDelay: time.Millisecond, MaxRetryDelay: 2 * time.Second},
	}
	cred, err := azidentity.NewClientSecretCredential(azurearm.Tenant, azurearm.ClientID, secret, &azidentity.ClientSecretCredentialOptions{
		ClientOptions: options, DisableInstanceDiscovery: true,
	})
	require.NoError(t, err)
	o := &arm.ClientOptions{ClientOptions: options, DisableRPRegistration: true}
	var c clients
	var errs [4]error
	c.disks, errs[0] = armcompute.NewDisksClient(azurearm.Subscription, cred, o)
	c.vms, errs[1] = armcompute.NewVirtualMachinesClient(azurearm.Subscription, cred, o)
	c.nics, errs[2] = armnetwork.NewInterfacesClient(azurearm.Subscription, cred, o)
	c.vnets, errs[3] = armnetwork.NewVirtualNetworksClient(azurearm.Subscription, cred, o)
	require.NoError(t, errors.Join(errs[:]...))
	return c
}

var often = &runtime.PollUntilDoneOptions{Frequency: time.Millisecond}

func code(t *testing.T, err error) string {
	t.Helper()
	var r *azcore.ResponseError
	require.ErrorAs(t, err, &r)
	return r.ErrorCode
}

func importOf(source string) armcompute.Disk {
	return armcompute.Disk{Location: to.Ptr(azurearm.Location), Properties: &armcompute.DiskProperties{
		HyperVGeneration: to.Ptr(armcompute.HyperVGenerationV2),
		CreationData:     &armcompute.CreationData{CreateOption: to.Ptr(armcompute.DiskCreateOptionImport), SourceURI: &source, StorageAccountID: to.Ptr("/account")},
	}}
}

func upload(bytes int64) armcompute.Disk {
	return armcompute.Disk{Location: to.Ptr(azurearm.Location), Properties: &armcompute.DiskProperties{
		HyperVGeneration: to.Ptr(armcompute.HyperVGenerationV2),
		CreationData:     &armcompute.CreationData{CreateOption: to.Ptr(armcompute.DiskCreateOptionUpload), UploadSizeBytes: to.Ptr(bytes + 512)},
	}}
}

func (c clients) disk(t *testing.T, name string, d armcompute.Disk) error {
	t.Helper()
	p, err := c.disks.BeginCreateOrUpdate(t.Context(), group, name, d, nil)
	if err != nil {
		return err
	}
	_, err = p.PollUntilDone(t.Context(), often)
	return err
}

func card(subnet, address string) armnetwork.Interface {
	p := &armnetwork.InterfaceIPConfigurationPropertiesFormat{
		Subnet: &armnetwork.Subnet{ID: &subnet}, PrivateIPAllocationMethod: to.Ptr(armnetwork.IPAllocationMethodDynamic),
	}
	if address != "" {
		p.PrivateIPAllocationMethod, p.PrivateIPAddress = to.Ptr(armnetwork.IPAllocationMethodStatic), &address
	}
	return armnetwork.Interface{Location: to.Ptr(azurearm.Location), Properties: &armnetwork.InterfacePropertiesFormat{
		IPConfigurations: []*armnetwork.InterfaceIPConfiguration{{Name: to.Ptr("ip"), Properties: p}},
	}}
}

func (c clients) nic(t *testing.T, name string, n armnetwork.Interface) (armnetwork.Interface, error) {
	t.Helper()
	p, err := c.nics.BeginCreateOrUpdate(t.Context(), group, name, n, nil)
	if err != nil {
		return armnetwork.Interface{}, err
	}
	r, err := p.PollUntilDone(t.Context(), often)
	return r.Interface, err
}

func machine(disk, nic string) armcompute.VirtualMachine {
	return armcompute.VirtualMachine{Location: to.Ptr(azurearm.Location), Properties: &armcompute.VirtualMachineProperties{
		HardwareProfile: &armcompute.HardwareProfile{VMSize: to.Ptr(armcompute.VirtualMachineSizeTypes("Standard_D2s_v5"))},
		StorageProfile: &armcompute.StorageProfile{OSDisk: &armcompute.OSDisk{
			CreateOption: to.Ptr(armcompute.DiskCreateOptionTypesAttach), ManagedDisk: &armcompute.ManagedDiskParameters{ID: &disk},
		}},
		NetworkProfile: &armcompute.NetworkProfile{NetworkInterfaces: []*armcompute.NetworkInterfaceReference{{ID: &nic}}},
	}}
}

func (c clients) vm(t *testing.T, name string, m armcompute.VirtualMachine) error {
	t.Helper()
	p, err := c.vms.BeginCreateOrUpdate(t.Context(), group, name, m, nil)
	if err != nil {
		return err
	}
	_, err = p.PollUntilDone(t.Context(), often)
	return err
}

func TestToken(t *testing.T) {
	s, _ := start(t)
	_, err := connect(t, s, "wrong").disks.Get(t.Context(), group, "d", nil)
	require.ErrorContains(t, err, "AADSTS7000215")
}

func TestThrottledThenDone(t *testing.T) {
	s, c := start(t)
	vhd := append(make([]byte, 1<<20), make([]byte, 512)...)
	vhd[7] = 7
	snapshot := s.AddSnapshot("seed", "disks", "a", vhd)
	require.Equal(t, "InvalidParameter", code(t, c.disk(t, "d", importOf(snapshot))), "a snapshot's own address is refused")

	s.Inject(azurearm.Fault{Method: "PUT", Path: "/disks/d", Status: 429, Code: "TooManyRequests", RetryAfter: "1", Times: 1})
	began := time.Now()
	require.NoError(t, c.disk(t, "d", upload(20<<20)))
	require.GreaterOrEqual(t, time.Since(began), time.Second, "the client waited as it was told")
	require.Len(t, s.Requests("PUT", "/disks/d"), 3)
	require.GreaterOrEqual(t, len(s.Requests("GET", "/operations/")), 2, "it was polled")
}

func TestOperationFailsLater(t *testing.T) {
	s, c := start(t)
	s.Inject(azurearm.Fault{Method: "PUT", Path: "/disks/", Async: "InternalServerError"})
	require.Equal(t, "InternalServerError", code(t, c.disk(t, "d", upload(20<<20))))
	require.Equal(t, "Failed", s.Get(azurearm.ID(group, "Microsoft.Compute/disks", "d"), "properties", "provisioningState"))
}

func TestLostReplyWasDone(t *testing.T) {
	s, c := start(t)
	s.Inject(azurearm.Fault{Method: "PUT", Path: "/disks/d", Lost: true})
	_ = c.disk(t, "d", upload(20<<20))
	require.NotNil(t, s.Get(azurearm.ID(group, "Microsoft.Compute/disks", "d"), "id"))
}

func TestMachineNeedsWhatItNames(t *testing.T) {
	s, c := start(t)
	vnet := s.VNet(group, "prod", "servers", "10.0.0.0/29")
	nicID := azurearm.ID(group, "Microsoft.Network/networkInterfaces", "n")
	diskID := s.Put(group, "Microsoft.Compute/disks", "d", map[string]any{
		"location": azurearm.Location, "properties": map[string]any{"diskState": "Unattached", "hyperVGeneration": "V2"},
	})
	require.Equal(t, "InvalidResourceReference", code(t, c.vm(t, "m", machine(diskID, nicID))))
	_, err := c.nic(t, "n", card(vnet+"/subnets/none", ""))
	require.Equal(t, "InvalidResourceReference", code(t, err))
	n, err := c.nic(t, "n", card(vnet+"/subnets/servers", ""))
	require.NoError(t, err)
	require.Equal(t, "10.0.0.4", *n.Properties.IPConfigurations[0].Properties.PrivateIPAddress)
	_, err = c.nic(t, "n2", card(vnet+"/subnets/servers", "10.0.0.4"))
	require.Equal(t, "PrivateIPAddressInUse", code(t, err))
	_, err = c.nic(t, "n2", card(vnet+"/subnets/servers", "10.0.0.1"))
	require.Equal(t, "PrivateIPAddressNotInSubnet", code(t, err), "reserved")
	free, err := c.vnets.CheckIPAddressAvailability(t.Context(), group, "prod", "10.0.0.4", nil)
	require.NoError(t, err)
	require.False(t, *free.Available)
	require.Equal(t, "10.0.0.5", *free.AvailableIPAddresses[0])

	s.SetQuota("cores", 1)
	require.Equal(t, "OperationNotAllowed", code(t, c.vm(t, "m", machine(diskID, nicID))))
	s.SetQuota("cores", 2)
	require.NoError(t, c.vm(t, "m", machine(diskID, nicID)))
	require.Equal(t, "AttachDiskWhileBeingDetached", code(t, func() error {
		n2, err := c.nic(t, "n2", card(vnet+"/subnets/servers", ""))
		require.NoError(t, err)
		s.SetQuota("cores", 9)
		return c.vm(t, "m2", machine(diskID, *n2.ID))
	}()))
	require.Equal(t, "NicInUse", code(t, func() error { _, err := c.nics.BeginDelete(t.Context(), group, "n", nil); return err }()))
	require.Equal(t, "OperationNotAllowed", code(t, func() error { _, err := c.disks.BeginDelete(t.Context(), group, "d", nil); return err }()))
	require.Equal(t, "InUseSubnetCannotBeDeleted", code(t, func() error { _, err := c.vnets.BeginDelete(t.Context(), group, "prod", nil); return err }()))

	view, err := c.vms.InstanceView(t.Context(), group, "m", nil)
	require.NoError(t, err)
	require.Equal(t, "PowerState/running", *view.Statuses[1].Code)
	p, err := c.vms.BeginDelete(t.Context(), group, "m", nil)
	require.NoError(t, err)
	_, err = p.PollUntilDone(t.Context(), often)
	require.NoError(t, err)
	require.Equal(t, "Unattached", s.Get(diskID, "properties", "diskState"))
	_, err = c.nics.BeginDelete(t.Context(), group, "n", nil)
	require.NoError(t, err, "nobody uses it any more")
}

func TestResumeAfterARestart(t *testing.T) {
	s, c := start(t)
	s.Hold("/disks/d")
	p, err := c.disks.BeginCreateOrUpdate(t.Context(), group, "d", upload(20<<20), nil)
	require.NoError(t, err)
	_, err = p.Poll(t.Context())
	require.NoError(t, err)
	require.False(t, p.Done())
	resume, err := p.ResumeToken()
	require.NoError(t, err)
	s.Release()

	other := connect(t, s, azurearm.Secret)
	p, err = other.disks.BeginCreateOrUpdate(t.Context(), group, "d", armcompute.Disk{}, &armcompute.DisksClientBeginCreateOrUpdateOptions{ResumeToken: resume})
	require.NoError(t, err)
	d, err := p.PollUntilDone(t.Context(), often)
	require.NoError(t, err)
	require.Equal(t, "Succeeded", *d.Properties.ProvisioningState)
	require.Len(t, s.Requests("PUT", "/disks/d"), 1)
}

func TestAccessToADisk(t *testing.T) {
	_, c := start(t)
	require.NoError(t, c.disk(t, "d", upload(20<<20)))
	p, err := c.disks.BeginGrantAccess(t.Context(), group, "d", armcompute.GrantAccessData{Access: to.Ptr(armcompute.AccessLevelWrite), DurationInSeconds: to.Ptr[int32](60)}, nil)
	require.NoError(t, err)
	sas, err := p.PollUntilDone(t.Context(), often)
	require.NoError(t, err)
	require.NotEmpty(t, *sas.AccessSAS)
	q, err := c.disks.BeginRevokeAccess(t.Context(), group, "d", nil)
	require.NoError(t, err)
	_, err = q.PollUntilDone(t.Context(), often)
	require.Equal(t, "InvalidVhd", code(t, err), "no footer was written")
}
