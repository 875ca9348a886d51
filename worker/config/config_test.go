package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"drover/datapath/ident"
	"drover/datapath/throttle"
)

const configServer = `name: cs-1
state: ../config-server
listen: "127.0.0.1:443"
advertise: [127.0.0.1]
metrics: "127.0.0.1:9100"
temporal: {address: "127.0.0.1:7233", namespace: default}
store: {file: ../seed}
cache: {directory: ../cache}
target: {local: {directory: ../target}}
scripts: ../scripts
secrets: ../secrets
`

const masterTarget = `name: mt-1
role: master-target
state: ../master-target
listen: ":9443"
advertise: "mt-1.example:9443"
configServer: "https://cs.example:443"
tokenFile: ../secrets/mt-1.token
temporal: {address: "127.0.0.1:7233"}
store: {file: /srv/retention}
cache: {directory: ../retention-cache}
spool: {limit: 2GiB}
diskById: ../by-uuid
`

func write(t *testing.T, content string) (file, dir string) {
	t.Helper()
	dir = t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(dir, "etc"), 0o700))
	file = filepath.Join(dir, "etc", "drover.yaml")
	require.NoError(t, os.WriteFile(file, []byte(content), 0o600))
	return file, dir
}

func TestConfigServer(t *testing.T) {
	file, dir := write(t, configServer+"certificateLife: 24h\nwebhooks: {allow: [\"https://chat.example/hooks/\"]}\n")
	c, err := LoadConfigServer(file)
	require.NoError(t, err)
	require.Equal(t, filepath.Join(dir, "config-server"), c.State)
	require.Equal(t, filepath.Join(dir, "seed"), c.Store.File)
	require.Equal(t, filepath.Join(dir, "target"), c.Target.Local.Directory)
	require.Equal(t, []string{"127.0.0.1"}, c.Advertise)
	require.Equal(t, 24*time.Hour, c.CertificateLife.D())
	require.Equal(t, []string{"https://chat.example/hooks/"}, c.Webhooks.Allow)
}

func TestProcessServer(t *testing.T) {
	file, dir := write(t, masterTarget)
	c, err := LoadProcessServer(file)
	require.NoError(t, err)
	require.Equal(t, ident.RoleMasterTarget, c.Role)
	require.Equal(t, Bytes(2<<30), c.Spool.Limit)
	require.Equal(t, "default", c.Temporal.Namespace)
	require.Equal(t, "/srv/retention", c.Store.File, "an absolute path stays")
	require.Equal(t, filepath.Join(dir, "by-uuid"), c.DiskByID)
	require.Equal(t, filepath.Join(dir, "secrets", "mt-1.token"), c.TokenFile)
}

func TestExamples(t *testing.T) {
	_, err := LoadConfigServer("../../docs/examples/config-server.yaml")
	require.NoError(t, err)
	p, err := LoadProcessServer("../../docs/examples/process-server.yaml")
	require.NoError(t, err)
	require.Equal(t, throttle.Rate(25_000_000), p.ThrottleRules()[0].Limit)
	require.Equal(t, "Europe/Berlin", p.ThrottleRules()[0].Window.TimeZone)
	require.Len(t, p.ThrottleRules()[0].Window.Days, 5)
}

func TestDefaults(t *testing.T) {
	file, _ := write(t, configServer)
	c, err := LoadConfigServer(file)
	require.NoError(t, err)
	require.Equal(t, DefaultCertificateLife, c.CertificateLife.D())
}

func TestErrorsNameFileAndLine(t *testing.T) {
	for name, tc := range map[string]struct{ content, at, what string }{
		"unknown field":     {configServer + "colour: blue\n", ":12: ", "colour"},
		"unknown inner":     {configServer + "webhooks:\n  deny: [x]\n", ":13: ", "deny"},
		"wrong type":        {configServer + "webhooks: 7\n", ":12: ", ""},
		"duration":          {configServer + "certificateLife: a week\n", ":12: ", "want a number with a unit"},
		"short life":        {configServer + "certificateLife: 1m\n", ":12: ", "certificateLife: 1m0s: want 1h"},
		"webhook":           {configServer + "webhooks:\n  allow:\n    - https://ok.example\n    - ftp://x\n", ":15: ", "webhooks.allow[1]: want a URL"},
		"empty":             {"", ":1: ", "name"},
		"syntax":            {configServer + "x: [1\n", ":12: ", ""},
		"duplicate":         {configServer + "name: cs-2\n", ":12: ", "name"},
		"advertise port":    {configServer[:0] + "name: cs-1\nadvertise: [\"host:443\"]\n", ":2: ", "without port"},
		"name of a path":    {"name: ../x\n", ":1: ", "want 1 to 63"},
		"missing in a part": {"name: a\ntemporal:\n  namespace: x\n", ":3: ", "temporal.address"},
	} {
		t.Run(name, func(t *testing.T) {
			file, _ := write(t, tc.content)
			_, err := LoadConfigServer(file)
			require.ErrorContains(t, err, file+tc.at)
			require.ErrorContains(t, err, tc.what)
		})
	}
}

