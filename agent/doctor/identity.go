package doctor

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"drover/agent/controlapi"
	"drover/agent/enrol"
)

// Free space of the state directory's file system, in bytes.
const (
	littleRoom = 64 << 20
	noRoom     = 1 << 20
	// soon is when a certificate should have been renewed long ago.
	renewalSlack = time.Hour
)

const reenrol = "issue a token with `drover-config-server token --role agent` and put it into the token file; the agent takes it up by itself"

func (p *patient) configuration() controlapi.Finding {
	const check = "configuration"
	if info, err := os.Stat(p.File); err == nil && info.Mode().Perm()&0o022 != 0 {
		return fail(check, "chmod go-w "+p.File, "%s can be written to by others (%s): whoever does can run programs as root", p.File, info.Mode().Perm())
	}
	return ok(check, "%s is good", p.File)
}

func (p *patient) certificate() []controlapi.Finding {
	const check = "identity"
	id, err := enrol.Load(p.Config.State)
	p.identity = id
	switch {
	case errors.Is(err, enrol.ErrNotEnrolled):
		p.identity = nil
		if _, err := os.Stat(p.Config.TokenFile); err == nil {
			return []controlapi.Finding{warn(check, "start the agent: it enrols by itself", "not enrolled yet; there is a token in %s", p.Config.TokenFile)}
		}
		return []controlapi.Finding{fail(check, reenrol, "not enrolled, and no token in %s", p.Config.TokenFile)}
	case errors.Is(err, enrol.ErrExpired):
		p.identity = nil
		return []controlapi.Finding{fail(check, reenrol, "the certificate of %s expired at %s", id.Peer, id.Expires().UTC().Format(time.RFC3339))}
	case err != nil:
		p.identity = nil
		return []controlapi.Finding{fail(check, "restore the state directory, or remove its folder identity and enrol again with a new token", "%v", err)}
	}
	out := []controlapi.Finding{p.privateKeys()}
	if late := p.Now().Sub(id.RenewAt()); late > renewalSlack {
		return append(out, warn(check, "see whether the configuration server is reached; when it has expired a new token is needed",
			"the certificate of %s should have been renewed %s ago; it expires at %s", id.Peer, late.Round(time.Minute), id.Expires().UTC().Format(time.RFC3339)))
	}
	return append(out, ok(check, "%s, certificate good until %s", id.Peer, id.Expires().UTC().Format(time.RFC3339)))
}

// privateKeys holds the keys to be root's alone.
func (p *patient) privateKeys() controlapi.Finding {
	const check = "keys"
	var open []string
	err := filepath.WalkDir(filepath.Join(p.Config.State, "identity"), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if strings.Contains(d.Name(), "key") && info.Mode().Perm()&0o077 != 0 {
			open = append(open, path)
		}
		return nil
	})
	if err != nil {
		return warn(check, "", "%v", err)
	}
	if len(open) > 0 {
		return fail(check, "chmod 600 "+strings.Join(open, " ")+"; if somebody may have read it, revoke the agent and enrol anew", "others can read %s", strings.Join(open, ", "))
	}
	return ok(check, "root alone can read them")
}
