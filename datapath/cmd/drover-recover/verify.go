package main

import (
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"drover/datapath/attest"
	"drover/datapath/ident"
	"drover/datapath/recover"
	"drover/datapath/replica"
	"drover/datapath/stream"
)

func (a *app) verify() *cobra.Command {
	var ca, record string
	var number uint64
	cmd := &cobra.Command{
		Use: "verify MACHINE", Short: "Check that a recovery point is what was attested", Args: cobra.ExactArgs(1),
		Long: "Read all bytes of the recovery point that a signed record of drover verify is of, and say\n" +
			"whether they are what the record says. The record is the machine's newest in the store, or\n" +
			"the one of --record. With --ca its signature is checked against the vault's authority\n" +
			"(ca/cert.pem in the configuration server's state); without, anybody may have written it.\n" +
			"Exit code 1 when the point is not what was attested.",
		Example: "  drover-recover verify db-1 --store /mnt/seed --ca vault-ca.pem\n" +
			"  drover-recover verify db-1 --point 1041 --record db-1.json --store /mnt/seed --ca vault-ca.pem",
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.open(cmd.Context())
			if err != nil {
				return err
			}
			st, err := recover.Find(cmd.Context(), s, args[0])
			if err != nil {
				return err
			}
			authority, err := readAuthority(ca)
			if err != nil {
				return err
			}
			signed, err := readRecord(cmd, s, st, record)
			if err != nil {
				return err
			}
			return a.verifyPoint(cmd, s, st, signed, authority, ident.Seq(number))
		},
	}
	cmd.Flags().StringVar(&ca, "ca", "", "certificate of the vault's authority (PEM)")
	cmd.Flags().StringVar(&record, "record", "", "file of a signed record (default: the newest in the store)")
	cmd.Flags().Uint64Var(&number, "point", 0, "recovery point that the record must be of (default: whichever it is of)")
	return cmd
}

// readAuthority reads the authority's certificate; without a file there is none.
func readAuthority(path string) (*x509.CertPool, error) {
	if path == "" {
		return nil, nil
	}
	text, err := os.ReadFile(path) //nolint:gosec // the operator names it
	if err != nil {
		return nil, fmt.Errorf("read the authority's certificate: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("read the authority's certificate: %s has no certificate in PEM", path)
	}
	return pool, nil
}

func readRecord(cmd *cobra.Command, s replica.Store, st replica.State, path string) (stream.SignedRecord, error) {
	if path == "" {
		return recover.Record(cmd.Context(), s, st.Spec.Machine)
	}
	text, err := os.ReadFile(path) //nolint:gosec // the operator names it
	if err != nil {
		return stream.SignedRecord{}, fmt.Errorf("read the record: %w", err)
	}
	return attest.Parse(text)
}

func (a *app) verifyPoint(cmd *cobra.Command, s replica.Store, st replica.State, signed stream.SignedRecord, authority *x509.CertPool, point ident.Seq) error {
	r, err := attest.Read(signed)
	if err != nil {
		return err
	}
	if point != 0 && r.Point != point {
		return fmt.Errorf("the record is of point %d: %w: it says nothing of point %d", r.Point, recover.ErrNotAttested, point)
	}
	tell := progress(cmd)
	c, err := recover.Verify(cmd.Context(), s, st, signed, authority, func(d recover.DiskCheck, done int64) { tell(d.Name, d.Size, done) })
	if err != nil && !errors.Is(err, recover.ErrNotAttested) || len(c.Disks) == 0 {
		return err
	}
	verdict := "is what was attested"
	if err != nil {
		verdict = "is NOT what was attested"
	}
	by := "signed by " + c.Signer
	if c.Signer == "" {
		by = "signature NOT CHECKED: name the vault's authority with --ca"
	}
	_, _ = fmt.Fprintf(cmd.ErrOrStderr(), "%s as of point %d, %s, %s\nrecord of %s: %s; %s\n", st.Spec.Name, r.Point, r.PointTime.UTC().Format(time.RFC3339), verdict,
		r.Finished.UTC().Format(time.RFC3339), r.Verdict, by)
	printed := a.print(cmd.OutOrStdout(), c, func(t table.Writer) {
		t.AppendHeader(table.Row{"disk", "bytes", "attested", "found", "damaged bytes", "first at"})
		for _, d := range c.Disks {
			found := d.Digest.String()[:16]
			if d.Damage > 0 {
				found = "-"
			}
			t.AppendRow(table.Row{d.Name, d.Size, d.Want.String()[:16], found, d.Damage, fmt.Sprint(d.First)})
		}
	})
	return errors.Join(err, printed)
}
