package azstorage

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"slices"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
)

// Errors that callers act upon.
var (
	ErrNotFound = errors.New("no such blob")
	// ErrCondition: the blob is not as the request asked it to be. Nothing was done.
	ErrCondition = errors.New("the blob was changed by another")
)

// Error is an answer of the account without what it must not tell: the request's
// query, which may hold a SAS, and the answer's body.
type Error struct {
	Method, Path, Code, RequestID string
	Status                        int
	cause                         error
}

func (e *Error) Error() string {
	return fmt.Sprintf("%s %s: %d %s (request %s)", e.Method, e.Path, e.Status, e.Code, e.RequestID)
}

func (e *Error) Unwrap() error { return e.cause }

// Clean turns an error of the SDK into one that may be logged, and that is
// ErrNotFound, ErrCondition or fs.ErrPermission where it means that.
func Clean(err error) error {
	if err == nil || errors.As(err, new(*Error)) {
		return err
	}
	var re *azcore.ResponseError
	if errors.As(err, &re) {
		return fromResponse(re)
	}
	var ue *url.Error
	if errors.As(err, &ue) { // its text has the whole URL
		if u, perr := url.Parse(ue.URL); perr == nil {
			return fmt.Errorf("%s %s%s: %w", ue.Op, u.Host, u.Path, ue.Err)
		}
		return fmt.Errorf("%s: %w", ue.Op, ue.Err)
	}
	return err
}

func fromResponse(re *azcore.ResponseError) error {
	e := &Error{Status: re.StatusCode, Code: re.ErrorCode, cause: causeOf(re)}
	if r := re.RawResponse; r != nil {
		e.RequestID = r.Header.Get("x-ms-request-id")
		if r.Request != nil {
			e.Method, e.Path = r.Request.Method, r.Request.URL.Path
		}
	}
	return e
}

func causeOf(re *azcore.ResponseError) error {
	switch re.StatusCode {
	case http.StatusNotFound:
		return ErrNotFound
	case http.StatusPreconditionFailed, http.StatusNotModified:
		return ErrCondition
	case http.StatusForbidden, http.StatusUnauthorized:
		return fs.ErrPermission
	case http.StatusConflict:
		if bloberror.HasCode(re, bloberror.BlobAlreadyExists, bloberror.UnauthorizedBlobOverwrite) {
			return ErrCondition
		}
	}
	return nil
}

// HasCode reports whether the account answered with one of the codes.
func HasCode(err error, codes ...bloberror.Code) bool {
	var e *Error
	return errors.As(err, &e) && slices.Contains(codes, bloberror.Code(e.Code))
}
