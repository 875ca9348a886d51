package local

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/goccy/go-yaml"

	"drover/activities/target"
)

// networks is networks.yaml.
type networks struct {
	Networks []network `yaml:"networks"`
}

type network struct {
	Name string `yaml:"name"`
	// Isolated says what the network is meant to be; what counts is what it has.
	Isolated bool     `yaml:"isolated"`
	Subnets  []subnet `yaml:"subnets"`
	Peerings []string `yaml:"peerings"`
	Gateways []string `yaml:"gateways"`
}

type subnet struct {
	Name string `yaml:"name"`
	CIDR string `yaml:"cidr"`
}

const maxNetworksFile = 1 << 20

func (c *Cloud) network(name string) (network, error) {
	path := filepath.Join(c.dir, "networks.yaml")
	info, err := os.Stat(path)
	if err == nil && info.Size() > maxNetworksFile {
		err = fmt.Errorf("%d bytes, at most %d", info.Size(), maxNetworksFile)
	}
	if err != nil {
		return network{}, fmt.Errorf("read the target's networks: %w", err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return network{}, fmt.Errorf("read the target's networks: %w", err)
	}
	var all networks
	if err := yaml.NewDecoder(bytes.NewReader(b), yaml.Strict()).Decode(&all); err != nil {
		return network{}, fmt.Errorf("read the target's networks: %s: %w", path, err)
	}
	for _, n := range all.Networks {
		if n.Name == name {
			return n, nil
		}
	}
	return network{}, fmt.Errorf("network %q: %w", name, target.ErrNotFound)
}

// Network gives a network of networks.yaml.
func (c *Cloud) Network(_ context.Context, name string) (target.Network, error) {
	n, err := c.network(name)
	if err != nil {
		return target.Network{}, err
	}
	out := target.Network{Name: n.Name}
	for _, s := range n.Subnets {
		out.Subnets = append(out.Subnets, s.Name)
	}
	for _, p := range n.Peerings {
		out.WaysOut = append(out.WaysOut, "peering with "+p)
	}
	for _, g := range n.Gateways {
		out.WaysOut = append(out.WaysOut, "gateway "+g)
	}
	return out, nil
}

// firstAddress is the first that a machine may have: as in Azure, the network's
// own address and the three after it are taken.
const firstAddress = 4

// address gives the wanted address if it is free and in the subnet, or a free one.
// An empty subnet takes the first.
func (c *Cloud) address(netName, subnetName, want string) (string, error) {
	n, err := c.network(netName)
	if err != nil {
		return "", err
	}
	var prefix netip.Prefix
	for _, s := range n.Subnets {
		if s.Name == subnetName || subnetName == "" {
			if prefix, err = netip.ParsePrefix(s.CIDR); err != nil {
				return "", fmt.Errorf("subnet %s of network %s: %w", s.Name, netName, err)
			}
			break
		}
	}
	if !prefix.IsValid() {
		return "", fmt.Errorf("network %s has no subnet %q: %w", netName, subnetName, target.ErrRefused)
	}
	taken, err := c.addresses(netName)
	if err != nil {
		return "", err
	}
	if want != "" {
		a, err := netip.ParseAddr(want)
		if err != nil || !prefix.Contains(a) || taken[a] {
			return "", errors.Join(fmt.Errorf("address %q is not a free one of subnet %s (%s): %w", want, subnetName, prefix, target.ErrRefused), err)
		}
		return want, nil
	}
	a := prefix.Masked().Addr()
	for range firstAddress {
		a = a.Next()
	}
	for ; prefix.Contains(a); a = a.Next() {
		if !taken[a] {
			return a.String(), nil
		}
	}
	return "", fmt.Errorf("subnet %s of network %s has no free address: %w", subnetName, netName, target.ErrRefused)
}

// addresses lists those that machines of the network have.
func (c *Cloud) addresses(netName string) (map[netip.Addr]bool, error) {
	all, err := c.all()
	taken := map[netip.Addr]bool{}
	for _, m := range all {
		if a, err := netip.ParseAddr(m.Address); err == nil && m.Network == netName {
			taken[a] = true
		}
	}
	return taken, err
}
