package temporalserver

import (
	"context"
	"log/slog"

	"go.temporal.io/server/common/log/tag"
)

// slogAdapter gives the server's log to a slog.Logger, from warnings up: below
// that the server talks of its own insides only.
type slogAdapter struct{ logger *slog.Logger }

func (a slogAdapter) Debug(string, ...tag.Tag) {}
func (a slogAdapter) Info(string, ...tag.Tag)  {}

func (a slogAdapter) Warn(msg string, tags ...tag.Tag)   { a.log(slog.LevelWarn, msg, tags) }
func (a slogAdapter) Error(msg string, tags ...tag.Tag)  { a.log(slog.LevelError, msg, tags) }
func (a slogAdapter) DPanic(msg string, tags ...tag.Tag) { a.log(slog.LevelError, msg, tags) }

func (a slogAdapter) Panic(msg string, tags ...tag.Tag) {
	a.log(slog.LevelError, msg, tags)
	panic("temporal: " + msg)
}

func (a slogAdapter) Fatal(msg string, tags ...tag.Tag) {
	a.log(slog.LevelError, msg, tags)
	panic("temporal: " + msg)
}

func (a slogAdapter) log(level slog.Level, msg string, tags []tag.Tag) {
	attrs := make([]slog.Attr, 0, len(tags)+1)
	attrs = append(attrs, slog.String("component", "temporal-server"))
	for _, t := range tags {
		attrs = append(attrs, slog.Any(t.Key(), t.Value()))
	}
	a.logger.LogAttrs(context.Background(), level, msg, attrs...)
}
