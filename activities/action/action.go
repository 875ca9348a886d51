// Package action runs what a recovery plan has between its machines: scripts of
// the configuration server's script directory, without a shell, webhooks of its
// allow list, and runbooks of the target's automation account.
package action

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/temporal"

	"drover/workflows/api"
)

// Bounds of an action.
const (
	maxOutput      = 4 << 10 // bytes of output that are kept: its end
	beatEvery      = 5 * time.Second
	killAfter      = 5 * time.Second // from SIGTERM to SIGKILL
	minSecret      = 16              // bytes of a webhooks' secret
	maxSecret      = 4 << 10
	webhookTimeout = 30 * time.Second
)

// Config of the actions.
type Config struct {
	// Scripts is the directory of the scripts. Only regular files directly in it
	// are run.
	Scripts string
	// ScriptUser runs the scripts; empty: we do.
	ScriptUser string
	// Webhooks are the URL prefixes that plans may post to.
	Webhooks []string
	// WebhookSecret is the file of the secret that webhooks are signed with; empty: they
	// are not. It is read for each, so that it can be changed.
	WebhookSecret string
	// Runbooks runs runbooks; nil where the target has none.
	Runbooks Runbooks
	// Client posts to webhooks; nil takes one that follows no redirects.
	Client *http.Client
	Logger *slog.Logger
}

// Runbooks are those of a target's automation account. Errors are for people.
type Runbooks interface {
	// CheckRunbook says why one cannot be run; it runs nothing.
	CheckRunbook(ctx context.Context, name string) error
	// Runbook runs one to its end; a later try finds what an earlier one started.
	Runbook(ctx context.Context, in api.RunbookInput) (api.ActionOutput, error)
}

// Activities are the actions.
type Activities struct {
	config Config
	as     *syscall.Credential // of scripts
}

// New makes the activities.
func New(c Config) (*Activities, error) {
	if c.Logger == nil {
		return nil, errors.New("action: a logger is needed")
	}
	for _, prefix := range c.Webhooks {
		if u, err := url.Parse(prefix); err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" {
			return nil, fmt.Errorf("webhooks allow %q: want a URL such as https://hooks.example/drover/", prefix)
		}
	}
	if c.Client == nil {
		c.Client = &http.Client{
			Timeout:       webhookTimeout,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}
	}
	as, err := lowUser(c.ScriptUser)
	if err != nil {
		return nil, err
	}
	if as == nil && c.Scripts != "" && os.Geteuid() == 0 {
		c.Logger.Warn("the plans' scripts run as root: name a user for them as scriptUser")
	}
	if c.WebhookSecret != "" {
		if _, err := secret(c.WebhookSecret); err != nil {
			return nil, err
		}
	}
	return &Activities{config: c, as: as}, nil
}

// Activities gives them by the names of the workflow API.
func (a *Activities) Activities() map[string]any {
	return map[string]any{api.ActCheckActions: a.Check, api.ActScript: a.Script, api.ActWebhook: a.Webhook, api.ActRunbook: a.Runbook}
}

func invalid(format string, args ...any) error {
	return temporal.NewNonRetryableApplicationError(fmt.Sprintf(format, args...), api.CodeInvalid, nil)
}

func failedAction(cause error, format string, args ...any) error {
	return temporal.NewApplicationErrorWithCause(fmt.Sprintf(format, args...), api.CodeActionFailed, cause)
}

// Check says which actions could not be run here, and why. It runs nothing.
func (a *Activities) Check(ctx context.Context, actions []api.LocatedAction) ([]api.FieldError, error) {
	var wrong []api.FieldError
	for _, l := range actions {
		switch {
		case l.Action.Script != nil:
			if _, err := a.script(*l.Action.Script); err != nil {
				wrong = append(wrong, api.FieldError{Path: l.Path + ".script.file", Reason: reason(err)})
			}
		case l.Action.Runbook != nil:
			if why := a.whyNot(ctx, l.Action.Runbook.Name); why != "" {
				wrong = append(wrong, api.FieldError{Path: l.Path + ".runbook.name", Reason: why})
			}
		case l.Action.Webhook != nil:
			if !a.allowed(l.Action.Webhook.URL) {
				wrong = append(wrong, api.FieldError{Path: l.Path + ".webhook.url", Reason: "the configuration server's webhooks.allow does not list it"})
			}
		}
	}
	return wrong, nil
}

// reason is an application error's own message.
func reason(err error) string {
	var app *temporal.ApplicationError
	if errors.As(err, &app) {
		return app.Message()
	}
	return err.Error()
}

const noRunbooks = "the configuration server's target has no automation account"

// whyNot says why a runbook cannot be run; "" when it can.
func (a *Activities) whyNot(ctx context.Context, name string) string {
	if a.config.Runbooks == nil {
		return noRunbooks
	}
	if err := a.config.Runbooks.CheckRunbook(ctx, name); err != nil {
		return err.Error()
	}
	return ""
}

