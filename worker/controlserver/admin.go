package controlserver

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"drover/agent/controlapi"
	"drover/datapath/ident"
	"drover/worker/controlserver/admin"
	"drover/worker/registry"
	"drover/worker/statefile"
)

// adminListener is the admin socket.
type adminListener struct {
	net.Listener
	path string
}

// listenAdmin makes the socket. It comes to life in a folder that nobody else can
// enter and moves to its place when its mode is right; one that a killed server
// left is replaced (the registry's lock lets only one server run).
func listenAdmin(stateDir string) (*adminListener, error) {
	path := admin.SocketPath(stateDir)
	tmp, err := os.MkdirTemp(stateDir, ".s") // 0700; short, because socket paths have at most 107 bytes
	if err != nil {
		return nil, fmt.Errorf("admin socket %s: %w", path, err)
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	birth := filepath.Join(tmp, "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: birth, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("admin socket %s: %w; a long path of the state folder may be the cause (at most about 80 bytes)", path, err)
	}
	l.SetUnlinkOnClose(false)
	if err = os.Chmod(birth, statefile.FileMode); err == nil {
		err = os.Rename(birth, path)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("admin socket %s: %w", path, err), l.Close())
	}
	return &adminListener{Listener: l, path: path}, nil
}

// remove takes the socket away and closes it.
func (l *adminListener) remove() error {
	err := l.Close()
	if errors.Is(err, net.ErrClosed) {
		err = nil
	}
	return errors.Join(err, os.Remove(l.path))
}

func (s *Server) adminHandler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("POST /token", s.answer("admin-token", s.doToken))
	mux.Handle("POST /revoke", s.answer("admin-revoke", s.doRevoke))
	mux.Handle("GET /status", s.answer("admin-status", s.doStatus))
	return mux
}

func (s *Server) doToken(r *http.Request) (any, error) {
	var req admin.TokenRequest
	if err := readBody(r, &req); err != nil {
		return nil, err
	}
	peer := ident.Peer{Role: req.Role, Name: req.Name}
	secret, err := s.Registry.IssueToken(registry.TokenSpec{Peer: peer, Instance: req.Instance, TTL: req.TTL})
	if err != nil {
		return nil, refused(err)
	}
	s.Logger.Info("token issued", "peer", peer.String(), "instance", req.Instance, "life", req.TTL)
	return admin.TokenResponse{Token: s.CA.Fingerprint() + "." + secret}, nil
}

func (s *Server) doRevoke(r *http.Request) (any, error) {
	var req admin.RevokeRequest
	if err := readBody(r, &req); err != nil {
		return nil, err
	}
	peer := ident.Peer{Role: req.Role, Name: req.Name}
	if err := s.Registry.Revoke(peer); err != nil {
		return nil, refused(err)
	}
	s.Logger.Warn("revoked", "peer", peer.String())
	return struct{}{}, nil
}

func (s *Server) doStatus(*http.Request) (any, error) {
	peers, err := s.Registry.Peers()
	if err != nil {
		return nil, internal(err)
	}
	return admin.Status{Name: s.Name, Fingerprint: s.CA.Fingerprint(), Time: time.Now(), Peers: peers}, nil
}

// refused tells the operator, who may know everything, the cause.
func refused(err error) error {
	switch {
	case errors.Is(err, registry.ErrInvalid):
		return fail(http.StatusBadRequest, controlapi.CodeBadRequest, "%v", err)
	case errors.Is(err, registry.ErrRevoked):
		return fail(http.StatusConflict, controlapi.CodeRevoked, "%v", err)
	case errors.Is(err, registry.ErrUnknown):
		return fail(http.StatusNotFound, controlapi.CodeUnknown, "%v; `status` lists what is enrolled", err)
	}
	return internal(err)
}