func TestProcessServerErrors(t *testing.T) {
	for name, tc := range map[string]struct{ more, at, what string }{
		"size":     {"spool: {limit: 2GB}\n", ":12: ", "want a whole number"},
		"small":    {"spool: {limit: 1KiB}\n", ":12: ", "at least 64MiB"},
		"negative": {"spool: {limit: -5}\n", ":12: ", "want a whole number"},
		"rate":     {"throttle:\n  - limit: 20Mbit\n", ":13: ", "such as 20Mbit/s"},
		"no limit": {"throttle:\n  - limit: 1Mbit/s\n  - {limit: 0Mbit/s}\n", ":14: throttle[1].limit", "to stop a machine use drover pause"},
		"zone":     {"throttle:\n  - limit: 1Mbit/s\n    window:\n      {timeZone: Mars/Base, start: \"08:00\", end: \"18:00\"}\n", ":15: throttle[0].window.timeZone", "no such time zone"},
		"day":      {"throttle:\n  - limit: 1Mbit/s\n    window: {timeZone: UTC, start: \"08:00\", end: \"18:00\",\n      days: [mon, Sun]}\n", ":15: throttle[0].window.days[1]", "want mon"},
		"unknown":  {"throttle:\n  - limit: 1Mbit/s\n    windows: []\n", ":14: ", "windows"},
	} {
		t.Run(name, func(t *testing.T) {
			content := masterTarget[:len(masterTarget)-len("spool: {limit: 2GiB}\ndiskById: ../by-uuid\n")] + "diskById: ../by-uuid\n" + tc.more
			file, _ := write(t, content)
			_, err := LoadProcessServer(file)
			require.ErrorContains(t, err, file+tc.at)
			require.ErrorContains(t, err, tc.what)
		})
	}
	file, _ := write(t, "name: ps-1\nrole: agent\ndiskById: x\nconfigServer: http://x\n")
	_, err := LoadProcessServer(file)
	for _, want := range []string{":2: role", ":3: diskById", ":4: configServer", ": state: missing"} {
		require.ErrorContains(t, err, want)
	}
}

