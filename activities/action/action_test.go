package action

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/temporal"

	"drover/workflows/api"
)

func newActions(t *testing.T, webhooks ...string) (*Activities, string) {
	t.Helper()
	dir := t.TempDir()
	a, err := New(Config{Scripts: dir, Webhooks: webhooks, Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	return a, dir
}

func script(t *testing.T, dir, name, text string, mode os.FileMode) {
	t.Helper()
	require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+text), mode))
	require.NoError(t, os.Chmod(filepath.Join(dir, name), mode))
}

func input(file string, args ...string) api.ScriptInput {
	return api.ScriptInput{Plan: "shop", Run: "plan-shop-1", Step: "before/check", Kind: api.PlanTest, Script: api.ScriptAction{File: file, Args: args}}
}

func TestScript(t *testing.T) {
	a, dir := newActions(t)
	script(t, dir, "ok", `echo "$DROVER_PLAN $DROVER_STEP $DROVER_KIND <$1> $SECRET"`, 0o700)
	t.Setenv("SECRET", "hunter2")
	out, err := a.Script(t.Context(), input("ok", "a b; rm -rf /"))
	require.NoError(t, err)
	require.Equal(t, "shop before/check test <a b; rm -rf /> \n", out.Output, "arguments as given, no shell, nothing of our environment")

	script(t, dir, "fails", "echo no database >&2; exit 3", 0o700)
	out, err = a.Script(t.Context(), input("fails"))
	requireCode(t, err, api.CodeActionFailed)
	require.ErrorContains(t, err, "exit code 3: no database")
	require.Equal(t, 3, out.Exit)

	script(t, dir, "talks", "i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done", 0o700)
	out, err = a.Script(t.Context(), input("talks"))
	require.NoError(t, err)
	require.LessOrEqual(t, len(out.Output), maxOutput+3)
	require.True(t, strings.HasSuffix(out.Output, "line 1999\n"))
}

func TestScriptThatMayNotRun(t *testing.T) {
	a, dir := newActions(t)
	script(t, dir, "plain", "true", 0o600)
	script(t, dir, "open", "true", 0o777)
	script(t, dir, "real", "true", 0o700)
	require.NoError(t, os.Symlink(filepath.Join(dir, "real"), filepath.Join(dir, "link")))
	require.NoError(t, os.Mkdir(filepath.Join(dir, "dir"), 0o700))
	for _, name := range []string{"", "absent", "plain", "open", "link", "dir", "../x", "/bin/true", ".hidden"} {
		_, err := a.Script(t.Context(), input(name))
		requireCode(t, err, api.CodeInvalid)
	}
}

// untilStarted is cancelled when the script has made its file "started".
func untilStarted(t *testing.T, dir string) context.Context {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		for ctx.Err() == nil {
			if _, err := os.Stat(filepath.Join(dir, "started")); err == nil {
				cancel()
			}
			time.Sleep(5 * time.Millisecond)
		}
	}()
	return ctx
}

func TestScriptIsStoppedWithAllItStarted(t *testing.T) {
	a, dir := newActions(t)
	script(t, dir, "hangs", "sleep 600 & echo started > started; wait", 0o700)
	_, err := a.Script(untilStarted(t, dir), input("hangs"))
	requireCode(t, err, api.CodeActionFailed)
	require.ErrorContains(t, err, "was stopped")
}

// gone waits until the process whose id the script has written is no more.
func gone(t *testing.T, file string) {
	t.Helper()
	b, err := os.ReadFile(file)
	require.NoError(t, err)
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		return err != nil || strings.Contains(string(stat), ") Z ")
	}, 10*time.Second, 5*time.Millisecond, "process %d lives on", pid)
}

// TestChildrenAreKilled: those that do not heed SIGTERM, and those that a script leaves behind.
func TestChildrenAreKilled(t *testing.T) {
	a, dir := newActions(t)
	script(t, dir, "deaf", `trap "" TERM; (trap "" TERM; sleep 600) & echo $! > child; touch started; wait; wait`, 0o700)
	_, err := a.Script(untilStarted(t, dir), input("deaf"))
	requireCode(t, err, api.CodeActionFailed)
	gone(t, filepath.Join(dir, "child"))

	script(t, dir, "leaves", "sleep 600 > /dev/null 2>&1 & echo $! > left", 0o700)
	_, err = a.Script(t.Context(), input("leaves"))
	require.NoError(t, err)
	gone(t, filepath.Join(dir, "left"))
}

