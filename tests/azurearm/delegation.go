package azurearm

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/xml"
	"net/http"
	"net/url"
	"strings"
	"time"
)

const (
	signedTime  = "2006-01-02T15:04:05Z"
	longestKey  = 7 * 24 * time.Hour
	objectID    = "22222222-3333-4444-5555-666666666666" // of the identity
	delegations = "secret-of-the-account"
)

// delegationKey is a user delegation key. Its value follows from the rest, so that the
// server need not remember it.
type delegationKey struct {
	XMLName                                                        xml.Name `xml:"UserDelegationKey"`
	SignedOid, SignedTid, SignedStart, SignedExpiry, SignedService string
	SignedVersion, Value                                           string
}

func (k *delegationKey) value() string {
	text := strings.Join([]string{k.SignedOid, k.SignedTid, k.SignedStart, k.SignedExpiry, k.SignedService, k.SignedVersion}, "\n")
	return base64.StdEncoding.EncodeToString(mac([]byte(delegations), text))
}

func mac(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	_, _ = h.Write([]byte(text)) // a hash never fails
	return h.Sum(nil)
}

// delegationKey answers Get User Delegation Key.
func (s *Server) delegationKey(w http.ResponseWriter, r *http.Request, body []byte) {
	var want struct {
		XMLName       xml.Name `xml:"KeyInfo"`
		Start, Expiry string
	}
	err := xml.Unmarshal(body, &want)
	start, err1 := time.Parse(signedTime, want.Start)
	expiry, err2 := time.Parse(signedTime, want.Expiry)
	if err != nil || err1 != nil || err2 != nil || !expiry.After(start) || time.Until(expiry) > longestKey {
		blobError(w, http.StatusBadRequest, "InvalidXmlNodeValue")
		return
	}
	k := &delegationKey{
		SignedOid: objectID, SignedTid: Tenant, SignedStart: want.Start, SignedExpiry: want.Expiry, SignedService: "b", SignedVersion: r.Header.Get("x-ms-version"),
	}
	k.Value = k.value()
	out, _ := xml.Marshal(k)
	w.Header().Set("Content-Type", "application/xml")
	_, _ = w.Write(out)
}

// readable says whether an address is signed, in the name of the identity, so that it may be
// read now. It is the form of service versions from 2026-04-06 on.
func readable(address string) bool {
	u, err := url.Parse(address)
	if err != nil {
		return false
	}
	q := u.Query()
	key := &delegationKey{
		SignedOid: q.Get("skoid"), SignedTid: q.Get("sktid"), SignedStart: q.Get("skt"), SignedExpiry: q.Get("ske"), SignedService: q.Get("sks"), SignedVersion: q.Get("skv"),
	}
	// What is signed is the account, the container and the blob. Of an address without names
	// the SDK takes the account from the host all the same.
	account, _, _ := strings.Cut(u.Host, ".")
	_, path, _ := strings.Cut(strings.TrimPrefix(u.Path, "/"), "/")
	resource, snapshot := "b", q.Get("snapshot")
	if snapshot != "" {
		resource = "bs"
	}
	text := strings.Join([]string{
		q.Get("sp"), q.Get("st"), q.Get("se"), "/blob/" + account + "/" + path,
		key.SignedOid, key.SignedTid, key.SignedStart, key.SignedExpiry, key.SignedService, key.SignedVersion,
		"", "", "", "", "", // of other identities
		q.Get("sip"), q.Get("spr"), q.Get("sv"), resource, snapshot,
		"", "", "", // encryption scope, headers and parameters
		"", "", "", "", "", // headers of the answer
	}, "\n")
	secret, err := base64.StdEncoding.DecodeString(key.value())
	given, err1 := base64.StdEncoding.DecodeString(q.Get("sig"))
	within := func(from, to string) bool {
		a, err1 := time.Parse(signedTime, from)
		z, err2 := time.Parse(signedTime, to)
		return err1 == nil && err2 == nil && time.Now().After(a) && time.Now().Before(z)
	}
	return err == nil && err1 == nil && hmac.Equal(given, mac(secret, text)) && q.Get("sr") == resource && strings.Contains(q.Get("sp"), "r") &&
		q.Get("spr") == u.Scheme && q.Get("sv") >= "2026-04-06" && within(key.SignedStart, key.SignedExpiry) && within(key.SignedStart, q.Get("se"))
}
