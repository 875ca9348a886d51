// Command uipictures goes through the Temporal UI of a demo as a person does, in a
// headless Chromium, and keeps pictures of it for docs/temporal-ui.md: it opens a machine,
// pauses it with a signal, filters the list, asks for what is refused and resumes the
// machine with updates, and approves the waiting step of a plan's run.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/chromedp/chromedp"
	"go.temporal.io/sdk/client"

	"drover/workflows/api"
)

// Bounds of a visit.
const (
	limit   = 5 * time.Minute         // of all of it
	appears = 20 * time.Second        // until a page shows what is waited for
	look    = 200 * time.Millisecond  // between two looks
	settle  = 1500 * time.Millisecond // until a page does not move any more
)

// The size of the pictures.
const (
	width  = 1440
	height = 900
)

func main() {
	ui := flag.String("ui", "", "address of the Temporal UI, e.g. http://127.0.0.1:8233")
	out := flag.String("out", "docs/pictures", "directory of the pictures")
	machine := flag.String("machine", "app-1", "name of a protected machine")
	run := flag.String("run", "", "workflow id of a plan's run that waits at a manual step; empty: leave that out")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	err := visit(ctx, *ui, *out, *machine, *run)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "uipictures:", err)
		os.Exit(1)
	}
}

// visitor is a browser at the UI's workflows.
type visitor struct {
	ctx  context.Context
	ui   string
	out  string
	base string // of the pages of the namespace
}

func visit(ctx context.Context, ui, out, machine, run string) error {
	if ui == "" {
		return errors.New("--ui is missing: `make demo KEEP=1` prints the address")
	}
	if err := os.MkdirAll(out, 0o755); err != nil { //nolint:gosec // pictures are for everybody
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.NoSandbox, chromedp.WindowSize(width, height))
	ctx, cancel = chromedp.NewExecAllocator(ctx, options...)
	defer cancel()
	ctx, cancel = chromedp.NewContext(ctx)
	defer cancel()
	v := &visitor{ctx: ctx, ui: ui, out: out, base: ui + "/namespaces/" + client.DefaultNamespace}
	if err := v.machine(machine); err != nil {
		return err
	}
	if run == "" {
		return nil
	}
	return v.plan(run)
}

// machine looks at a machine, pauses and resumes it.
func (v *visitor) machine(name string) error {
	id, err := v.find(fmt.Sprintf(`WorkflowType="ProtectedMachine" AND DroverMachine=%q AND ExecutionStatus="Running"`, name))
	if err != nil {
		return err
	}
	page := "/workflows/" + id
	return errors.Join(
		v.see(page, "machine"),
		v.tab(page, "search-attributes"),
		v.send(page, "signal", api.ActionPause, `{"by":"anna","reason":"storage is being moved"}`, "signal-pause"),
		v.await(fmt.Sprintf(`DroverMachine=%q AND DroverState="Paused"`, name)),
		v.see("/workflows?query="+url.QueryEscape(`DroverState="Paused"`), "paused"),
		v.send(page, "update", api.ActionCommit, `{"by":"anna"}`, "update-refused"),
		v.send(page, "update", api.ActionResume, `{"by":"anna"}`, "update-resume"),
		v.await(fmt.Sprintf(`DroverMachine=%q AND DroverState!="Paused" AND ExecutionStatus="Running"`, name)),
	)
}

// plan approves the step of a run that waits.
func (v *visitor) plan(run string) error {
	page := "/workflows/" + run
	return errors.Join(
		v.see(page, "plan-waits"),
		v.send(page, "signal", api.PlanApprove, `{"by":"anna","note":"the database answers"}`, "plan-approve"),
		v.await(fmt.Sprintf(`WorkflowId=%q AND ExecutionStatus="Completed"`, run)),
		v.see(page, "plan-done"),
	)
}

// tab keeps a picture of a tab of a workflow's page.
func (v *visitor) tab(page, name string) error {
	err := v.open(page)
	if err == nil {
		err = v.click("#"+name+"-tab", "")
	}
	if err == nil {
		err = chromedp.Run(v.ctx, chromedp.Sleep(2*settle))
	}
	if err == nil {
		err = v.picture(name)
	}
	return err
}