func TestNoFile(t *testing.T) {
	_, err := LoadConfigServer(filepath.Join(t.TempDir(), "none.yaml"))
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestBytes(t *testing.T) {
	for text, want := range map[string]Bytes{"0": 0, "17": 17, "3 KiB": 3 << 10, "5MiB": 5 << 20, "1TiB": 1 << 40, "9B": 9} {
		var b Bytes
		require.NoError(t, b.UnmarshalText([]byte(text)), text)
		require.Equal(t, want, b, text)
	}
	for _, text := range []string{"", "GiB", "1.5GiB", "9000000TiB", "-1", "2GB"} {
		var b Bytes
		require.Error(t, b.UnmarshalText([]byte(text)), text)
	}
	require.Equal(t, "2GiB", Bytes(2<<30).String())
	require.Equal(t, "1025B", Bytes(1025).String())
}

func TestAzureAccounts(t *testing.T) {
	const base = "name: ps-1\nrole: process-server\nstate: s\nlisten: \":9443\"\nadvertise: \"ps:9443\"\nconfigServer: \"https://cs:443\"\ntemporal: {address: \"t:7233\"}\n"
	const fine = base + `store: {azure: {endpoint: "https://seed.blob.core.windows.net", container: seed, auth: {method: managed-identity, clientId: c}}}
cache: {azure: {endpoint: "https://cache.privatelink.example", container: cache, auth: {method: sas, sasFile: ../secrets/cache.sas}, keep: 24h}}
`
	file, dir := write(t, fine)
	c, err := LoadProcessServer(file)
	require.NoError(t, err)
	require.Equal(t, "seed", c.Store.Azure.Account().Container)
	require.Equal(t, 24*time.Hour, c.Cache.Azure.Keep.D())
	require.Equal(t, filepath.Join(dir, "secrets", "cache.sas"), c.Cache.Azure.Account().Auth.SASFile)
	for wrong, part := range map[string][2]string{
		"want https":        {"https://seed", "http://seed"},
		"never sent over":   {"https://seed.blob.core.windows.net", "http://127.0.0.1:1/devstoreaccount1"},
		"container":         {"container: seed", "container: Seed_1"},
		"auth \"key\"":      {"managed-identity", "key"},
		"on this machine":   {"managed-identity", "emulator-key"},
		"want sasFile":      {", sasFile: ../secrets/cache.sas", ""},
		"want one of them":  {"store: {azure", "store: {file: x, azure"},
		"of the cache only": {"clientId: c}}", "clientId: c}, keep: 1h}"},
		"want file":         {"role: process-server", "role: master-target"},
	} {
		text := strings.Replace(fine, part[0], part[1], 1)
		require.NotEqual(t, fine, text)
		file, _ := write(t, text)
		_, err := LoadProcessServer(file)
		require.ErrorContains(t, err, wrong, part[1])
	}
}

func azureTarget(lines string) string {
	return strings.Replace(configServer, "target: {local: {directory: ../target}}\n", "target:\n  azure:\n"+lines, 1)
}

const someAzure = `    subscription: 99999999-8888-7777-6666-555555555555
    resourceGroup: recovery
    location: westeurope
    auth: {method: client-secret, tenantId: t, clientId: c, secretFile: ../secrets/azure}
    endpoints: {authority: "https://login.example", manager: "https://manage.example", ca: ca.pem}
    storageEndpoint: https://seeds.blob.example
    relay: {image: "/subscriptions/s/images/i", network: hub, subnet: servers, configServer: "https://cs.example"}
`

func TestAzureTarget(t *testing.T) {
	require.NotEqual(t, configServer, azureTarget(""))
	file, dir := write(t, azureTarget(someAzure))
	c, err := LoadConfigServer(file)
	require.NoError(t, err)
	require.Equal(t, filepath.Join(dir, "secrets", "azure"), c.Target.Azure.Auth.SecretFile)
	require.Equal(t, filepath.Join(dir, "etc", "ca.pem"), c.Target.Azure.Endpoints.CA)
	require.Equal(t, "Standard_B2s", c.Target.Azure.Relay.Size)
	for _, tc := range []struct{ old, now, what string }{
		{"recovery", "a/b", "resourceGroup"},
		{"westeurope", "West Europe", "short name"},
		{"99999999", "9", "subscription"},
		{"client-secret", "password", "method"},
		{"https://manage.example", "http://manage.example", "manager"},
		{"    location", "    disks: magic\n    location", "import or upload"},
		{"tenantId: t, ", "", "wants tenantId"},
		{"https://seeds", "http://seeds", "storageEndpoint"},
		{"/subscriptions/s/images/i", "debian", "relay.image"},
		{"network: hub, ", "", "network and subnet"},
		{"https://cs.example", "cs.example", "relay.configServer"},
		{"    location", "    storageAccount: seeds\n    location", "resource id"},
	} {
		file, _ := write(t, azureTarget(strings.Replace(someAzure, tc.old, tc.now, 1)))
		_, err := LoadConfigServer(file)
		require.ErrorContains(t, err, tc.what)
	}
	file, _ = write(t, strings.Replace(azureTarget(someAzure), "  azure:", "  local: {directory: ../target}\n  azure:", 1))
	_, err = LoadConfigServer(file)
	require.ErrorContains(t, err, "want one of them")
}

func TestRelay(t *testing.T) {
	const fine = `name: relay-1
role: relay
state: s
listen: ":9443"
advertise: "10.0.0.4:9443"
configServer: "https://cs:443"
tokenFile: token
relayTo: ["mt-1:9443"]
`
	file, _ := write(t, fine)
	c, err := LoadProcessServer(file)
	require.NoError(t, err, "it wants neither store, cache nor Temporal")
	require.Equal(t, []string{"mt-1:9443"}, c.RelayTo)
	for _, tc := range []struct{ old, now, what string }{
		{`["mt-1:9443"]`, "[]", "relayTo: a relay leads to one master target at least"},
		{"mt-1:9443", "mt-1", "relayTo[0]"},
		{"role: relay", "role: process-server", "and no other role does"},
	} {
		file, _ := write(t, strings.Replace(fine, tc.old, tc.now, 1))
		_, err := LoadProcessServer(file)
		require.ErrorContains(t, err, tc.what)
	}
}
