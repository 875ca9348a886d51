// Package azure makes the machines of a failover in Azure: managed disks from a
// recovery point, a network card in the mapped subnet, a virtual machine. It is a
// target.Cloud.
//
// Nothing of what was done is kept here. Names follow from the machine and the run,
// every resource carries tags that say whose it is, and what has to be known later
// (which sizes, how many disks) stands in the tags of the network card. So a second
// try, on whatever worker, finds what the first one made, and clean-up finds all.
package azure

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"regexp"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/arm"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/authorization/armauthorization/v2"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/automation/armautomation"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/compute/armcompute/v7"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/network/armnetwork/v9"

	"drover/activities/target"
	"drover/datapath/azstorage"
	"drover/datapath/ident"
	"drover/datapath/replica"
)

// Ways to make a disk from a recovery point.
const (
	// WayImport copies the point's blob snapshot to a page blob and imports that.
	WayImport = "import"
	// WayUpload makes an empty disk and has Azure fill it from the snapshot.
	WayUpload = "upload"
)

// Defaults.
const (
	DefaultDiskType = "StandardSSD_LRS"
	DefaultCopies   = "drover-copies"
	defaultPoll     = 5 * time.Second
	// retries of one request, by the SDK, which waits as Retry-After says.
	requestRetries = 8
	retryMost      = time.Minute
)

// Account is the storage account of the snapshots.
type Account struct {
	ID       string // resource id
	Endpoint string // of its blob service
}

// Snapshots finds the snapshots that a recovery point is made of; errors as a
// replica.Store gives them. The store of page blobs does.
type Snapshots interface {
	// SnapshotURL gives a disk at a point, as a snapshot of a page blob that is a fixed
	// VHD: its address, which holds no secret, and the size without the footer.
	SnapshotURL(ctx context.Context, machine ident.MachineID, point replica.Point, disk ident.DiskID) (url string, size int64, err error)
}

// Config of the target.
type Config struct {
	Subscription  string
	ResourceGroup string // of all that is made
	Location      string
	NetworkGroup  string // resource group of the networks; empty: ResourceGroup
	DiskType      string // empty: DefaultDiskType
	Automation    string // automation account of the plans' runbooks, in ResourceGroup

	// Way to make disks when Snapshots is given; without, the content is read from
	// the store and sent.
	Way       string
	Snapshots Snapshots
	Account   Account
	// Relay is what the temporary process server is made from; nil: there is none.
	Relay *Relay
	// Copies is the container, in the account of the snapshots, for the blobs to
	// import; empty: DefaultCopies.
	Copies string

	Credential azcore.TokenCredential
	Cloud      cloud.Configuration // zero: the public one
	Transport  policy.Transporter  // nil: the SDK's
	// Heard says when an agent of the machine was last heard from the hardware uuid;
	// nil: health checks by the agent are refused.
	Heard  func(machine ident.MachineID, instance string) (time.Time, bool)
	Poll   time.Duration // pause between looks at an operation; 0: 5 s
	Logger *slog.Logger
}

// Cloud is Azure as a target. Safe for concurrent use, in several processes.
type Cloud struct {
	Config

	delegate    *azstorage.Delegate // of the account of the snapshots; nil without
	disks       *armcompute.DisksClient
	machines    *armcompute.VirtualMachinesClient
	skus        *armcompute.ResourceSKUsClient
	usage       *armcompute.UsageClient
	sets        *armcompute.AvailabilitySetsClient
	cards       *armnetwork.InterfacesClient
	networks    *armnetwork.VirtualNetworksClient
	gateways    *armnetwork.VirtualNetworkGatewaysClient
	routes      *armnetwork.RouteTablesClient
	permissions *armauthorization.PermissionsClient
	jobs        *armautomation.JobClient
	runbooks    *armautomation.RunbookClient
}

