// Package config reads the configuration files of the configuration server and
// of process servers and master targets. Decoding is strict: an unknown field, a
// missing or a wrong value is an error that names file and line. Relative paths
// are relative to the file they stand in.
package config

import (
	"fmt"
	"time"

	"drover/datapath/ident"
)

// Limits of values.
const (
	DefaultCertificateLife = 168 * time.Hour
	minCertificateLife     = time.Hour
	maxCertificateLife     = 366 * 24 * time.Hour
	DefaultSpoolLimit      = Bytes(8 << 30)
	minSpoolLimit          = Bytes(64 << 20)
	maxFile                = 1 << 20 // bytes of a configuration file
)

// Temporal says where Temporal is.
type Temporal struct {
	Address   string `yaml:"address"`   // host:port
	Namespace string `yaml:"namespace"` // default "default"
}

// Target is where machines are failed over to: one of these.
type Target struct {
	Local LocalTarget  `yaml:"local"`
	Azure *AzureTarget `yaml:"azure"`
}

// LocalTarget is a target side made of files on this machine.
type LocalTarget struct {
	Directory string `yaml:"directory"`
}

// Webhooks says which URLs the actions of plans may post to.
type Webhooks struct {
	Allow []string `yaml:"allow"` // prefixes
	// SecretFile has the secret that they are signed with; empty: they are not.
	SecretFile string `yaml:"secretFile"`
}

// Notify says where problems are sent besides the log.
type Notify struct {
	Webhook string `yaml:"webhook"` // URL; empty: nowhere
}

// Agents says what a push installs in guests.
type Agents struct {
	// Directory has drover-agent-linux-ARCH and drover-agent.service; empty: nothing is
	// installed.
	Directory string `yaml:"directory"`
	Server    string `yaml:"server"` // how agents reach the configuration server, https://host:port
}

// Spool bounds the local spool of a process server.
type Spool struct {
	Limit Bytes `yaml:"limit"` // e.g. "2GiB"
}

// ConfigServer configures the configuration server.
type ConfigServer struct {
	Name  string `yaml:"name"`
	State string `yaml:"state"` // directory of registry, CA and admin socket
	// Listen is the address of the HTTPS API, e.g. ":443".
	Listen string `yaml:"listen"`
	// Advertise lists the host names and IP addresses agents reach the server by.
	Advertise       []string `yaml:"advertise"`
	Metrics         string   `yaml:"metrics"` // address of /metrics and /healthz; empty: none
	Temporal        Temporal `yaml:"temporal"`
	Store           Store    `yaml:"store"`
	Cache           Cache    `yaml:"cache"`
	Target          Target   `yaml:"target"`
	Scripts         string   `yaml:"scripts"`    // directory of the plans' scripts
	ScriptUser      string   `yaml:"scriptUser"` // who runs them; empty: the configuration server's own user
	Secrets         string   `yaml:"secrets"`    // directory of credential files
	Agents          Agents   `yaml:"agents"`
	Webhooks        Webhooks `yaml:"webhooks"`
	Notify          Notify   `yaml:"notify"`
	CertificateLife Duration `yaml:"certificateLife"` // of agents and servers; default 168h
}

// ProcessServer configures a process server or master target.
type ProcessServer struct {
	Name  string     `yaml:"name"`
	Role  ident.Role `yaml:"role"`  // process-server, master-target or relay
	State string     `yaml:"state"` // directory of identity, spool and grants
	// Listen is where agents' data comes in, e.g. ":9443".
	Listen string `yaml:"listen"`
	// Advertise is the host:port by which agents reach it.
	Advertise    string   `yaml:"advertise"`
	Metrics      string   `yaml:"metrics"`
	ConfigServer string   `yaml:"configServer"` // https://host:port
	TokenFile    string   `yaml:"tokenFile"`    // read while there is no identity yet
	Temporal     Temporal `yaml:"temporal"`
	Store        Store    `yaml:"store"`
	Cache        Cache    `yaml:"cache"`
	Spool        Spool    `yaml:"spool"`
	// Throttle limits what all agents together may send.
	Throttle []ThrottleRule `yaml:"throttle"`
	// DiskByID is the directory of links to attached disks, by backing uuid; only
	// of a master target.
	DiskByID string `yaml:"diskById"`
	// RelayTo lists the master targets (host:port) to which a relay passes agents'
	// connections on. It has neither store, cache, spool nor Temporal.
	RelayTo []string `yaml:"relayTo"`
}

