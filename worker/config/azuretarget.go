package config

import (
	"regexp"
	"strings"

	"drover/datapath/azstorage"
)

// AzureTarget makes machines in a resource group of a subscription.
type AzureTarget struct {
	Subscription  string `yaml:"subscription"`
	ResourceGroup string `yaml:"resourceGroup"`
	Location      string `yaml:"location"`     // short name of the region
	NetworkGroup  string `yaml:"networkGroup"` // resource group of the networks; default: resourceGroup
	DiskType      string `yaml:"diskType"`     // default StandardSSD_LRS
	Automation    string `yaml:"automation"`   // automation account of the plans' runbooks, in resourceGroup
	// Disks is how they are made when the replicas are in page blobs: "import", the
	// default, or "upload".
	Disks string `yaml:"disks"`
	// StorageAccount is the resource id of the replicas' account, for imports.
	StorageAccount string `yaml:"storageAccount"`
	// StorageEndpoint is the URL of its blob service that Azure itself reads from; default:
	// the store's endpoint, which may be a name that only this network knows.
	StorageEndpoint string `yaml:"storageEndpoint"`
	// Copies is the container in it for what is being imported; default drover-copies.
	Copies    string              `yaml:"copies"`
	Auth      AzureTargetAuth     `yaml:"auth"`
	Cloud     string              `yaml:"cloud"` // public (default), us-government or china
	Endpoints *AzureTargetService `yaml:"endpoints"`
	// Relay is what the temporary process server is made from; left out: there is none.
	Relay *AzureRelay `yaml:"relay"`
}

// AzureRelay is the machine by which failed-over machines stream back that do not reach
// the master target themselves.
type AzureRelay struct {
	Image   string `yaml:"image"`   // resource id, or publisher:offer:sku:version; it has drover-process-server and cloud-init
	Size    string `yaml:"size"`    // default Standard_B2s
	Network string `yaml:"network"` // from which master targets and configuration server are reached
	Subnet  string `yaml:"subnet"`
	// ConfigServer is the configuration server's URL, as that network reaches it.
	ConfigServer string `yaml:"configServer"`
}

const defaultRelaySize = "Standard_B2s"

// AzureTargetAuth says who we are to Azure Resource Manager. Secrets stay in files.
type AzureTargetAuth struct {
	Method     string `yaml:"method"` // managed-identity, workload-identity, cli or client-secret
	TenantID   string `yaml:"tenantId"`
	ClientID   string `yaml:"clientId"`
	SecretFile string `yaml:"secretFile"` // of client-secret; readable by us alone
}

// AzureTargetService names another cloud's endpoints.
type AzureTargetService struct {
	Authority string `yaml:"authority"`
	Manager   string `yaml:"manager"`
	Audience  string `yaml:"audience"` // of tokens; default: manager
	CA        string `yaml:"ca"`       // PEM; default: the system's
}

var (
	subscriptionForm = regexp.MustCompile(`^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$`)
	azureNameForm    = regexp.MustCompile(`^[-\w._()]{1,90}$`)
	regionForm       = regexp.MustCompile(`^[a-z0-9]{2,40}$`)
)

// target checks that machines are made in one place.
func (d *document) target(t *Target) {
	if t.Azure == nil {
		d.path("$.target.local.directory", &t.Local.Directory)
		return
	}
	if t.Local.Directory != "" {
		d.fail("$.target", "both local and azure: want one of them")
	}
	const at = "$.target.azure"
	a := t.Azure
	if !subscriptionForm.MatchString(a.Subscription) {
		d.fail(at+".subscription", "%q: want a subscription's id", a.Subscription)
	}
	if !azureNameForm.MatchString(a.ResourceGroup) {
		d.fail(at+".resourceGroup", "%q: want the name of a resource group", a.ResourceGroup)
	}
	if !regionForm.MatchString(a.Location) {
		d.fail(at+".location", "%q: want a region's short name, such as westeurope", a.Location)
	}
	switch a.Disks {
	case "", "import", "upload":
	default:
		d.fail(at+".disks", "%q: want import or upload", a.Disks)
	}
	if a.StorageAccount != "" && !strings.HasPrefix(a.StorageAccount, "/subscriptions/") {
		d.fail(at+".storageAccount", "%q: want a resource id, /subscriptions/...", a.StorageAccount)
	}
	if a.StorageEndpoint != "" {
		account := azstorage.Account{Endpoint: a.StorageEndpoint, Container: "copies", Auth: azstorage.Auth{Method: azstorage.ManagedIdentity}}
		if err := account.Check(); err != nil { // https, as wherever tokens are sent
			d.fail(at+".storageEndpoint", "%s", err)
		}
	}
	d.azureAuth(at+".auth", &a.Auth)
	if r := a.Relay; r != nil {
		if r.Size == "" {
			r.Size = defaultRelaySize
		}
		if !strings.HasPrefix(r.Image, "/subscriptions/") && strings.Count(r.Image, ":") != 3 {
			d.fail(at+".relay.image", "%q: want a resource id, /subscriptions/..., or publisher:offer:sku:version", r.Image)
		}
		if r.Network == "" || r.Subnet == "" {
			d.fail(at+".relay", "want network and subnet")
		}
		d.https(at+".relay.configServer", r.ConfigServer)
	}
	if e := a.Endpoints; e != nil {
		d.https(at+".endpoints.authority", e.Authority)
		d.https(at+".endpoints.manager", e.Manager)
		d.optionalPath(&e.CA)
	}
}

func (d *document) azureAuth(at string, a *AzureTargetAuth) {
	switch a.Method {
	case "managed-identity", "workload-identity", "cli":
	case "client-secret":
		d.path(at+".secretFile", &a.SecretFile)
		if a.TenantID == "" || a.ClientID == "" {
			d.fail(at, "client-secret wants tenantId and clientId")
		}
	default:
		d.fail(at+".method", "%q: want managed-identity, workload-identity, cli or client-secret", a.Method)
	}
}
