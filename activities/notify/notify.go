// Package notify tells people about a machine's problems: in the log always, and
// by webhook when the configuration server names one.
package notify

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"time"

	"go.temporal.io/sdk/temporal"

	"drover/workflows/api"
)

const timeout = 15 * time.Second

// Activities send notifications.
type Activities struct {
	webhook string
	client  *http.Client
	logger  *slog.Logger
}

// New makes the activities. webhook may be empty.
func New(webhook string, logger *slog.Logger) (*Activities, error) {
	if logger == nil {
		return nil, errors.New("notify: a logger is needed")
	}
	if webhook != "" {
		if u, err := url.Parse(webhook); err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" {
			return nil, errors.New("notify: the webhook is not an http or https URL")
		}
	}
	return &Activities{webhook: webhook, client: &http.Client{Timeout: timeout}, logger: logger}, nil
}

// Activities gives them by the names of the workflow API.
func (a *Activities) Activities() map[string]any {
	return map[string]any{api.ActNotify: a.Send}
}

// Send sends one notification.
func (a *Activities) Send(ctx context.Context, n api.Notification) error {
	a.logger.Warn("notification", "subject", n.Subject, "machine", n.Machine, "code", n.Problem.Code,
		"cause", n.Problem.Cause, "action", n.Problem.Action, "health", n.Problem.Health)
	if a.webhook == "" {
		return nil
	}
	body, err := json.Marshal(n)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, a.webhook, bytes.NewReader(body))
	if err != nil {
		return temporal.NewNonRetryableApplicationError("notification webhook: not a URL", api.CodeInvalid, nil)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := a.client.Do(req)
	if err != nil {
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err // the URL may hold a secret
		}
		return temporal.NewApplicationError(fmt.Sprintf("send a notification by webhook: %s", err), api.CodeActionFailed)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode/100 != 2 {
		return temporal.NewApplicationError("send a notification by webhook: it answered "+resp.Status, api.CodeActionFailed)
	}
	return nil
}
