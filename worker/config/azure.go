package config

import (
	"time"

	"drover/datapath/azstorage"
)

// maxKeep bounds how long change sets stay in the cache after they were applied.
const maxKeep = 90 * 24 * time.Hour

// Store is where replicas are kept: one of these.
type Store struct {
	File  string        `yaml:"file"` // directory
	Azure *AzureAccount `yaml:"azure"`
}

// Cache is the cache storage: one of these.
type Cache struct {
	Directory string        `yaml:"directory"`
	Azure     *AzureAccount `yaml:"azure"`
}

// AzureAccount is a container of a storage account. That of the cache may be in
// another account than that of the replicas, and be reached another way.
type AzureAccount struct {
	// Endpoint is the URL of the account's blob service: public, a private link's, another cloud's.
	Endpoint  string    `yaml:"endpoint"`
	Container string    `yaml:"container"`
	Auth      AzureAuth `yaml:"auth"`
	// Keep is how long an applied change set stays; only of the cache.
	Keep Duration `yaml:"keep"`
}

// AzureAuth says who we are to the account.
type AzureAuth struct {
	Method    string `yaml:"method"` // managed-identity, workload-identity, cli, sas or emulator-key
	ClientID  string `yaml:"clientId"`
	TenantID  string `yaml:"tenantId"`
	Authority string `yaml:"authority"` // of a sovereign cloud, e.g. https://login.microsoftonline.us
	SASFile   string `yaml:"sasFile"`
}

// Account is what connects to it.
func (a *AzureAccount) Account() azstorage.Account {
	return azstorage.Account{Endpoint: a.Endpoint, Container: a.Container, Auth: azstorage.Auth{
		Method: a.Auth.Method, ClientID: a.Auth.ClientID, TenantID: a.Auth.TenantID, Authority: a.Auth.Authority, SASFile: a.Auth.SASFile,
	}}
}

// oneOf checks that replicas, or change sets, are kept in one place.
func (d *document) oneOf(path, key string, directory *string, azure *AzureAccount) {
	if azure == nil {
		d.path(path+"."+key, directory)
		return
	}
	if *directory != "" {
		d.fail(path, "both %s and azure: want one of them", key)
	}
	path += ".azure"
	d.optionalPath(&azure.Auth.SASFile)
	if azure.Auth.Authority != "" {
		d.https(path+".auth.authority", azure.Auth.Authority)
	}
	if err := azure.Account().Check(); err != nil {
		d.fail(path, "%s", err)
	}
	if keep := azure.Keep.D(); keep < 0 || keep > maxKeep || keep > 0 && key != "directory" {
		d.fail(path+".keep", "%s: want 0 to %s, of the cache only", keep, maxKeep)
	}
}
