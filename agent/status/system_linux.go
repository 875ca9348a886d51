package status

// DefaultSocket is where the agent serves its status.
func DefaultSocket() string { return "/run/drover-agent/status.sock" }
