package bench

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"testing"

	"drover/datapath/ident"
	"drover/datapath/wire"
	"drover/datapath/wire/wiretest"
)

// fatal ends a measurement where a test would fail.
type fatal struct{ testing.TB }

func (fatal) Helper()           {}
func (fatal) Fatal(args ...any) { panic(fmt.Sprint(args...)) }

// pair joins an agent's and a server's end over TLS on loopback.
func pair(m ident.MachineID) (agent, server *wire.Conn, stop func(), err error) {
	const nonce = 1
	ca, self := wiretest.NewCA(fatal{}), ident.Peer{Role: ident.RoleProcessServer, Name: "ps"}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, nil, err
	}
	upgraded, failed, release := make(chan *wire.Conn, 1), make(chan error, 1), make(chan struct{})
	srv := &http.Server{TLSConfig: ca.Server(self), ReadHeaderTimeout: wire.HandshakeTimeout,
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			c, err := wire.Upgrade(w, r)
			if err != nil {
				failed <- err
				return
			}
			upgraded <- c
			<-release
		})}
	served := make(chan struct{})
	go func() { defer close(served); _ = srv.ServeTLS(listener, "", "") }()
	stop = func() {
		close(release)
		_ = srv.Close()
		<-served
	}
	if agent, err = wire.Dial(background, nil, listener.Addr().String(), ca.Client(wiretest.Agent(m), self)); err == nil {
		select {
		case server = <-upgraded:
		case err = <-failed:
		}
	}
	if err != nil {
		stop()
		return nil, nil, nil, err
	}
	agent.SetNonce(nonce)
	server.SetNonce(nonce)
	all := stop
	return agent, server, func() { _ = errors.Join(agent.Close(), server.Close()); all() }, nil
}