// Runbook runs a runbook to its end. It fails with the end of the output when the
// job did not complete. Cancelled or out of time, the job is stopped.
func (a *Activities) Runbook(ctx context.Context, in api.RunbookInput) (api.ActionOutput, error) {
	if a.config.Runbooks == nil {
		return api.ActionOutput{}, invalid("runbook %s: %s", in.Runbook.Name, noRunbooks)
	}
	ctx, stop := beat(ctx)
	defer stop()
	out, err := a.config.Runbooks.Runbook(ctx, in)
	if err != nil {
		return out, failedAction(nil, "%s", err)
	}
	a.config.Logger.Info("runbook ran", "runbook", in.Runbook.Name, "plan", in.Plan, "step", in.Step, "took", out.Took.String())
	return out, nil
}

// Webhook posts JSON about the step. Anything but a 2xx answer is a failure; 4xx
// is not tried again.
func (a *Activities) Webhook(ctx context.Context, in api.WebhookInput) (api.ActionOutput, error) {
	if !a.allowed(in.Webhook.URL) {
		return api.ActionOutput{}, invalid("webhook %s is not allowed: add its beginning to webhooks.allow of the configuration server", redact(in.Webhook.URL))
	}
	body, err := json.Marshal(map[string]any{"plan": in.Plan, "run": in.Run, "step": in.Step, "kind": in.Kind})
	if err != nil {
		return api.ActionOutput{}, err
	}
	ctx, stop := beat(ctx)
	defer stop()
	begun := time.Now()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, in.Webhook.URL, bytes.NewReader(body))
	if err != nil {
		return api.ActionOutput{}, invalid("webhook %s: not a URL", redact(in.Webhook.URL))
	}
	req.Header.Set("Content-Type", "application/json")
	// A retry must not be taken for another step.
	req.Header.Set("Idempotency-Key", in.Run+"/"+in.Step)
	if err := a.sign(req, body, begun); err != nil {
		return api.ActionOutput{}, err
	}
	resp, err := a.config.Client.Do(req)
	if err != nil {
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err // without the URL, which may hold a secret
		}
		return api.ActionOutput{}, failedAction(nil, "webhook %s: %s", redact(in.Webhook.URL), err)
	}
	defer func() { _ = resp.Body.Close() }()
	text, _ := io.ReadAll(io.LimitReader(resp.Body, maxOutput))
	out := api.ActionOutput{Exit: resp.StatusCode, Output: string(text), Took: api.Duration(time.Since(begun))}
	switch {
	case resp.StatusCode/100 == 2:
		return out, nil
	case resp.StatusCode/100 == 4 && resp.StatusCode != http.StatusTooManyRequests:
		return out, temporal.NewNonRetryableApplicationError(
			fmt.Sprintf("webhook %s answered %s", redact(in.Webhook.URL), resp.Status), api.CodeActionFailed, nil)
	}
	return out, failedAction(nil, "webhook %s answered %s", redact(in.Webhook.URL), resp.Status)
}

// SignatureHeader of a webhook is t=<Unix time>,v1=<hex of HMAC-SHA256 of "<t>.<body>">.
const SignatureHeader = "Drover-Signature"

// sign lets the receiver know that it is we who ask, and when.
func (a *Activities) sign(req *http.Request, body []byte, now time.Time) error {
	if a.config.WebhookSecret == "" {
		return nil
	}
	key, err := secret(a.config.WebhookSecret)
	if err != nil {
		return invalid("%s", err)
	}
	t := strconv.FormatInt(now.Unix(), 10)
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(t + "."))
	mac.Write(body)
	req.Header.Set(SignatureHeader, "t="+t+",v1="+hex.EncodeToString(mac.Sum(nil)))
	return nil
}

// secret reads a secret that nobody else can.
func secret(file string) ([]byte, error) {
	info, err := os.Stat(file)
	if err != nil {
		return nil, fmt.Errorf("webhooks' secret: %w", err)
	}
	if info.Mode()&0o077 != 0 || info.Size() > maxSecret {
		return nil, fmt.Errorf("webhooks' secret %s (%s, %d bytes): want a file that others cannot read (0600), of at most %d bytes", file, info.Mode(), info.Size(), maxSecret)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("webhooks' secret: %w", err)
	}
	if b = bytes.TrimSpace(b); len(b) < minSecret {
		return nil, fmt.Errorf("webhooks' secret %s: want at least %d bytes", file, minSecret)
	}
	return b, nil
}

// allowed compares parsed URLs: scheme and host must be equal, the path must begin
// with the allowed one at a slash.
func (a *Activities) allowed(text string) bool {
	u, err := url.Parse(text)
	if err != nil || u.User != nil || strings.Contains(u.Path, "..") {
		return false
	}
	for _, prefix := range a.config.Webhooks {
		p, err := url.Parse(prefix)
		if err != nil || p.Scheme != u.Scheme || p.Host != u.Host {
			continue
		}
		base := strings.TrimSuffix(p.Path, "/")
		if u.Path == base || strings.HasPrefix(u.Path, base+"/") {
			return true
		}
	}
	return false
}

// redact leaves scheme, host and path: keys travel in queries.
func redact(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return "(not a URL)"
	}
	return u.Scheme + "://" + u.Host + u.Path
}

// beat heartbeats until stopped, when it runs as an activity, so that a
// cancellation reaches the action.
func beat(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(beatEvery)
		defer tick.Stop()
		for {
			if activity.IsActivity(ctx) {
				activity.RecordHeartbeat(ctx)
			}
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	}()
	return ctx, func() { cancel(); <-done }
}