// TestSessionsOfTheirOwnAreKilled: in a control group nothing outlives the script, not even
// what has left its process group, and what holds its output open does not hold it up.
func TestSessionsOfTheirOwnAreKilled(t *testing.T) {
	g, err := newCgroup()
	if err != nil {
		t.Skip("no control group can be made here: " + err.Error())
	}
	require.NoError(t, g.remove())
	require.NoDirExists(t, g.dir)
	a, dir := newActions(t)
	script(t, dir, "leaves", "setsid sh -c 'trap \"\" TERM; echo $$ > left; touch started; sleep 600' > /dev/null 2>&1 & while ! [ -e started ]; do sleep 0.01; done", 0o700)
	_, err = a.Script(t.Context(), input("leaves"))
	require.NoError(t, err)
	gone(t, filepath.Join(dir, "left"))

	require.NoError(t, os.Remove(filepath.Join(dir, "started")))
	script(t, dir, "hangs", "setsid sh -c 'trap \"\" TERM; echo $$ > left; touch started; sleep 600' & wait", 0o700)
	begun := time.Now()
	_, err = a.Script(untilStarted(t, dir), input("hangs"))
	requireCode(t, err, api.CodeActionFailed)
	require.Less(t, time.Since(begun), 2*killAfter, "SIGKILL reaches what keeps the output open")
	gone(t, filepath.Join(dir, "left"))
	left, err := filepath.Glob(filepath.Join(filepath.Dir(g.dir), "drover-script-*"))
	require.NoError(t, err)
	require.Empty(t, left)
}

func TestPinnedScript(t *testing.T) {
	a, dir := newActions(t)
	script(t, dir, "ok", "echo fine", 0o700)
	in := input("ok")
	sum := sha256.Sum256([]byte("#!/bin/sh\necho fine"))
	in.Script.SHA256 = hex.EncodeToString(sum[:])
	out, err := a.Script(t.Context(), in)
	require.NoError(t, err)
	require.Equal(t, "fine\n", out.Output)
	script(t, dir, "ok", "echo changed", 0o700)
	_, err = a.Script(t.Context(), in)
	requireCode(t, err, api.CodeInvalid)
	require.ErrorContains(t, err, "not what the plan pins")
	wrong, err := a.Check(t.Context(), []api.LocatedAction{{Path: "before[0]", Action: api.PlanAction{Script: &in.Script}}})
	require.NoError(t, err)
	require.Len(t, wrong, 1)
}

func TestDirectoryThatOthersMayChange(t *testing.T) {
	a, dir := newActions(t)
	script(t, dir, "ok", "true", 0o700)
	require.NoError(t, os.Chmod(dir, 0o777))
	_, err := a.Script(t.Context(), input("ok"))
	requireCode(t, err, api.CodeInvalid)
	require.ErrorContains(t, err, "the script directory can be changed by others")
}

func TestScriptsRunAsALowUser(t *testing.T) {
	_, err := New(Config{ScriptUser: "root", Logger: slog.New(slog.DiscardHandler)})
	require.ErrorContains(t, err, "not root")
	_, err = New(Config{ScriptUser: "no-such-user", Logger: slog.New(slog.DiscardHandler)})
	require.Error(t, err)
	if os.Geteuid() != 0 {
		t.Skip("only root can become another user")
	}
	dir := t.TempDir()
	for d := dir; d != "/tmp" && d != "/"; d = filepath.Dir(d) {
		require.NoError(t, os.Chmod(d, 0o755))
	}
	a, err := New(Config{Scripts: dir, ScriptUser: "nobody", Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	script(t, dir, "who", "id -un; id -G; touch here 2>/dev/null || echo no", 0o755)
	out, err := a.Script(t.Context(), input("who"))
	require.NoError(t, err)
	require.Regexp(t, `^nobody\n\d+\nno\n$`, out.Output, "no group of root's")
}

func TestWebhooksAreSigned(t *testing.T) {
	key := []byte("0123456789abcdef")
	var header string
	var body []byte
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		header = r.Header.Get(SignatureHeader)
		body, _ = io.ReadAll(r.Body)
	}))
	defer server.Close()
	file := filepath.Join(t.TempDir(), "secret")
	require.NoError(t, os.WriteFile(file, append(key, '\n'), 0o600))
	config := Config{Webhooks: []string{server.URL + "/"}, WebhookSecret: file, Logger: slog.New(slog.DiscardHandler)}
	a, err := New(config)
	require.NoError(t, err)
	in := api.WebhookInput{Plan: "shop", Run: "r1", Step: "s", Webhook: api.WebhookAction{URL: server.URL + "/x"}}
	_, err = a.Webhook(t.Context(), in)
	require.NoError(t, err)
	at, sum, ok := strings.Cut(strings.TrimPrefix(header, "t="), ",v1=")
	require.True(t, ok, header)
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(at + "." + string(body)))
	require.Equal(t, hex.EncodeToString(mac.Sum(nil)), sum)
	unix, err := strconv.ParseInt(at, 10, 64)
	require.NoError(t, err)
	require.WithinDuration(t, time.Now(), time.Unix(unix, 0), time.Hour)

	require.NoError(t, os.Chmod(file, 0o644))
	header = ""
	_, err = a.Webhook(t.Context(), in)
	requireCode(t, err, api.CodeInvalid)
	require.Empty(t, header, "nothing is sent unsigned")
	_, err = New(config)
	require.ErrorContains(t, err, "others cannot read")
	require.NoError(t, os.WriteFile(file, []byte("short"), 0o600))
	require.NoError(t, os.Chmod(file, 0o600))
	_, err = New(config)
	require.ErrorContains(t, err, "at least 16 bytes")
}

