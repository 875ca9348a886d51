package vsphere

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"

	"drover/workflows/api"
)

const (
	transferTimeout = 10 * time.Minute // of one file
	transferIdle    = 30 * time.Second // for a connection, and for an answer's first byte
)

// transfer sends or reads a file at an address that vCenter gave. The address is a ticket:
// no error shows it.
func (g *Guest) transfer(ctx context.Context, method, address string, content io.Reader, size int64, read func(io.Reader) error) error {
	ctx, cancel := context.WithTimeout(ctx, transferTimeout)
	defer cancel()
	to, err := url.Parse(address)
	if err != nil || to.Scheme != "https" {
		return failed(api.CodeVCenter, nil, "vCenter %s gave no https address for a file transfer", g.s.name)
	}
	if to.Hostname() == "*" { // the one that we are connected to
		to.Host = g.s.client.URL().Host
	}
	client, err := g.host(ctx, to.Host)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, method, to.String(), content)
	if err != nil {
		return failed(api.CodeVCenter, nil, "vCenter %s gave no address for a file transfer that can be used", g.s.name)
	}
	if content != nil {
		req.ContentLength = size
		req.Header.Set("Content-Type", "application/octet-stream")
	}
	res, err := client.Do(req)
	if err != nil {
		var shown *url.Error
		if errors.As(err, &shown) {
			err = shown.Err
		}
		return failed(api.CodePush, err, "transfer a file at %s, the VM's host; does the configuration server reach it there", to.Host)
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode != http.StatusOK && res.StatusCode != http.StatusCreated {
		return failed(api.CodePush, nil, "transfer a file at %s, the VM's host: %s", to.Host, res.Status)
	}
	if read != nil {
		return read(res.Body)
	}
	return nil
}

// host gives what speaks to the host of a file transfer. It is trusted as vCenter itself is,
// by pin or authority; and by the certificate that vCenter, which is trusted, names for it.
func (g *Guest) host(ctx context.Context, address string) (*http.Client, error) {
	if c := g.hosts[address]; c != nil {
		return c, nil
	}
	named, err := g.namedByVCenter(ctx)
	if err != nil {
		return nil, err
	}
	conf := g.s.trust.Clone()
	conf.InsecureSkipVerify = true // VerifyConnection does
	conf.MinVersion = tls.VersionTLS12
	conf.VerifyConnection = func(state tls.ConnectionState) error { return verifyHost(state, g.s.trust, named) }
	c := &http.Client{
		Transport: &http.Transport{
			Proxy: http.ProxyFromEnvironment, TLSClientConfig: conf, TLSHandshakeTimeout: transferIdle, DisableKeepAlives: true,
			DialContext: (&net.Dialer{Timeout: transferIdle}).DialContext,
		},
		// A ticket is for one address.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	g.hosts[address] = c
	return c, nil
}

// certificate is what vCenter tells of a host's.
type certificate struct {
	exact      []byte // DER; nil: not told
	thumbprint string // SHA-1 or SHA-256
}

func (c certificate) is(shown *x509.Certificate) bool {
	if c.exact != nil {
		return string(c.exact) == string(shown.Raw)
	}
	return c.thumbprint != "" && (strings.EqualFold(c.thumbprint, soap.ThumbprintSHA256(shown)) || strings.EqualFold(c.thumbprint, soap.ThumbprintSHA1(shown)))
}

// namedByVCenter asks for the certificate of the host that runs the VM.
func (g *Guest) namedByVCenter(ctx context.Context) (c certificate, err error) {
	vm, err := g.s.properties(ctx, g.vm, "runtime.host")
	if err != nil || vm.Runtime.Host == nil {
		return c, err
	}
	var host mo.HostSystem
	if err := g.s.client.RetrieveOne(ctx, *vm.Runtime.Host, []string{"config.certificate", "summary.config.sslThumbprint"}, &host); err != nil {
		return c, failed(api.CodeVCenter, err, "ask vCenter %s for the certificate of the host of VM %s", g.s.name, g.name)
	}
	if host.Config != nil {
		c.exact = derOf(host.Config.Certificate)
	}
	c.thumbprint = host.Summary.Config.SslThumbprint
	return c, nil
}

// derOf reads a certificate that may be in PEM form, and gives nil for none.
func derOf(b types.ByteSlice) []byte {
	raw := []byte(b)
	if block, _ := pem.Decode(raw); block != nil {
		raw = block.Bytes
	}
	if _, err := x509.ParseCertificate(raw); err != nil {
		return nil
	}
	return raw
}

// verifyHost accepts a certificate that vCenter names, or that vCenter itself could show.
func verifyHost(state tls.ConnectionState, trust *tls.Config, named certificate) error {
	if len(state.PeerCertificates) == 0 {
		return fmt.Errorf("%w: the host showed none", errPin)
	}
	if named.is(state.PeerCertificates[0]) {
		return nil
	}
	var err error
	if trust.VerifyConnection != nil {
		err = trust.VerifyConnection(state)
	} else {
		options := x509.VerifyOptions{Roots: trust.RootCAs, DNSName: state.ServerName, Intermediates: x509.NewCertPool()}
		for _, c := range state.PeerCertificates[1:] {
			options.Intermediates.AddCert(c)
		}
		_, err = state.PeerCertificates[0].Verify(options)
	}
	if err != nil {
		return fmt.Errorf("%w: the host's certificate is not the one that vCenter knows of it, nor is it trusted as vCenter is; reconnect the host in vCenter if it was renewed", errPin)
	}
	return nil
}
