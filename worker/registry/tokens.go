package registry

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"time"

	bolt "go.etcd.io/bbolt"

	"drover/datapath/ident"
)

// Lives and bounds of tokens.
const (
	DefaultTTL = 30 * time.Minute
	MinTTL     = 15 * time.Minute
	MaxTTL     = 60 * time.Minute

	secretSize = 32
	maxTokens  = 10_000 // kept at once
	// MaxWrong is how often a token may be shown from a machine it is not bound to.
	MaxWrong   = 5
	keepTokens = 24 * time.Hour // after the end, so that the log can say what a token was
)

// ErrToken is wrapped by every refusal of a token; the others say which. The one
// who shows the token is told ErrToken only.
var (
	ErrToken         = errors.New("enrolment token refused")
	ErrTokenUnknown  = fmt.Errorf("%w: unknown", ErrToken)
	ErrTokenSpent    = fmt.Errorf("%w: already used", ErrToken)
	ErrTokenExpired  = fmt.Errorf("%w: expired", ErrToken)
	ErrTokenLocked   = fmt.Errorf("%w: locked, it was shown too often from other machines", ErrToken)
	ErrTokenInstance = fmt.Errorf("%w: bound to another machine", ErrToken)
)

// TokenSpec says what a token is for.
type TokenSpec struct {
	Peer ident.Peer
	// Instance is the hardware uuid of the only machine that may use the token;
	// needed for agents, empty for servers.
	Instance string
	TTL      time.Duration // 0 is DefaultTTL; MinTTL to MaxTTL
}

type token struct {
	Role     ident.Role `json:"role"`
	Name     string     `json:"name"`
	Instance string     `json:"instance,omitempty"`
	Expires  time.Time  `json:"expires"`
	Spent    time.Time  `json:"spent,omitzero"`
	SpentBy  string     `json:"spentBy,omitempty"`
	Wrong    int        `json:"wrong,omitempty"` // how often it was shown from other machines
}

// IssueToken makes a token and gives its secret, of which only the SHA-256 is
// kept. A revoked peer gets no token before its last certificate has expired:
// certificates carry the peer's name, so a new one would let the old one in too.
func (r *Registry) IssueToken(spec TokenSpec) (string, error) {
	if spec.TTL == 0 {
		spec.TTL = DefaultTTL
	}
	if err := CheckPeer(spec.Peer); err != nil {
		return "", fmt.Errorf("issue a token: %w", err)
	}
	if spec.TTL < MinTTL || spec.TTL > MaxTTL {
		return "", fmt.Errorf("issue a token for %s: %w life %v: want %v to %v", spec.Peer, ErrInvalid, spec.TTL, MinTTL, MaxTTL)
	}
	if spec.Peer.Role == ident.RoleAgent && spec.Instance == "" {
		return "", fmt.Errorf("issue a token for %s: %w: an agent's token is bound to a machine; give its hardware uuid", spec.Peer, ErrInvalid)
	}
	raw := make([]byte, secretSize)
	if _, err := rand.Read(raw); err != nil {
		return "", fmt.Errorf("issue a token: %w", err)
	}
	secret := base64.RawURLEncoding.EncodeToString(raw)
	now := r.now()
	err := r.db.Update(func(tx *bolt.Tx) error {
		var rev revocation
		if found, err := get(tx, bucketRevoked, peerKey(spec.Peer), &rev); err != nil {
			return err
		} else if found && now.Before(rev.Until) {
			return fmt.Errorf("%w at %s; a new token can be issued from %s on, when its certificates have expired",
				ErrRevoked, rev.At.Format(time.RFC3339), rev.Until.Format(time.RFC3339))
		}
		if err := purgeTokens(tx, now); err != nil {
			return err
		}
		return put(tx, bucketTokens, tokenKey(secret), token{Role: spec.Peer.Role, Name: spec.Peer.Name,
			Instance: canonical(spec.Instance), Expires: now.Add(spec.TTL)})
	})
	if err != nil {
		return "", fmt.Errorf("issue a token for %s: %w", spec.Peer, err)
	}
	return secret, nil
}