func TestWebhook(t *testing.T) {
	var got map[string]string
	var key string
	status := http.StatusOK
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		key = r.Header.Get("Idempotency-Key")
		got = nil
		_ = json.NewDecoder(r.Body).Decode(&got)
		w.WriteHeader(status)
	}))
	defer server.Close()
	a, _ := newActions(t, server.URL+"/hooks/")
	in := api.WebhookInput{Plan: "shop", Run: "r1", Step: "after/tell", Kind: api.PlanPlanned, Webhook: api.WebhookAction{URL: server.URL + "/hooks/a?key=hunter2"}}
	_, err := a.Webhook(t.Context(), in)
	require.NoError(t, err)
	require.Equal(t, map[string]string{"plan": "shop", "run": "r1", "step": "after/tell", "kind": "planned"}, got)
	require.Equal(t, "r1/after/tell", key)

	status = http.StatusInternalServerError
	_, err = a.Webhook(t.Context(), in)
	requireCode(t, err, api.CodeActionFailed)
	require.NotContains(t, err.Error(), "hunter2")
	status = http.StatusForbidden
	_, err = a.Webhook(t.Context(), in)
	var app *temporal.ApplicationError
	require.ErrorAs(t, err, &app)
	require.True(t, app.NonRetryable())

	server.Close()
	_, err = a.Webhook(t.Context(), in)
	requireCode(t, err, api.CodeActionFailed)
	require.NotContains(t, err.Error(), "hunter2")
	for _, u := range []string{server.URL + "/hooksier", server.URL + "/hooks/../x", "http://other/hooks/", "file:///etc/passwd", "https://u:p@" + strings.TrimPrefix(server.URL, "http://") + "/hooks/"} {
		in.Webhook.URL = u
		_, err = a.Webhook(t.Context(), in)
		requireCode(t, err, api.CodeInvalid)
	}
}

func requireCode(t *testing.T, err error, code string) {
	t.Helper()
	var app *temporal.ApplicationError
	require.ErrorAs(t, err, &app)
	require.Equal(t, code, app.Type(), app.Error())
}

func TestCheckRunsNothing(t *testing.T) {
	a, dir := newActions(t, "https://hooks/")
	script(t, dir, "ok", "touch ran", 0o700)
	wrong, err := a.Check(t.Context(), []api.LocatedAction{
		{Path: "before[0]", Action: api.PlanAction{Script: &api.ScriptAction{File: "ok"}}},
		{Path: "before[1]", Action: api.PlanAction{Script: &api.ScriptAction{File: "absent"}}},
		{Path: "after[0]", Action: api.PlanAction{Webhook: &api.WebhookAction{URL: "https://hooks/x"}}},
		{Path: "after[1]", Action: api.PlanAction{Webhook: &api.WebhookAction{URL: "https://elsewhere/"}}},
		{Path: "after[2]", Action: api.PlanAction{Manual: &api.ManualAction{}}},
	})
	require.NoError(t, err)
	require.Len(t, wrong, 2)
	require.Equal(t, "before[1].script.file", wrong[0].Path)
	require.Contains(t, wrong[0].Reason, "absent is not in the script directory")
	require.Equal(t, "after[1].webhook.url", wrong[1].Path)
	require.NoFileExists(t, filepath.Join(dir, "ran"))
}
