package azure

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"

	"drover/activities/target"
	"drover/workflows/api"
)

// Azure's codes, by what follows from them.
var (
	deniedCodes   = []string{"AuthorizationFailed", "LinkedAuthorizationFailed", "AuthorizationPermissionMismatch", "RequestDisallowedByPolicy"}
	quotaCodes    = []string{"QuotaExceeded", "ResourceQuotaExceeded", "SubscriptionQuotaExceeded"}
	capacityCodes = []string{
		"AllocationFailed", "ZonalAllocationFailed", "OverconstrainedAllocationRequest", "OverconstrainedZonalAllocationRequest", "SkuNotAvailable",
	}
	addressCodes = []string{
		"PrivateIPAddressInUse", "PrivateIPAddressNotInSubnet", "PrivateIPAddressInReservedRange", "PrivateIPAddressNotInAnySubnet",
	}
	// sureCodes are refusals that the same request always gets.
	sureCodes = []string{
		"InvalidParameter", "InvalidResourceReference", "InvalidRequestContent", "BadRequest", "PropertyChangeNotAllowed", "InvalidVhd", "SubnetIsFull",
	}
)

const maxMessage = 512 // of Azure's words that are kept

// signed are the queries of addresses that give access, and tokens.
var signed = regexp.MustCompile(`\?[^\s"'<>]*|(?i)bearer\s+\S+`)

// scrub takes out of a text what may give access.
func scrub(text string) string {
	text = signed.ReplaceAllString(strings.Join(strings.Fields(text), " "), "?(left out)")
	if len(text) > maxMessage {
		text = text[:maxMessage] + "..."
	}
	return text
}

func notFound(err error) bool {
	var r *azcore.ResponseError
	return errors.As(err, &r) && r.StatusCode == http.StatusNotFound
}

// fault turns an error of the SDK into one of ours, with Azure's own words. What the
// SDK prints never leaves: it has addresses with signatures.
func fault(err error, format string, args ...any) error {
	var ours *target.Fault
	var response *azcore.ResponseError
	var identity *azidentity.AuthenticationFailedError
	doing := fmt.Sprintf(format, args...)
	switch {
	case err == nil:
		return nil
	case errors.As(err, &ours):
		return ours
	case errors.Is(err, context.Canceled):
		return fmt.Errorf("%s: %w", doing, context.Canceled) // without the request, which may be signed
	case errors.As(err, &response):
		return respond(response, doing)
	case errors.As(err, &identity):
		return &target.Fault{Code: api.CodeTargetDenied, Text: doing + ": Azure gave no token for Drover's identity: " + firstLine(identity.Error())}
	}
	return &target.Fault{Code: api.CodeTarget, Text: doing + ": " + scrub(err.Error())}
}

// firstLine: an error of azidentity goes on with the request.
func firstLine(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	return scrub(s)
}

func respond(r *azcore.ResponseError, doing string) *target.Fault {
	f := &target.Fault{Code: api.CodeTarget, Text: fmt.Sprintf("%s: Azure answered %s: %s", doing, r.ErrorCode, words(r))}
	if r.ErrorCode == "" {
		f.Text = fmt.Sprintf("%s: Azure answered with status %d: %s", doing, r.StatusCode, words(r))
	}
	in := func(codes []string) bool { return slices.Contains(codes, r.ErrorCode) }
	switch {
	case in(deniedCodes), r.StatusCode == http.StatusUnauthorized, r.StatusCode == http.StatusForbidden:
		f.Code = api.CodeTargetDenied
		f.Text += "; give Drover's identity the role of docs/azure.md"
	case in(quotaCodes), r.ErrorCode == "OperationNotAllowed" && strings.Contains(strings.ToLower(f.Text), "quota"):
		f.Code = api.CodeQuota
		f.Text += "; have the quota raised or choose another size"
	case in(capacityCodes):
		f.Code = api.CodeNoCapacity
	case in(addressCodes):
		f.Code = api.CodeAddressTaken
	case r.StatusCode == http.StatusNotFound:
		f.Code, f.Kind = api.CodeNotFound, target.ErrNotFound
	case in(sureCodes):
		f.Kind = target.ErrRefused
	}
	return f
}

// words gives the message of an answer.
func words(r *azcore.ResponseError) string {
	var body struct {
		Error struct {
			Message string `json:"message"`
		} `json:"error"`
	}
	if r.RawResponse == nil {
		return "(no message)"
	}
	b, err := runtime.Payload(r.RawResponse)
	if err != nil || json.Unmarshal(b, &body) != nil || body.Error.Message == "" {
		return "(no message)"
	}
	return scrub(body.Error.Message)
}

// hasCode says whether an error has one of our codes.
func hasCode(err error, code string) bool {
	var f *target.Fault
	return errors.As(err, &f) && f.Code == code
}