// SpendToken uses a token up and gives the peer it is for. Refusals wrap
// [ErrToken]; one for the wrong instance leaves the token usable, a few times. may, if it is
// given, is asked about the peer of a token that is right; its error leaves the token unused.
func (r *Registry) SpendToken(secret, instance string, may func(ident.Peer) error) (ident.Peer, error) {
	var t token
	var peer ident.Peer
	var wrong error // a refusal that is counted
	now := r.now()
	r.mu.Lock() // file and memory must agree on who is revoked
	defer r.mu.Unlock()
	err := r.db.Update(func(tx *bolt.Tx) error {
		found, err := get(tx, bucketTokens, tokenKey(secret), &t)
		peer = ident.Peer{Role: t.Role, Name: t.Name}
		switch {
		case err != nil:
			return err
		case !found:
			return ErrTokenUnknown
		case !t.Spent.IsZero():
			return fmt.Errorf("%w (for %s, by instance %q, at %s)", ErrTokenSpent, peer, t.SpentBy, t.Spent.Format(time.RFC3339))
		case !now.Before(t.Expires):
			return fmt.Errorf("%w (for %s, at %s)", ErrTokenExpired, peer, t.Expires.Format(time.RFC3339))
		case t.Wrong >= MaxWrong:
			return fmt.Errorf("%w (for %s)", ErrTokenLocked, peer)
		case t.Instance != "" && t.Instance != canonical(instance):
			t.Wrong++
			wrong = fmt.Errorf("%w (for %s on instance %q, shown by %q)", ErrTokenInstance, peer, t.Instance, clip(instance, maxInstance))
			return put(tx, bucketTokens, tokenKey(secret), t)
		}
		if may != nil {
			if err := may(peer); err != nil {
				return err
			}
		}
		t.Spent, t.SpentBy = now, clip(canonical(instance), maxInstance)
		if err := put(tx, bucketTokens, tokenKey(secret), t); err != nil {
			return err
		}
		return tx.Bucket(bucketRevoked).Delete(peerKey(peer))
	})
	if err = errors.Join(err, wrong); err != nil {
		return ident.Peer{}, err
	}
	delete(r.revoked, peer)
	return peer, nil
}

// purgeTokens forgets old tokens and holds the number of the others to its bound.
func purgeTokens(tx *bolt.Tx, now time.Time) error {
	kept := 0
	err := deleteWhere(tx, bucketTokens, func(_, v []byte) (bool, error) {
		var t token
		if err := decode(bucketTokens, v, &t); err != nil {
			return false, err
		}
		if now.After(t.Expires.Add(keepTokens)) {
			return true, nil
		}
		kept++
		return false, nil
	})
	if err == nil && kept >= maxTokens {
		err = fmt.Errorf("%d tokens were issued in the last day; wait until some have expired", kept)
	}
	return err
}

// dropTokens forgets the tokens of a peer that were not used.
func dropTokens(tx *bolt.Tx, p ident.Peer) (dropped bool, err error) {
	err = deleteWhere(tx, bucketTokens, func(_, v []byte) (bool, error) {
		var t token
		if err := decode(bucketTokens, v, &t); err != nil {
			return false, err
		}
		hit := t.Role == p.Role && t.Name == p.Name && t.Spent.IsZero()
		dropped = dropped || hit
		return hit, nil
	})
	return dropped, err
}

// deleteWhere deletes the entries that match says to.
func deleteWhere(tx *bolt.Tx, bucket []byte, match func(k, v []byte) (bool, error)) error {
	var keys [][]byte
	err := tx.Bucket(bucket).ForEach(func(k, v []byte) error {
		hit, err := match(k, v)
		if hit {
			keys = append(keys, append([]byte(nil), k...))
		}
		return err
	})
	for _, k := range keys {
		err = errors.Join(err, tx.Bucket(bucket).Delete(k))
	}
	return err
}

func tokenKey(secret string) []byte {
	sum := sha256.Sum256([]byte(secret))
	return sum[:]
}

// canonical is the form in which hardware uuids are compared: firmware prints them
// in either case.
func canonical(instance string) string { return strings.ToLower(strings.TrimSpace(instance)) }

// clip bounds a text that came from outside.
func clip(s string, n int) string { return s[:min(len(s), n)] }
