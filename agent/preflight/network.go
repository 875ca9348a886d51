package preflight

import (
	"path"
	"strings"

	"drover/agent/controlapi"
)

// network looks for addresses that are written down: in the target the network has
// others, and gives them by DHCP.
func (s system) network() controlapi.Finding {
	const check = "network"
	var fixed, known []string
	look := func(files []string, isFixed func(name string) bool) {
		for _, name := range files {
			known = append(known, name)
			if isFixed(name) {
				fixed = append(fixed, "/"+name)
			}
		}
	}
	look(s.ending("etc/netplan", ".yaml", ".yml"), func(name string) bool { return s.anyLine(name, "addresses:", "gateway4:") })
	look(append(s.ending("etc/network/interfaces.d", ""), s.ending("etc/network", "interfaces")...), s.ifupdown)
	look(s.ending("etc/sysconfig/network-scripts", ""), s.ifcfg)
	look(s.ending("etc/NetworkManager/system-connections", ".nmconnection"), func(name string) bool { return s.anyLine(name, "method=manual", "address1=") })
	look(s.ending("etc/systemd/network", ".network"), func(name string) bool { return s.anyLine(name, "Address=", "Gateway=") })
	switch {
	case len(fixed) > 0:
		return warn(check, "use DHCP, or let the recovery plan run a script that sets the addresses of the target", "fixed addresses in %s", strings.Join(fixed, ", "))
	case len(known) == 0:
		return warn(check, "make sure that the first network card asks for an address by DHCP", "it is not clear what sets up the network")
	}
	return ok(check, "addresses come by DHCP")
}

// ending gives the files of a directory whose names end so.
func (s system) ending(dir string, ends ...string) []string {
	var out []string
	for _, name := range s.list(dir) {
		info, exists := s.size(name)
		for _, end := range ends {
			if exists && info.Mode().IsRegular() && strings.HasSuffix(name, end) {
				out = append(out, name)
				break
			}
		}
	}
	return out
}

// anyLine reports whether a line begins with one of the words.
func (s system) anyLine(name string, words ...string) bool {
	for _, line := range s.lines(name) {
		for _, w := range words {
			if strings.HasPrefix(strings.TrimSpace(strings.TrimPrefix(line, "- ")), w) {
				return true
			}
		}
	}
	return false
}

// ifupdown reads "iface eth0 inet static".
func (s system) ifupdown(name string) bool {
	for _, line := range s.lines(name) {
		f := strings.Fields(line)
		if len(f) >= 4 && f[0] == "iface" && f[1] != "lo" && f[3] == "static" {
			return true
		}
	}
	return false
}

func (s system) ifcfg(name string) bool {
	base := path.Base(name)
	return strings.HasPrefix(base, "ifcfg-") && base != "ifcfg-lo" && s.anyLine(name, "IPADDR", `BOOTPROTO=none`, `BOOTPROTO="none"`, "BOOTPROTO=static", `BOOTPROTO="static"`)
}

// names looks for rules that tie a network card's name to the old card.
func (s system) names() controlapi.Finding {
	const check = "network-names"
	var tied []string
	for _, name := range append(s.ending("etc/udev/rules.d", ".rules"), s.ending("etc/systemd/network", ".link")...) {
		text := s.text(name)
		if strings.Contains(text, "ATTR{address}") && strings.Contains(text, "NAME") || strings.Contains(text, "MACAddress=") {
			tied = append(tied, "/"+name)
		}
	}
	for _, name := range s.ending("etc/netplan", ".yaml", ".yml") {
		if s.anyLine(name, "macaddress:") {
			tied = append(tied, "/"+name)
		}
	}
	for _, name := range s.ending("etc/sysconfig/network-scripts", "") {
		if s.anyLine(name, "HWADDR=") {
			tied = append(tied, "/"+name)
		}
	}
	if len(tied) > 0 {
		return warn(check, "remove the address of the card: in the target it has another, and would be left without a configuration", "tied to a card's hardware address: %s", strings.Join(tied, ", "))
	}
	return ok(check, "no network card is known by its hardware address")
}

// cloudAgent looks for what makes a guest at home in the cloud.
func (s system) cloudAgent() controlapi.Finding {
	const check = "cloud-agent"
	for what, places := range map[string][]string{
		"the Azure Linux agent": {"usr/sbin/waagent", "usr/bin/waagent", "sbin/waagent"},
		"cloud-init":            {"usr/bin/cloud-init"},
	} {
		for _, p := range places {
			if s.has(p) {
				return ok(check, "%s is installed", what)
			}
		}
	}
	return warn(check, "install walinuxagent (Debian, Ubuntu) or WALinuxAgent (RHEL, SUSE): extensions, resetting access and reporting ready need it; a boot does not",
		"neither the Azure Linux agent nor cloud-init is installed")
}
