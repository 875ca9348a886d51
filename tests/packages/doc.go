// Package packages installs, upgrades, removes and purges the agent's packages in a copy
// of this system that runs a systemd of its own, and looks at the agent's unit from
// inside its sandbox. The copy lies in memory; nothing of this system changes.
package packages
