package enrol

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"

	"drover/agent/controlapi"
)

// maxTokenFile bounds the file that a token is read from, in bytes.
const maxTokenFile = 4 << 10

// ReadToken reads a token from the file that an operator put it into.
func ReadToken(file string) (string, error) {
	f, err := os.Open(file) //nolint:gosec // the operator names it
	if err != nil {
		return "", err
	}
	b, err := io.ReadAll(io.LimitReader(f, maxTokenFile))
	return strings.TrimSpace(string(b)), errors.Join(err, f.Close())
}

// Transient reports whether the configuration server could not be reached or was
// overloaded, as opposed to being the wrong one or refusing: then enrolling may succeed
// later.
func Transient(err error) bool {
	var refused *controlapi.Error
	if errors.As(err, &refused) {
		return refused.Code == controlapi.CodeTooMany || refused.Code == controlapi.CodeServer
	}
	var network *net.OpError
	return errors.As(err, &network) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}
