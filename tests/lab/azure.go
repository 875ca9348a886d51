package lab

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"

	"drover/activities/azure"
	"drover/activities/target"
	"drover/activities/target/local"
	"drover/datapath/azstorage"
	"drover/datapath/ident"
	"drover/tests/azurearm"
	"drover/tests/azurite"
)

// Containers of the storage account.
const (
	SeedContainer  = "seed"
	cacheContainer = "cache"
)

const azureGroup = "recovery"

// startAzure starts what stands for Azure's machines and networks, before the emulated
// storage account that has the replicas.
func (l *Lab) startAzure() error {
	if l.Azure == "" {
		return nil
	}
	l.azure = azurearm.Start()
	// Machines have addresses of this host, so that what is in them can be reached.
	l.azure.VNet(azureGroup, Network, Subnet, fmt.Sprintf("127.%d.%d.0/24", 1+rand.IntN(250), rand.IntN(250)))
	l.azure.VNet(azureGroup, TestNetwork, Subnet, "10.99.0.0/24")
	return errors.Join(
		l.azure.UseEmulator(l.Azure, azurite.AccountName, azurite.Key, l.Path("managed-disks")),
		l.write("etc/azure-ca.pem", string(l.azure.CA())),
		l.write("secrets/azure", azurearm.Secret))
}

// target is what machines are failed over to: a directory, or Azure.
func (l *Lab) target() string {
	if l.azure == nil {
		return "target: {local: {directory: ../target}}\n"
	}
	return fmt.Sprintf(`target:
  azure:
    subscription: %s
    resourceGroup: %s
    location: %s
    disks: %s
    storageAccount: %s
    storageEndpoint: %s
    auth: {method: %s, tenantId: %s, clientId: %s, secretFile: ../secrets/azure}
    endpoints: {authority: %q, manager: %q, ca: azure-ca.pem}
    relay: {image: "drover:relay:linux:1", size: Standard_B2s, network: %s, subnet: %s, configServer: "https://%s"}
`, azurearm.Subscription, azureGroup, azurearm.Location, azure.WayImport,
		azurearm.ID("storage", "Microsoft.Storage/storageAccounts", azurite.AccountName), l.azure.StorageEndpoint(),
		azure.ClientSecret, azurearm.Tenant, azurearm.ClientID, l.azure.URL, l.azure.URL, Network, Subnet, l.addresses["config-server"])
}

func (l *Lab) account(container string) azstorage.Account {
	return azstorage.Account{Endpoint: l.Azure, Container: container, Auth: azstorage.Auth{Method: azstorage.EmulatorKey}}
}

// makeContainers makes those of the account, which Drover never does.
func (l *Lab) makeContainers(ctx context.Context) error {
	if l.Azure == "" {
		return nil
	}
	for _, name := range []string{SeedContainer, cacheContainer, azure.DefaultCopies} {
		c, err := azstorage.Open(l.account(name))
		if err == nil {
			err = c.Make(ctx)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// TargetMachine is a machine of the target.
type TargetMachine struct {
	Instance string // hardware uuid
	Machine  string // id of the machine that it is a copy of
	Running  bool
	Test     bool
	disks    []bootDisk
}

// TargetMachines lists what was made in the target.
func (l *Lab) TargetMachines() ([]TargetMachine, error) {
	if l.azure != nil {
		return l.azureMachines()
	}
	all, err := local.List(l.Path("target"))
	var out []TargetMachine
	for _, c := range all {
		if !c.Created {
			continue
		}
		m := TargetMachine{Instance: c.Instance, Machine: c.Tags[target.TagMachine], Running: c.Running, Test: c.Test}
		for _, d := range c.Disks {
			m.disks = append(m.disks, bootDisk{d.ID, d.BackingUUID, d.Location})
		}
		out = append(out, m)
	}
	return out, err
}

func (l *Lab) azureMachines() (out []TargetMachine, err error) {
	for _, vm := range l.azure.Machines() {
		if vm.Tags[target.TagMachine] == "" { // a temporary process server
			continue
		}
		m := TargetMachine{Instance: vm.Instance, Machine: vm.Tags[target.TagMachine], Running: vm.Running, Test: vm.Tags[target.TagTest] == "true"}
		for i, at := range vm.Disks {
			tag, _ := l.azure.Get(at, "tags", "drover-disk").(string)
			id, e := ident.ParseDiskID(tag)
			err = errors.Join(err, e)
			backing := "azure-root" // as the links below /dev/disk/azure
			if i > 0 {
				backing = fmt.Sprintf("azure-lun-%d", i-1)
			}
			m.disks = append(m.disks, bootDisk{id, backing, l.azure.DiskFile(at)})
		}
		out = append(out, m)
	}
	return out, err
}
