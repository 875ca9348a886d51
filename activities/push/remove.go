package push

import (
	"context"
	"errors"
	"io/fs"

	"drover/workflows/api"
)

// remove stops the agent and takes program and unit away. Configuration, identity and what
// is tracked stay, as after the removal of a package.
func (g *guest) remove(ctx context.Context) error {
	for _, file := range packaged {
		if _, err := g.files.Stat(file); err == nil {
			return failed(api.CodeInvalid, nil, "remove the agent from %s: it was installed by the guest's package manager (%s): remove it there", g.in.Name, file)
		}
	}
	_, running := g.files.Stat("/run/systemd/system")
	_, there := g.files.Stat(unit)
	if running == nil && there == nil {
		if _, err := g.run(ctx, "systemctl disable --now "+service); err != nil {
			return failed(api.CodePush, err, "remove the agent from %s", g.in.Name)
		}
		g.did("stop", "%s is stopped and disabled", service)
	}
	for _, file := range []string{unit, program, tokenFile} {
		switch err := g.files.Remove(file); {
		case err == nil:
			g.did("remove", "%s", file)
		case !errors.Is(err, fs.ErrNotExist):
			return failed(api.CodePush, err, "remove the agent from %s: %s", g.in.Name, file)
		}
	}
	if running == nil {
		if _, err := g.run(ctx, "systemctl daemon-reload"); err != nil {
			return failed(api.CodePush, err, "remove the agent from %s", g.in.Name)
		}
	}
	g.did("keep", "%s and %s", configDir, stateDir)
	return nil
}
