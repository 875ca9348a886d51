// Command uipictures goes through the Temporal UI of a demo as a person does, in a
// headless Chromium, and keeps pictures of it for docs/temporal-ui.md: it opens a machine,
// pauses it with a signal, filters the list, asks for what is refused and resumes the
// machine with updates; it gives the vault a plan, starts a test of it, and approves the
// step at which the run waits; it gives the vault a policy with a resync window, and
// pauses, resumes and triggers the schedule of the window.
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
	limit   = 15 * time.Minute        // of all of it
	appears = time.Minute             // until a page shows what is waited for
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
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	err := visit(ctx, *ui, *out, *machine)
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

func visit(ctx context.Context, ui, out, machine string) error {
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
	for _, do := range []func() error{
		func() error { return v.machine(machine) }, func() error { return v.run(machine) }, v.schedule,
	} {
		if err := do(); err != nil {
			return err
		}
	}
	return nil
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

// nights is a policy that resynchronises by night.
const nights = `{"by": "anna", "policy": {"name": "nights", "rpoThreshold": "15m", "cutInterval": "30s", ` +
	`"retention": {"keep": 86400000000000, "steps": [{"until": 7200000000000, "every": 0}, {"until": 86400000000000, "every": 3600000000000}]}, "resync": {"automatic": true, "atOnce": 4, "window": {"timeZone": "Europe/Berlin", "start": "22:00", "end": "06:00"}}}}`

// schedule has the vault take a policy, and pauses, resumes and triggers the schedule of
// its resync window.
func (v *visitor) schedule() error {
	page := "/schedules/resync-nights"
	if err := v.send("/workflows/"+api.VaultID, "update", api.VaultApplyPolicy, nights, ""); err != nil {
		return err
	}
	err := v.until("the schedule", func() (bool, error) {
		status, err := v.get(page, nil)
		return status == http.StatusOK, err
	})
	return errors.Join(
		err,
		v.see("/schedules", "schedules"),
		v.reasoned(page, "Pause", "the storage is slow tonight", "schedule-pause"),
		v.reasoned(page, "Unpause", "the storage is well", ""),
		v.trigger(page, "schedule-trigger"),
		v.await(fmt.Sprintf(`WorkflowType=%q AND ExecutionStatus="Completed"`, api.WorkflowResyncWindow)),
		v.see(page, "schedule-runs"),
	)
}

// reasoned presses a schedule's button, gives the reason, and keeps a picture of it.
func (v *visitor) reasoned(page, button, reason, picture string) error {
	err := v.open(page)
	if err == nil {
		err = v.click("button", button)
	}
	if err == nil {
		err = v.click("dialog[open] input", "")
	}
	if err == nil {
		err = chromedp.Run(v.ctx, chromedp.KeyEvent(reason), chromedp.Sleep(settle))
	}
	if err == nil && picture != "" {
		err = v.picture(picture)
	}
	if err == nil {
		err = v.click("dialog[open] [data-testid=confirm-modal-button]", "")
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w", button, page, err)
	}
	return nil
}

// trigger starts the schedule's workflow now, and keeps a picture of the dialog.
func (v *visitor) trigger(page, picture string) error {
	err := v.open(page)
	if err == nil {
		err = v.choose("[aria-label='Schedule Actions']", "", "[data-testid=trigger-schedule]")
	}
	if err == nil {
		err = errors.Join(chromedp.Run(v.ctx, chromedp.Sleep(settle)), v.picture(picture))
	}
	if err == nil {
		err = v.click("dialog[open] [data-testid=confirm-modal-button]", "")
	}
	if err != nil {
		return fmt.Errorf("trigger %s: %w", page, err)
	}
	return nil
}

// drill is a plan whose test waits for a person.
const drill = `{"by": "anna", "plan": {"name": "drill", "groups": [{"name": "application", "machines": [{"name": %q}], ` +
	`"after": [{"name": "the database is looked at", "manual": {"instructions": "Look whether the database answers, then approve."}}]}]}}`

// run gives the vault a plan of the machine, starts a test of it, and approves the step
// at which it waits.
func (v *visitor) run(machine string) error {
	const plan, run = "drill", "plan-drill-by-hand"
	if err := v.send("/workflows/"+api.VaultID, "update", api.VaultApplyPlan, fmt.Sprintf(drill, machine), "plan-apply"); err != nil {
		return err
	}
	form := url.Values{"workflowId": {run}, "taskQueue": {api.ControlQueue}, "workflowType": {api.WorkflowRecoveryPlan}}
	err := v.open("/workflows/start-workflow?" + form.Encode())
	if err == nil {
		in := fmt.Sprintf(`{"plan": %q, "kind": "test", "by": "anna", "reason": "a drill by night", "cleanAfter": "10m"}`, plan)
		err = errors.Join(v.click(".cm-content", ""), chromedp.Run(v.ctx, chromedp.KeyEvent(in), chromedp.Sleep(settle)), v.picture("run-start"))
	}
	if err == nil {
		err = v.click("[data-testid=start-workflow-button]", "")
	}
	if err != nil {
		return fmt.Errorf("start a run: %w", err)
	}
	page := "/workflows/" + run
	return errors.Join(
		v.waits(run),
		v.see(page, "plan-waits"),
		v.send(page, "signal", api.PlanApprove, `{"by":"anna","note":"the database answers"}`, "plan-approve"),
		v.await(fmt.Sprintf(`WorkflowId=%q AND ExecutionStatus="Completed"`, run)),
		v.see(page, "plan-done"),
	)
}

// waits waits until the run does, for a person: nothing is pending any more.
func (v *visitor) waits(run string) error {
	var w struct {
		PendingActivities []any
	}
	still := 0
	return v.until(run+" waiting", func() (bool, error) {
		w.PendingActivities = nil
		status, err := v.get("/workflows/"+run, &w)
		if still++; status != http.StatusOK || len(w.PendingActivities) > 0 {
			still = 0
		}
		return still > int(settle/look), err
	})
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
	err := chromedp.Run(v.ctx, chromedp.Navigate(v.base+page))
	if err == nil {
		err = v.until("content of "+page, func() (there bool, err error) {
			return there, chromedp.Run(v.ctx, chromedp.Evaluate(`(document.querySelector("#content")?.innerText ?? "").trim().length > 80`, &there))
		})
	}
	if err == nil {
		err = chromedp.Run(v.ctx, chromedp.Sleep(2*settle))
	}
	if err != nil {
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

// send fills the dialog of a signal or an update and keeps a picture, if it has a name:
// of the dialog before a signal is sent, and of the answer to an update.
func (v *visitor) send(page, kind, name, data, picture string) error {
	err := v.open(page)
	if err == nil {
		err = v.choose("button", "More Actions", "[data-testid="+kind+"-button]")
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
	if err == nil {
		err = chromedp.Run(v.ctx, chromedp.Sleep(2*settle))
	}
	if err == nil && kind == "update" && picture != "" {
		err = v.picture(picture)
	}
	if err != nil {
		return fmt.Errorf("%s %s on %s: %w", kind, name, page, err)
	}
	return nil
}

// clicked clicks the first element that can be seen and has the text, or any, if there
// is one.
func (v *visitor) clicked(selector, text string) (done bool, err error) {
	script := fmt.Sprintf(`(() => {
		for (const e of document.querySelectorAll(%q)) {
			if (e.checkVisibility() && [e.textContent.trim(), ""].includes(%q)) { e.click(); if (e.isContentEditable || e.tagName == "INPUT") e.focus(); return true }
		}
		return false
	})()`, selector, text)
	return done, chromedp.Run(v.ctx, chromedp.Evaluate(script, &done), chromedp.Sleep(settle))
}

// click clicks an element as soon as there is one.
func (v *visitor) click(selector, text string) error {
	return v.until("element "+selector+" "+text, func() (bool, error) { return v.clicked(selector, text) })
}

// choose clicks an item of a menu, and opens the menu before that, until the page
// listens to it.
func (v *visitor) choose(menu, text, item string) error {
	return v.until("item "+item, func() (bool, error) {
		done, err := v.clicked(item, "")
		if err == nil && !done {
			_, err = v.clicked(menu, text)
		}
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
	var list struct {
		Executions []struct {
			Execution struct{ WorkflowID string }
		}
	}
	if _, err := v.get("/workflows?query="+url.QueryEscape(query), &list); err != nil {
		return nil, err
	}
	ids := make([]string, 0, len(list.Executions))
	for _, e := range list.Executions {
		ids = append(ids, e.Execution.WorkflowID)
	}
	return ids, nil
}

// get asks the API behind the page, and gives the status.
func (v *visitor) get(page string, out any) (int, error) {
	r, err := http.NewRequestWithContext(v.ctx, http.MethodGet, strings.Replace(v.base, "/namespaces/", "/api/v1/namespaces/", 1)+page, nil)
	if err != nil {
		return 0, err
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0, err
	}
	defer func() { _ = resp.Body.Close() }() // only read
	if out == nil || resp.StatusCode != http.StatusOK {
		return resp.StatusCode, nil
	}
	return resp.StatusCode, json.NewDecoder(resp.Body).Decode(out)
}

func (v *visitor) until(what string, done func() (bool, error)) error {
	for end := time.Now().Add(appears); time.Now().Before(end); time.Sleep(look) {
		if ok, err := done(); ok || err != nil {
			return err
		}
	}
	return fmt.Errorf("%s: not there within %s", what, appears)
}
