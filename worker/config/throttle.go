package config

import (
	"github.com/goccy/go-yaml/ast"

	"drover/datapath/throttle"
)

// Rate is a bandwidth, such as 20Mbit/s.
type Rate throttle.Rate

// UnmarshalYAML reads a rate and says where a wrong one stands.
func (r *Rate) UnmarshalYAML(node ast.Node) error { return fromText(node, (*throttle.Rate)(r)) }

// ThrottleRule is a limit, always or in a window of time.
type ThrottleRule struct {
	Limit  Rate             `yaml:"limit"`
	Window *throttle.Window `yaml:"window"`
}

// ThrottleRules gives the rules of the file.
func (c *ProcessServer) ThrottleRules() []throttle.Rule {
	out := make([]throttle.Rule, len(c.Throttle))
	for i, r := range c.Throttle {
		out[i] = throttle.Rule{Limit: throttle.Rate(r.Limit), Window: r.Window}
	}
	return out
}

func (d *document) throttle(path string, rules []throttle.Rule) {
	for _, p := range append(throttle.Check(rules), throttle.CheckZones(rules)...) {
		d.fail(path+p.Path, "%s", p.Reason)
	}
}