var (
	_ target.Cloud     = (*Cloud)(nil)
	_ target.Importer  = (*Cloud)(nil)
	_ target.Checker   = (*Cloud)(nil)
	_ target.Committer = (*Cloud)(nil)
)

var (
	groupForm    = regexp.MustCompile(`^[-\w._()]{1,90}$`)
	locationForm = regexp.MustCompile(`^[a-z0-9]{2,40}$`)
)

// Open makes the clients. It calls nobody.
func Open(c Config) (*Cloud, error) {
	if err := c.complete(); err != nil {
		return nil, err
	}
	o := &arm.ClientOptions{ClientOptions: c.options(), DisableRPRegistration: true}
	compute, err1 := armcompute.NewClientFactory(c.Subscription, c.Credential, o)
	network, err2 := armnetwork.NewClientFactory(c.Subscription, c.Credential, o)
	auth, err3 := armauthorization.NewClientFactory(c.Subscription, c.Credential, o)
	automation, err4 := armautomation.NewClientFactory(c.Subscription, c.Credential, o)
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return nil, fmt.Errorf("azure: %w", err)
	}
	var delegate *azstorage.Delegate
	if c.Snapshots != nil {
		var err error
		if delegate, err = azstorage.NewDelegate(c.Account.Endpoint, c.Credential, c.options()); err != nil {
			return nil, fmt.Errorf("azure: %w", err)
		}
	}
	return &Cloud{
		Config: c, delegate: delegate,
		disks: compute.NewDisksClient(), machines: compute.NewVirtualMachinesClient(), skus: compute.NewResourceSKUsClient(),
		usage: compute.NewUsageClient(), sets: compute.NewAvailabilitySetsClient(),
		cards: network.NewInterfacesClient(), networks: network.NewVirtualNetworksClient(),
		gateways: network.NewVirtualNetworkGatewaysClient(), routes: network.NewRouteTablesClient(),
		permissions: auth.NewPermissionsClient(), jobs: automation.NewJobClient(), runbooks: automation.NewRunbookClient(),
	}, nil
}

// complete checks the configuration and puts in what is left out.
func (c *Config) complete() error {
	switch {
	case c.Logger == nil || c.Credential == nil:
		return errors.New("azure: a logger and a credential are needed")
	case c.Subscription == "":
		return errors.New("azure: name the subscription")
	case !groupForm.MatchString(c.ResourceGroup):
		return fmt.Errorf("azure: resource group %q: want its name", c.ResourceGroup)
	case !locationForm.MatchString(c.Location):
		return fmt.Errorf("azure: location %q: want a region's short name, such as westeurope", c.Location)
	case c.Snapshots != nil && c.Way != WayImport && c.Way != WayUpload:
		return fmt.Errorf("azure: disks %q: want %s or %s", c.Way, WayImport, WayUpload)
	case c.Snapshots != nil && (c.Account.Endpoint == "" || c.Way == WayImport && c.Account.ID == ""):
		return errors.New("azure: name the storage account of the replicas by its endpoint and, to import disks, by its resource id")
	}
	if c.NetworkGroup == "" {
		c.NetworkGroup = c.ResourceGroup
	}
	if c.DiskType == "" {
		c.DiskType = DefaultDiskType
	}
	if c.Copies == "" {
		c.Copies = DefaultCopies
	}
	if c.Poll == 0 {
		c.Poll = defaultPoll
	}
	if c.Cloud.Services == nil {
		c.Cloud = cloud.AzurePublic
	}
	return nil
}

// options are those of every client.
func (c *Config) options() policy.ClientOptions {
	return policy.ClientOptions{
		Cloud: c.Cloud, Transport: c.Transport,
		Telemetry: policy.TelemetryOptions{ApplicationID: "drover"},
		Retry: policy.RetryOptions{
			MaxRetries: requestRetries, RetryDelay: min(c.Poll, time.Second), MaxRetryDelay: retryMost,
			StatusCodes: []int{
				http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError,
				http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout,
			},
		},
	}
}
