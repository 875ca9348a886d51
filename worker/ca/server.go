package ca

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"sync"
	"time"

	"drover/datapath/ident"
)

// Server is the configuration server's own certificate. Its key lives in memory
// only; the certificate is replaced, with its key, at two thirds of its life.
// It is safe for concurrent use.
type Server struct {
	ca    *CA
	peer  ident.Peer
	hosts []string

	mu      sync.Mutex
	current *tls.Certificate
	renewAt time.Time
}

// Server issues a certificate for the peer that is also valid for the hosts (DNS
// names and IP addresses), and keeps it fresh.
func (c *CA) Server(peer ident.Peer, hosts []string) (*Server, error) {
	s := &Server{ca: c, peer: peer, hosts: hosts}
	if _, err := s.GetCertificate(nil); err != nil {
		return nil, err
	}
	return s, nil
}

// GetCertificate gives the certificate followed by the CA's, by whose fingerprint
// those who enrol know the server. It fits tls.Config.
func (s *Server) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.ca.now()
	if s.current != nil && now.Before(s.renewAt) {
		return s.current, nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate the server's key: %w", err)
	}
	issued, err := s.ca.issue(&key.PublicKey, s.peer, s.hosts)
	if err != nil {
		return nil, err
	}
	s.current = &tls.Certificate{Certificate: [][]byte{issued.DER, s.ca.cert.Raw}, PrivateKey: key}
	s.renewAt = now.Add(issued.Expires.Sub(now) * 2 / 3)
	return s.current, nil
}
