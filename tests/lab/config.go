package lab

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"drover/datapath/azstorage"
)

// writeConfigs writes the configuration files that an operator would write.
func (l *Lab) writeConfigs() error {
	a := l.addresses
	temporal := fmt.Sprintf("temporal: {address: %q, namespace: default}\n", l.TemporalAddress)
	return errors.Join(
		l.write("etc/config-server.yaml", fmt.Sprintf(`name: cs-1
state: ../config-server
listen: %q
advertise: [127.0.0.1]
metrics: %q
%s%s%sscripts: ../scripts
secrets: ../secrets
`, a["config-server"], a["config-server-metrics"], temporal, l.storage("seed", "cache"), l.target())),
		l.write("etc/process-server.yaml", l.serverConfig(ProcessServerName, "process-server", "seed", "cache", temporal, "")),
		l.write("etc/master-target.yaml", l.serverConfig(MasterTargetName, "master-target", "retention", "retention-cache", temporal,
			"diskById: ../vcenter/by-uuid/"+MasterTargetName+"\n")),
		l.write("etc/vcenter.yaml", l.vcenterSpec()),
		l.write("secrets/vcenter", "user: drover\npassword: "+VCenterPassword+"\n"),
		l.write("target/networks.yaml", fmt.Sprintf(`networks:
  - name: %s
    subnets: [{name: %s, cidr: 10.20.0.0/24}]
    gateways: [internet]
  - name: %s
    isolated: true
    subnets: [{name: %s, cidr: 10.99.0.0/24}]
`, Network, Subnet, TestNetwork, Subnet)),
	)
}

// VCenterPassword is what the simulated vCenter wants; it must show up nowhere.
const VCenterPassword = "correct horse battery staple"

func (l *Lab) serverConfig(name, role, store, cache, temporal, more string) string {
	return fmt.Sprintf(`name: %s
role: %s
state: ../%s
listen: %q
advertise: %q
metrics: %q
configServer: "https://%s"
tokenFile: ../secrets/%s.token
%s%sspool: {limit: 2GiB}
%s`, name, role, role, l.addresses[role], l.addresses[role], l.addresses[role+"-metrics"], l.addresses["config-server"],
		name, temporal, l.storage(store, cache), more)
}

// storage is where replicas and change sets are: directories, or containers of the
// account. The master target's are always directories.
func (l *Lab) storage(store, cache string) string {
	if l.Azure == "" || store != SeedContainer {
		return fmt.Sprintf("store: {file: ../%s}\ncache: {directory: ../%s}\n", store, cache)
	}
	of := func(container string) string {
		return fmt.Sprintf("{azure: {endpoint: %q, container: %s, auth: {method: %s}}}\n", l.Azure, container, azstorage.EmulatorKey)
	}
	return "store: " + of(store) + "cache: " + of(cache)
}

func (l *Lab) vcenterSpec() string {
	var b strings.Builder
	fmt.Fprintf(&b, "user: drover\npassword: %q\nmasterTarget: {name: %s}\ndatastores: [%s]\nvms:\n", VCenterPassword, MasterTargetName, OtherDatastore)
	for _, vm := range l.VMs {
		fmt.Fprintf(&b, "  - name: %s\n    cpus: 2\n    memoryMB: 2048\n    tags: [%s]\n    disks:\n", vm.Name, strings.Join(vm.Tags, ", "))
		for _, d := range vm.Disks {
			fmt.Fprintf(&b, "      - %d\n", d.Size)
		}
	}
	return b.String()
}

func (l *Lab) write(name, content string) error {
	return os.WriteFile(l.Path(name), []byte(content), 0o600)
}
