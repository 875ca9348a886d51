package ident

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strings"
)

// Role is what a certificate's holder is.
type Role string

// The roles that have certificates.
const (
	RoleAgent               Role = "agent"
	RoleProcessServer       Role = "process-server"
	RoleMasterTarget        Role = "master-target"
	RoleRelay               Role = "relay" // passes agents' connections on to master targets
	RoleConfigurationServer Role = "configuration-server"
)

// Peer is the identity in a certificate: the one URI name drover://<role>/<name>.
// For an agent the name is its machine id; for a server, its own name.
type Peer struct {
	Role Role
	Name string
}

// URI gives the certificate's subject alternative name.
func (p Peer) URI() *url.URL {
	return &url.URL{Scheme: "drover", Host: string(p.Role), Path: "/" + p.Name}
}

func (p Peer) String() string { return string(p.Role) + "/" + p.Name }

// Machine gives the machine an agent's certificate is for.
func (p Peer) Machine() (MachineID, error) {
	if p.Role != RoleAgent {
		return MachineID{}, fmt.Errorf("certificate of %s: want one of an agent", p)
	}
	return ParseMachineID(p.Name)
}

// peerName is what names of machines and servers look like.
var peerName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)

// PeerOf reads the identity from a certificate that was already verified.
func PeerOf(cert *x509.Certificate) (Peer, error) {
	if cert == nil || len(cert.URIs) != 1 {
		return Peer{}, errors.New("certificate without exactly one drover:// name: it was not issued by a configuration server")
	}
	u := cert.URIs[0]
	p := Peer{Role: Role(u.Host), Name: strings.TrimPrefix(u.Path, "/")}
	if u.Scheme != "drover" || !peerName.MatchString(p.Name) || u.String() != p.URI().String() {
		return Peer{}, fmt.Errorf("certificate name %q: want drover://<role>/<name>", u)
	}
	switch p.Role {
	case RoleAgent, RoleProcessServer, RoleMasterTarget, RoleRelay, RoleConfigurationServer:
		return p, nil
	}
	return Peer{}, fmt.Errorf("certificate name %q: unknown role", u)
}
