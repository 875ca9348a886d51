package temporalserver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	"go.temporal.io/api/serviceerror"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"
	"go.temporal.io/server/common/cluster"
	"go.temporal.io/server/common/config"
	"go.temporal.io/server/common/dynamicconfig"
	"go.temporal.io/server/common/membership/static"
	"go.temporal.io/server/common/metrics"
	sqliteplugin "go.temporal.io/server/common/persistence/sql/sqlplugin/sqlite"
	"go.temporal.io/server/common/primitives"
	sqliteschema "go.temporal.io/server/schema/sqlite"
	"google.golang.org/protobuf/types/known/durationpb"
)

const loopback = "127.0.0.1"

func serverConfig(opts Options) (*config.Config, error) {
	host, portText, err := net.SplitHostPort(opts.Listen)
	if err != nil {
		return nil, fmt.Errorf("start Temporal: address %q: %w", opts.Listen, err)
	}
	port, err := strconv.Atoi(portText)
	if err != nil {
		return nil, fmt.Errorf("start Temporal: port %q: %w", portText, err)
	}
	cfg := &config.Config{}
	if cfg.Persistence, err = persistence(opts); err != nil {
		return nil, err
	}
	cfg.Global.Membership = config.Membership{MaxJoinDuration: 30 * time.Second, BroadcastAddress: host}
	if opts.Metrics != "" {
		cfg.Global.Metrics = &metrics.Config{Prometheus: &metrics.PrometheusConfig{
			Framework: metrics.FrameworkOpentelemetry, ListenAddress: opts.Metrics, HandlerPath: "/metrics",
		}}
	}
	cfg.ClusterMetadata = &cluster.Config{
		FailoverVersionIncrement: 10, MasterClusterName: "active", CurrentClusterName: "active",
		ClusterInformation: map[string]cluster.ClusterInformation{
			"active": {Enabled: true, InitialFailoverVersion: 1, RPCAddress: opts.Listen},
		},
	}
	cfg.DCRedirectionPolicy = config.DCRedirectionPolicy{Policy: "noop"}
	cfg.Archival = config.Archival{
		History:    config.HistoryArchival{State: "disabled"},
		Visibility: config.VisibilityArchival{State: "disabled"},
	}
	cfg.NamespaceDefaults = config.NamespaceDefaults{Archival: config.ArchivalNamespaceDefaults{
		History:    config.HistoryArchivalNamespaceDefaults{State: "disabled"},
		Visibility: config.VisibilityArchivalNamespaceDefaults{State: "disabled"},
	}}
	cfg.PublicClient = config.PublicClient{HostPort: opts.Listen}
	cfg.Services, err = services(host, port)
	return cfg, err
}

// persistence gives where the server keeps its data, ready to be used.
func persistence(opts Options) (config.Persistence, error) {
	if opts.Postgres == nil {
		sql, err := sqliteFile(databaseFile(opts.Dir))
		return config.Persistence{
			DefaultStore: sqliteplugin.PluginName, VisibilityStore: sqliteplugin.PluginName, NumHistoryShards: 1,
			DataStores: map[string]config.DataStore{sqliteplugin.PluginName: {SQL: sql}},
		}, err
	}
	const workflows, visibility = "workflows", "visibility"
	w, v, err := opts.Postgres.databases(slogAdapter{opts.Logger})
	return config.Persistence{
		DefaultStore: workflows, VisibilityStore: visibility, NumHistoryShards: postgresShards,
		DataStores: map[string]config.DataStore{workflows: {SQL: w}, visibility: {SQL: v}},
	}, err
}

// services gives the frontend its address and the others free ports on loopback.
func services(host string, port int) (map[string]config.Service, error) {
	out := map[string]config.Service{}
	for _, name := range serviceNames {
		rpc := config.RPC{GRPCPort: port, BindOnIP: host}
		if name != primitives.FrontendService {
			free, err := freePort()
			if err != nil {
				return nil, err
			}
			rpc = config.RPC{GRPCPort: free, BindOnIP: loopback}
		}
		out[string(name)] = config.Service{RPC: rpc}
	}
	return out, nil
}

func staticHosts(cfg *config.Config) map[primitives.ServiceName]static.Hosts {
	hosts := map[primitives.ServiceName]static.Hosts{}
	for _, name := range serviceNames {
		rpc := cfg.Services[string(name)].RPC
		hosts[name] = static.SingleLocalHost(net.JoinHostPort(rpc.BindOnIP, strconv.Itoa(rpc.GRPCPort)))
	}
	return hosts
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", net.JoinHostPort(loopback, "0"))
	if err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	return port, l.Close()
}

// sqliteFile gives the database's settings, and its schema to a new file. WAL
// with normal sync halves the CPU of the default and survives a killed process.
func sqliteFile(path string) (*config.SQL, error) {
	sql := &config.SQL{
		PluginName: sqliteplugin.PluginName, DatabaseName: path,
		ConnectAttributes: map[string]string{"mode": "rwc", "journal_mode": "wal", "synchronous": "1"},
	}
	_, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		err = sqliteschema.SetupSchema(sql)
	}
	if err != nil {
		return nil, fmt.Errorf("start Temporal: set up its database %s: %w", path, err)
	}
	return sql, nil
}

// dynamicSettings are those that the Temporal CLI uses for a single node.
func dynamicSettings() dynamicconfig.StaticClient {
	return dynamicconfig.StaticClient{
		dynamicconfig.ForceSearchAttributesCacheRefreshOnRead.Key(): true,
		dynamicconfig.FrontendPersistenceMaxQPS.Key():               10000,
		dynamicconfig.HistoryPersistenceMaxQPS.Key():                45000,
	}
}

func ensureNamespace(ctx context.Context, c client.Client, opts Options) error {
	_, err := c.WorkflowService().RegisterNamespace(ctx, &workflowservice.RegisterNamespaceRequest{
		Namespace: opts.Namespace, WorkflowExecutionRetentionPeriod: durationpb.New(opts.Retention),
	})
	var exists *serviceerror.NamespaceAlreadyExists
	if errors.As(err, &exists) {
		return nil
	}
	return err
}
