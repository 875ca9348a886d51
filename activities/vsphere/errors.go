package vsphere

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"

	"github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
	"go.temporal.io/sdk/temporal"

	"drover/activities/activityerr"
	"drover/workflows/api"
)

// failed makes the error of a call. What vCenter itself says decides the code where the
// caller has none of its own.
func failed(code string, cause error, format string, args ...any) error {
	text := fmt.Sprintf(format, args...)
	if cause != nil {
		text += ": " + activityerr.Text(cause)
	}
	if code == api.CodeVCenter {
		var more string
		code, more = classify(cause)
		text += more
	}
	return activityerr.Wrap(code, cause, "%s", text)
}

// isNotFound reports whether what was looked for is not there.
func isNotFound(err error) bool {
	var app *temporal.ApplicationError
	return errors.As(err, &app) && app.Type() == api.CodeNotFound
}

// messageOf is the text of an error of ours.
func messageOf(err error) string {
	var app *temporal.ApplicationError
	if errors.As(err, &app) {
		return app.Message()
	}
	return err.Error()
}

// classify tells a vCenter that does not answer, and one that does not let us, from one
// that answers no.
func classify(cause error) (code, more string) {
	var denied *types.NoPermission
	var app *temporal.ApplicationError
	switch {
	case cause == nil:
	case errors.As(cause, &app):
		return app.Type(), ""
	case fault.Is(cause, &types.InvalidLogin{}):
		return api.CodeVCenterDenied, "; check user and password in the credentials file"
	case fault.Is(cause, &types.ManagedObjectNotFound{}):
		return api.CodeNotFound, "; it was deleted or unregistered meanwhile"
	case isDenied(cause, &denied):
		return api.CodeVCenterDenied, "; " + missing(denied) + "; see drover vcenter check"
	case away(cause):
		return api.CodeVCenterAway, ""
	}
	return api.CodeVCenter, ""
}

func isDenied(cause error, into **types.NoPermission) bool {
	_, ok := fault.As(cause, into)
	if ok {
		return true
	}
	var value types.NoPermission // a SOAP fault carries the value
	if soap.IsSoapFault(cause) {
		value, ok = soap.ToSoapFault(cause).VimFault().(types.NoPermission)
		*into = &value
	}
	return ok
}

// missing names the privilege as vCenter does; newer ones fill the list, older the fields.
func missing(f *types.NoPermission) string {
	if f == nil {
		return "a privilege is missing"
	}
	var out []string
	for _, m := range f.MissingPrivileges {
		out = append(out, strings.Join(m.PrivilegeIds, ", ")+" on "+m.Entity.String())
	}
	if len(out) == 0 && f.PrivilegeId != "" {
		object := "an object"
		if f.Object != nil {
			object = f.Object.String()
		}
		out = append(out, f.PrivilegeId+" on "+object)
	}
	if len(out) == 0 {
		return "a privilege is missing"
	}
	return "the user lacks " + strings.Join(out, "; ")
}

// away reports whether vCenter could not be reached, or broke off.
func away(err error) bool {
	var cert *tls.CertificateVerificationError
	if errors.As(err, &cert) || errors.Is(err, errPin) {
		return false
	}
	var u *url.Error
	var n net.Error
	return errors.As(err, &u) || errors.As(err, &n) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}
