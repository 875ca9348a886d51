package doctor

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"drover/agent/controlapi"
	"drover/datapath/ident"
)

// Bounds of the network checks.
const (
	netTimeout = 10 * time.Second
	// Offsets of the clock: a second is what the measurement is off by.
	clockNoted = 5 * time.Second
	clockWrong = 5 * time.Minute // certificates begin earlier by less than that twice
)

// control reaches the configuration server, as the agent does.
func (p *patient) control(ctx context.Context) []controlapi.Finding {
	const check = "configuration-server"
	ctx, cancel := context.WithTimeout(ctx, netTimeout)
	defer cancel()
	server := p.Config.ConfigServer
	const advice = "check the address in the configuration, the firewall and the proxy"
	if p.identity == nil {
		u, err := url.Parse(server)
		if err != nil {
			return []controlapi.Finding{fail(check, advice, "%v", err)}
		}
		conn, err := p.connect(ctx, withPort(u))
		if err != nil {
			return []controlapi.Finding{fail(check, advice, "%s is not reached: %v", server, err)}
		}
		_ = conn.Close() // it was reached
		return []controlapi.Finding{warn(check, "enrol first", "%s is reached; without a certificate it is not known whether it is the right one", server)}
	}
	begin := p.Now()
	date, err := p.ask(ctx)
	if err != nil {
		return []controlapi.Finding{fail(check, advice, "%s: %v", server, err)}
	}
	out := []controlapi.Finding{ok(check, "%s answers, and is of our CA", server)}
	offset := date.Sub(begin.Add(p.Now().Sub(begin) / 2).Truncate(time.Second))
	const sync = "let chrony or systemd-timesyncd set the clock"
	switch {
	case offset.Abs() > clockWrong:
		out = append(out, fail("clock", sync, "this machine's clock is off by %s: certificates may seem expired or not yet valid", -offset))
	case offset.Abs() > clockNoted:
		out = append(out, warn("clock", sync, "this machine's clock is off by %s; recovery points are corrected by it", -offset))
	default:
		out = append(out, ok("clock", "within seconds of the configuration server's"))
	}
	return out
}

// withPort is the host and port of the configuration server.
func withPort(u *url.URL) string {
	if u.Port() == "" {
		return net.JoinHostPort(u.Hostname(), "443")
	}
	return u.Host
}

func (p *patient) connect(ctx context.Context, address string) (net.Conn, error) {
	if p.Dial != nil {
		return p.Dial(ctx, "tcp", address)
	}
	var d net.Dialer
	return d.DialContext(ctx, "tcp", address)
}

// ask gets the assignment, and what the server's clock says.
func (p *patient) ask(ctx context.Context) (time.Time, error) {
	transport := &http.Transport{DialContext: func(ctx context.Context, _, address string) (net.Conn, error) { return p.connect(ctx, address) },
		TLSClientConfig: p.identity.ClientTLSRole(ident.RoleConfigurationServer)}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.Config.ConfigServer+"/v1/assignment?version=0&wait=0s", http.NoBody)
	if err != nil {
		return time.Time{}, err
	}
	res, err := transport.RoundTrip(req)
	if err != nil {
		return time.Time{}, err
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(res.Body, controlapi.MaxBody))
	if err != nil {
		return time.Time{}, err
	}
	if res.StatusCode != http.StatusOK {
		var refused controlapi.Error
		if json.Unmarshal(body, &refused) == nil && refused.Code != "" {
			return time.Time{}, &refused
		}
		return time.Time{}, fmt.Errorf("HTTP status %d: is it the configuration server, or a proxy?", res.StatusCode)
	}
	if err := json.Unmarshal(body, &p.assignment); err != nil {
		return time.Time{}, fmt.Errorf("the answer cannot be read: %w", err)
	}
	return http.ParseTime(res.Header.Get("Date"))
}

// processServer reaches the server that the machine streams to.
func (p *patient) processServer(ctx context.Context) controlapi.Finding {
	const check = "process-server"
	as := p.assignment
	if as.Action != controlapi.ActionReplicate {
		return ok(check, "none is assigned now: %s", first(as.Reason, "the assignment is not known"))
	}
	ctx, cancel := context.WithTimeout(ctx, netTimeout)
	defer cancel()
	conn, err := p.connect(ctx, as.Address)
	if err == nil {
		t := tls.Client(conn, p.identity.ClientTLS(ident.Peer{Role: as.Role, Name: as.Server}))
		err = t.HandshakeContext(ctx)
		_ = t.Close() // only the handshake was wanted
	}
	if err != nil {
		return fail(check, "let this machine connect to "+as.Address+"; changes are kept track of until it can", "%s at %s: %v", as.Server, as.Address, err)
	}
	return ok(check, "%s at %s answers, and is of our CA", as.Server, as.Address)
}

func first(list ...string) string {
	for _, s := range list {
		if s != "" {
			return s
		}
	}
	return ""
}
