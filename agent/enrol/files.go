package enrol

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"drover/datapath/durable"
	"drover/datapath/failpoint"
)

// The files of an identity, in <state>/identity. nextKeyFile exists only while a
// certificate with a new key is being kept; see save.
const (
	keyFile     = "key.pem"
	nextKeyFile = "next-key.pem"
	certFile    = "cert.pem"
	caFile      = "ca.pem"
	dirMode     = 0o700
	fileMode    = 0o600
	probeSize   = 16 << 10 // bytes: an identity, twice
)

func identityDir(stateDir string) string { return filepath.Join(stateDir, "identity") }

// prepare makes the folder and shows that it can be written to, and has room.
func prepare(dir string) error {
	if err := os.MkdirAll(dir, dirMode); err != nil {
		return fmt.Errorf("make the folder of the identity: %w", err)
	}
	f, err := os.CreateTemp(dir, ".probe-*")
	if err != nil {
		return fmt.Errorf("the folder of the identity cannot be written to: %w", err)
	}
	_, err = f.Write(make([]byte, probeSize))
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close(), os.Remove(f.Name())); err != nil {
		return fmt.Errorf("the folder of the identity cannot be written to: %w", err)
	}
	return nil
}

// save keeps the three files. Key and certificate must fit each other, but only
// one rename is atomic: so the new key first waits beside the old one, the
// certificate is replaced, and then the key. After a crash in between, loadPair
// finds the key that fits.
func save(dir string, keyPEM, certPEM, caPEM []byte) error {
	if err := os.MkdirAll(dir, dirMode); err != nil {
		return fmt.Errorf("make the folder of the identity: %w", err)
	}
	for _, f := range []struct {
		name  string
		data  []byte
		place string
	}{{nextKeyFile, keyPEM, failpoint.IdentityKey}, {caFile, caPEM, failpoint.IdentityCA}, {certFile, certPEM, failpoint.IdentityCert}} {
		if err := durable.WriteFile(filepath.Join(dir, f.name), f.data, fileMode); err != nil {
			return fmt.Errorf("keep the identity: %w", err)
		}
		failpoint.Hit(f.place)
	}
	if err := promote(dir); err != nil {
		return err
	}
	failpoint.Hit(failpoint.IdentityKept)
	return nil
}

// promote makes the waiting key the key.
func promote(dir string) error {
	if err := os.Rename(filepath.Join(dir, nextKeyFile), filepath.Join(dir, keyFile)); err != nil {
		return fmt.Errorf("keep the identity: %w", err)
	}
	return durable.SyncDir(dir)
}

// loadPair reads the certificate and the key that fits it, and ends what a crash
// in save left.
func loadPair(dir string) (keyPEM, certPEM []byte, err error) {
	certPEM, err = readFile(filepath.Join(dir, certFile))
	if err != nil {
		return nil, nil, err
	}
	next, err := readFile(filepath.Join(dir, nextKeyFile))
	if err == nil {
		if _, err = tls.X509KeyPair(certPEM, next); err == nil {
			return next, certPEM, promote(dir)
		}
	} else if !errors.Is(err, os.ErrNotExist) {
		return nil, nil, err
	}
	keyPEM, err = readFile(filepath.Join(dir, keyFile))
	return keyPEM, certPEM, err
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, maxPEM+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if len(b) > maxPEM {
		return nil, fmt.Errorf("%s is over %d bytes: it is not one of ours", path, maxPEM)
	}
	return b, nil
}
