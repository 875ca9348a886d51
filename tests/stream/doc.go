// Package stream joins the two ends of the data path, the agent's sessions and the
// server, over a line that breaks, and holds them to one thing: every recovery point
// is what the source was at one moment, and nothing acknowledged is lost.
package stream