// LoadConfigServer reads and checks the configuration server's file.
func LoadConfigServer(file string) (*ConfigServer, error) {
	c := &ConfigServer{
		Temporal:        Temporal{Namespace: "default"},
		CertificateLife: Duration(DefaultCertificateLife),
	}
	d, err := load(file, c)
	if err != nil {
		return nil, err
	}
	d.name("$.name", c.Name)
	d.path("$.state", &c.State)
	d.listen("$.listen", c.Listen, true)
	d.hosts("$.advertise", c.Advertise)
	d.listen("$.metrics", c.Metrics, false)
	d.temporal(c.Temporal)
	d.oneOf("$.store", "file", &c.Store.File, c.Store.Azure)
	d.oneOf("$.cache", "directory", &c.Cache.Directory, c.Cache.Azure)
	d.target(&c.Target)
	d.path("$.scripts", &c.Scripts)
	d.path("$.secrets", &c.Secrets)
	d.optionalPath(&c.Agents.Directory)
	if c.Agents.Directory != "" {
		d.https("$.agents.server", c.Agents.Server)
	}
	d.urls("$.webhooks.allow", c.Webhooks.Allow)
	d.optionalPath(&c.Webhooks.SecretFile)
	if c.Notify.Webhook != "" {
		d.url("$.notify.webhook", c.Notify.Webhook)
	}
	if life := c.CertificateLife.D(); life < minCertificateLife || life > maxCertificateLife {
		d.fail("$.certificateLife", "%s: want %s to %s", life, minCertificateLife, maxCertificateLife)
	}
	return c, d.err()
}

// LoadProcessServer reads and checks the file of a process server or master target.
func LoadProcessServer(file string) (*ProcessServer, error) {
	c := &ProcessServer{
		Temporal: Temporal{Namespace: "default"},
		Spool:    Spool{Limit: DefaultSpoolLimit},
	}
	d, err := load(file, c)
	if err != nil {
		return nil, err
	}
	d.name("$.name", c.Name)
	if c.Role != ident.RoleProcessServer && c.Role != ident.RoleMasterTarget && c.Role != ident.RoleRelay {
		d.fail("$.role", "%q: want %s, %s or %s", c.Role, ident.RoleProcessServer, ident.RoleMasterTarget, ident.RoleRelay)
	}
	d.path("$.state", &c.State)
	d.listen("$.listen", c.Listen, true)
	d.address("$.advertise", c.Advertise)
	d.listen("$.metrics", c.Metrics, false)
	d.https("$.configServer", c.ConfigServer)
	d.optionalPath(&c.TokenFile)
	d.relay(c)
	if c.Role == ident.RoleRelay {
		return c, d.err()
	}
	d.temporal(c.Temporal)
	d.oneOf("$.store", "file", &c.Store.File, c.Store.Azure)
	d.oneOf("$.cache", "directory", &c.Cache.Directory, c.Cache.Azure)
	if c.Spool.Limit < minSpoolLimit {
		d.fail("$.spool.limit", "%s: want at least %s, a change set must fit", c.Spool.Limit, minSpoolLimit)
	}
	if c.Store.Azure != nil && c.Role == ident.RoleMasterTarget {
		d.fail("$.store.azure", "a %s keeps what it needs beside the attached disks: want file", ident.RoleMasterTarget)
	}
	if c.DiskByID != "" && c.Role != ident.RoleMasterTarget {
		d.fail("$.diskById", "only a %s has attached disks", ident.RoleMasterTarget)
	}
	d.throttle("$.throttle", c.ThrottleRules())
	d.optionalPath(&c.DiskByID)
	return c, d.err()
}

// relay checks where a relay leads to, and that no other role does.
func (d *document) relay(c *ProcessServer) {
	if (c.Role == ident.RoleRelay) != (len(c.RelayTo) > 0) {
		d.fail("$.relayTo", "a %s leads to one master target at least, and no other role does", ident.RoleRelay)
	}
	for i, to := range c.RelayTo {
		d.address(fmt.Sprintf("$.relayTo[%d]", i), to)
	}
}
