package temporalserver

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"go.temporal.io/server/common/config"
	_ "go.temporal.io/server/common/persistence/sql/sqlplugin/postgresql" // the plugin
	v12 "go.temporal.io/server/schema/postgresql/v12"
	"go.temporal.io/server/tools/common/schema"
	"go.temporal.io/server/tools/sql"
)

// Postgres says where Temporal's databases are on a PostgreSQL server. They are made
// and upgraded when the server starts; the user needs the right to make databases the
// first time.
type Postgres struct {
	Address      string // host:port
	User         string
	PasswordFile string // its first line; empty: none
	Database     string // of the workflows; the one of their index is <Database>_visibility
}

const (
	postgresPlugin = "postgres12_pgx"
	maintenance    = "postgres" // the database that is always there
	// maxConns of each of the two databases; PostgreSQL allows 100 in all by default.
	maxConns     = 20
	maxConnLife  = time.Hour
	visibilityOf = "_visibility"
	// shards of a new database; they can never be changed. Several processes may share them.
	postgresShards = 16
)

// databases gives the settings of both databases, which are there and of this version.
func (p *Postgres) databases(log slogAdapter) (workflows, visibility *config.SQL, err error) {
	password, err := p.password()
	if err != nil {
		return nil, nil, err
	}
	of := func(name string) *config.SQL {
		return &config.SQL{
			PluginName: postgresPlugin, DatabaseName: name, ConnectAddr: p.Address, ConnectProtocol: "tcp",
			User: p.User, Password: password, MaxConns: maxConns, MaxIdleConns: maxConns, MaxConnLifetime: maxConnLife,
		}
	}
	workflows, visibility = of(p.Database), of(p.Database+visibilityOf)
	err = errors.Join(prepare(workflows, "temporal", v12.Version, log), prepare(visibility, "visibility", v12.VisibilityVersion, log))
	if err != nil {
		return nil, nil, fmt.Errorf("start Temporal: its database on PostgreSQL %s: %w", p.Address, err)
	}
	return workflows, visibility, nil
}

func (p *Postgres) password() (string, error) {
	if p.PasswordFile == "" {
		return "", nil
	}
	b, err := os.ReadFile(p.PasswordFile)
	if err != nil {
		return "", fmt.Errorf("start Temporal: the password of its database: %w", err)
	}
	line, _, _ := strings.Cut(string(b), "\n")
	return strings.TrimSpace(line), nil
}

// prepare makes the database and brings its schema to our version. A connection is
// only tried when it is used, so what is not there shows when the version is read.
func prepare(c *config.SQL, kind, version string, log slogAdapter) error {
	have, err := schemaVersion(c, log)
	if err != nil {
		create := *c // its name is overwritten
		if made := sql.DoCreateDatabase(&create, maintenance, log); made != nil && !isThere(made) {
			return fmt.Errorf("read the schema of %s: %w; make the database: %w", c.DatabaseName, err, made)
		}
	}
	db, failed := sql.NewConnection(c, log)
	if failed != nil {
		return fmt.Errorf("connect to %s: %w", c.DatabaseName, failed)
	}
	defer db.Close()
	if have == "" {
		// One that could not be read just now is not taken for an empty one.
		if tables, listed := db.ListTables(); listed != nil || len(tables) > 0 {
			return errors.Join(fmt.Errorf("%s has %d tables and no version of a schema could be read from it; try again, or choose another database",
				c.DatabaseName, len(tables)), err, listed)
		}
		if err := schema.NewSetupSchemaTask(db, &schema.SetupConfig{InitialVersion: "0.0"}, log).Run(); err != nil {
			return fmt.Errorf("set up the schema of %s: %w", c.DatabaseName, err)
		}
	}
	if have == version {
		return nil
	}
	update := &schema.UpdateConfig{DBName: c.DatabaseName, SchemaName: "postgresql/v12/" + kind}
	if err := schema.NewUpdateSchemaTask(db, update, log).Run(); err != nil {
		return fmt.Errorf("bring the schema of %s from %q to %s: %w", c.DatabaseName, have, version, err)
	}
	return nil
}

func schemaVersion(c *config.SQL, log slogAdapter) (string, error) {
	db, err := sql.NewConnection(c, log)
	if err != nil {
		return "", err
	}
	defer db.Close()
	return db.ReadSchemaVersion()
}

// isThere reports whether a database could not be made because there is one: an earlier
// start made it and got no further.
func isThere(err error) bool { return strings.Contains(err.Error(), "already exists") }
