package processserver

import (
	"context"
	"fmt"
	"log/slog"
	"net"

	"drover/agent/controlapi"
	"drover/agent/enrol"
	"drover/datapath/health"
	"drover/datapath/relay"
	"drover/worker/config"
	"drover/worker/service"
)

// runRelay runs a relay until ctx ends: it is enrolled and heard of as a server is, and
// passes connections on that it cannot look into.
func runRelay(ctx context.Context, c *config.ProcessServer, id *enrol.Identity, log *slog.Logger) error {
	listener, err := net.Listen("tcp", c.Listen)
	if err != nil {
		return fmt.Errorf("listen for agents: %w", err)
	}
	denied, err := openDenyList(c.State)
	if err != nil {
		return err
	}
	client := id.ControlClient(c.ConfigServer, nil)
	defer client.Close()
	beats := &heartbeats{
		client: client, denied: denied, health: func() health.Report { return health.Report{Status: health.OK} }, every: heartbeatEvery, log: log,
		beat: controlapi.Heartbeat{Instance: instance(c), Version: service.Version(), State: "serving", DataAddress: c.Advertise},
	}
	log.Info("passes agents' connections on", "address", listener.Addr().String(), "to", c.RelayTo)
	g := service.NewGroup(ctx)
	g.Go(func(ctx context.Context) error { return relay.New(c.RelayTo, log).Serve(ctx, listener) })
	g.Go(func(ctx context.Context) error {
		id.KeepRenewed(ctx, client, log)
		return nil
	})
	g.Go(beats.Run)
	g.Go(func(ctx context.Context) error {
		return service.ServeMetrics(ctx, c.Metrics, service.Registry(), func() error { return nil })
	})
	return g.Wait()
}
