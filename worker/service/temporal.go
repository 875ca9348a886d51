package service

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.temporal.io/sdk/client"
	sdklog "go.temporal.io/sdk/log"
	"go.temporal.io/sdk/worker"
)

// Bounds of the Temporal worker.
const (
	connectTry   = 10 * time.Second // one try to reach Temporal
	connectFirst = 250 * time.Millisecond
	connectMost  = 5 * time.Second
	// stopActivities is how long activities under way may take to end by themselves
	// when the program stops.
	stopActivities = 5 * time.Second
	// HeartbeatThrottle: heartbeats go out at most this seldom, because operators
	// watch them.
	HeartbeatThrottle = 2 * time.Second
	// Pollers are how many ask for tasks of a kind at once. A task that nobody is asking for
	// just then goes through Temporal's database, and with the SDK's two most of many do.
	Pollers = 8
)

// Temporal is a program's connection to Temporal and its worker. The program
// lives without Temporal: the worker starts when it answers.
type Temporal struct {
	Client client.Client
	config TemporalConfig
	runs   atomic.Bool
}

// TemporalConfig says what the worker does.
type TemporalConfig struct {
	Address, Namespace string
	Queue              string
	Identity           string
	Worker             worker.Options
	// Register registers workflows and activities.
	Register func(worker.Registry)
	// Prepare is called before the worker starts, once Temporal answers; its error
	// is logged and Prepare tried again.
	Prepare func(context.Context, client.Client) error
	// Started is called when the worker runs; its error is logged and the worker
	// started anew.
	Started func(context.Context, client.Client) error
	Logger  *slog.Logger
	Metrics prometheus.Registerer
}

// NewTemporal makes the client; it connects when it is used.
func NewTemporal(c TemporalConfig) (*Temporal, error) {
	cl, err := client.NewLazyClient(client.Options{
		HostPort: c.Address, Namespace: c.Namespace, Identity: c.Identity, Logger: sdklog.NewStructuredLogger(c.Logger),
	})
	if err != nil {
		return nil, fmt.Errorf("make a Temporal client for %s: %w", c.Address, err)
	}
	c.Worker.Identity = c.Identity
	c.Worker.WorkerStopTimeout = stopActivities
	c.Worker.MaxConcurrentWorkflowTaskPollers, c.Worker.MaxConcurrentActivityTaskPollers = Pollers, Pollers
	c.Worker.MaxHeartbeatThrottleInterval = HeartbeatThrottle
	c.Worker.DefaultHeartbeatThrottleInterval = HeartbeatThrottle
	t := &Temporal{Client: cl, config: c}
	if c.Metrics != nil {
		err = c.Metrics.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "drover_temporal_worker_running", Help: "1 while the Temporal worker runs.",
		}, func() float64 {
			if t.Running() {
				return 1
			}
			return 0
		}))
	}
	return t, err
}

// SetRegister says what the worker registers, when that needs the client. It must
// be called before Run.
func (t *Temporal) SetRegister(register func(worker.Registry)) { t.config.Register = register }

// Running reports whether the worker runs.
func (t *Temporal) Running() bool { return t.runs.Load() }

// Healthy gives an error while the worker does not run.
func (t *Temporal) Healthy() error {
	if !t.Running() {
		return fmt.Errorf("the Temporal worker does not run yet: waiting for %s", t.config.Address)
	}
	return nil
}

// Run keeps a worker running until ctx ends, then stops it gracefully.
func (t *Temporal) Run(ctx context.Context) error {
	defer t.Client.Close()
	pause := connectFirst
	for ctx.Err() == nil {
		began := time.Now()
		err := t.once(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if time.Since(began) > connectMost+connectTry {
			pause = connectFirst
		}
		t.config.Logger.Warn("the Temporal worker does not run; trying again", "address", t.config.Address,
			"queue", t.config.Queue, "error", err.Error(), "pause", pause.String())
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, connectMost)
	}
	return nil
}

// once runs one worker until ctx ends or the worker fails for good.
func (t *Temporal) once(ctx context.Context) error {
	if err := t.reach(ctx); err != nil {
		return err
	}
	failed := make(chan error, 1)
	options := t.config.Worker
	options.OnFatalError = func(err error) {
		select {
		case failed <- err:
		default: // the first one is enough
		}
	}
	w := worker.New(t.Client, t.config.Queue, options)
	t.config.Register(w)
	if err := w.Start(); err != nil {
		return err
	}
	// After a fatal error the worker stops itself; stopping it twice does no harm.
	defer w.Stop()
	if t.config.Started != nil {
		if err := t.config.Started(ctx, t.Client); err != nil {
			return err
		}
	}
	t.runs.Store(true)
	defer t.runs.Store(false)
	t.config.Logger.Info("the Temporal worker runs", "address", t.config.Address, "queue", t.config.Queue)
	select {
	case <-ctx.Done():
		return nil
	case err := <-failed:
		return err
	}
}

// reach asks Temporal for a sign of life and prepares what the worker needs.
func (t *Temporal) reach(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, connectTry)
	defer cancel()
	if _, err := t.Client.CheckHealth(ctx, &client.CheckHealthRequest{}); err != nil {
		return err
	}
	if t.config.Prepare == nil {
		return nil
	}
	return t.config.Prepare(ctx, t.Client)
}