// see opens a page and keeps a picture of it.
func (v *visitor) see(page, name string) error {
	if err := v.open(page); err != nil {
		return err
	}
	return v.picture(name)
}

func (v *visitor) open(page string) error {
	if err := chromedp.Run(v.ctx, chromedp.Navigate(v.base+page), chromedp.Sleep(2*settle)); err != nil {
		return fmt.Errorf("open %s: %w", page, err)
	}
	return nil
}

func (v *visitor) picture(name string) error {
	var png []byte
	if err := chromedp.Run(v.ctx, chromedp.CaptureScreenshot(&png)); err != nil {
		return fmt.Errorf("picture %s: %w", name, err)
	}
	return os.WriteFile(filepath.Join(v.out, name+".png"), png, 0o644) //nolint:gosec // pictures are for everybody
}

// send fills the dialog of a signal or an update and keeps a picture: of the dialog
// before a signal is sent, and of the answer to an update.
func (v *visitor) send(page, kind, name, data, picture string) error {
	err := v.open(page)
	if err == nil {
		err = v.click("button", "More Actions")
	}
	if err == nil {
		err = v.click("[data-testid="+kind+"-button]", "")
	}
	if err == nil {
		err = v.click("dialog[open] [data-testid="+kind+"-select-button]", "")
	}
	if err == nil {
		err = v.click("dialog[open] [role=option]", name)
	}
	if err == nil {
		err = errors.Join(v.click("dialog[open] .cm-content", ""), chromedp.Run(v.ctx, chromedp.KeyEvent(data), chromedp.Sleep(settle)))
	}
	if err == nil && kind == "signal" {
		err = v.picture(picture)
	}
	if err == nil {
		err = v.click("dialog[open] [data-testid=confirm-modal-button]", "")
	}
	if err == nil && kind == "update" {
		err = errors.Join(chromedp.Run(v.ctx, chromedp.Sleep(2*settle)), v.picture(picture))
	}
	if err != nil {
		return fmt.Errorf("%s %s on %s: %w", kind, name, page, err)
	}
	return nil
}

// click clicks the first element that can be seen and has the text, or any.
func (v *visitor) click(selector, text string) error {
	script := fmt.Sprintf(`(() => {
		for (const e of document.querySelectorAll(%q)) {
			if (e.checkVisibility() && [e.textContent.trim(), ""].includes(%q)) { e.click(); if (e.isContentEditable) e.focus(); return true }
		}
		return false
	})()`, selector, text)
	return v.until("element "+selector+" "+text, func() (bool, error) {
		var done bool
		err := chromedp.Run(v.ctx, chromedp.Evaluate(script, &done), chromedp.Sleep(settle))
		return done, err
	})
}

// find gives the workflow that a filter of the list leaves.
func (v *visitor) find(query string) (string, error) {
	ids, err := v.query(query)
	if err == nil && len(ids) != 1 {
		err = fmt.Errorf("%d workflows, want one", len(ids))
	}
	if err != nil {
		return "", fmt.Errorf("find %s: %w", query, err)
	}
	return ids[0], nil
}

// await waits until the list, filtered, is not empty.
func (v *visitor) await(query string) error {
	return v.until(query, func() (bool, error) {
		ids, err := v.query(query)
		return len(ids) > 0, err
	})
}

func (v *visitor) query(query string) ([]string, error) {
	r, err := http.NewRequestWithContext(v.ctx, http.MethodGet, strings.Replace(v.base, "/namespaces/", "/api/v1/namespaces/", 1)+"/workflows?query="+url.QueryEscape(query), nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }() // only read
	var list struct {
		Executions []struct {
			Execution struct{ WorkflowID string }
		}
	}
	if err := json.NewDecoder(resp.Body).Decode(&list); err != nil {
		return nil, err
	}
	ids := make([]string, 0, len(list.Executions))
	for _, e := range list.Executions {
		ids = append(ids, e.Execution.WorkflowID)
	}
	return ids, nil
}

func (v *visitor) until(what string, done func() (bool, error)) error {
	for end := time.Now().Add(appears); time.Now().Before(end); time.Sleep(look) {
		if ok, err := done(); ok || err != nil {
			return err
		}
	}
	return fmt.Errorf("%s: not there within %s", what, appears)
}
