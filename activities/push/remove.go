package push

import (
	"context"
	"errors"
	"io/fs"

	"drover/workflows/api"
)

// uninstall stops the agent and takes program and unit away. Configuration, identity and
// what is tracked stay, as after the removal of a package.
func (g *guest) uninstall(ctx context.Context) error {
	if err := g.notPackaged(ctx, "remove the agent from"); err != nil {
		return err
	}
	wrong := func(err error, what string) error {
		return failed(api.CodePush, err, "remove the agent from %s: %s", g.in.Name, what)
	}
	systemd, err := g.exists(ctx, "/run/systemd/system")
	if err != nil {
		return wrong(err, "look for systemd")
	}
	there, err := g.exists(ctx, unit)
	if err != nil {
		return wrong(err, "look for "+unit)
	}
	if systemd && there {
		if _, err := g.run(ctx, "systemctl disable --now "+service); err != nil {
			return wrong(err, "stop it")
		}
		g.did("stop", "%s is stopped and disabled", service)
	}
	for _, file := range []string{unit, program, tokenFile} {
		switch err := g.remove(ctx, file); {
		case err == nil:
			g.did("remove", "%s", file)
		case !errors.Is(err, fs.ErrNotExist):
			return wrong(err, file)
		}
	}
	if systemd {
		if _, err := g.run(ctx, "systemctl daemon-reload"); err != nil {
			return wrong(err, "tell systemd")
		}
	}
	g.did("keep", "%s and %s", configDir, stateDir)
	return nil
}
