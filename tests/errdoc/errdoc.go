// Package errdoc makes docs/errors.md from the catalogue of errors in the code, and
// its test holds that the file is what the code says. `make errors` writes it anew.
package errdoc

import (
	"fmt"
	"strings"

	"drover/datapath/wire"
	"drover/workflows/api"
)

//go:generate go run ./write ../../docs/errors.md

const head = `<!-- Made by ` + "`make errors`" + ` from workflows/api/errors.go and tests/errdoc: change those. -->

# Error codes

Every error that reaches a person carries a code. Codes never change their meaning. In Temporal, a code is the type of the
application error; in the control API it is the field ` + "`code`" + `; on the wire between agent and server there are numbers of their own
(second table). An error of a machine's health (` + "`drover status`" + `, with all fields in ` + "`--json`" + `) has the code, the component, the cause, the
evidence, what to do, since when, and whether the machine can be failed over in spite of it.

The column *failover* says what the error means for a failover of the machine: ` + "`yes`" + `, to any recovery point there is; ` + "`no`" + `, not before it is
mended; ` + "`-`" + `, it is not about a machine's replica. A machine without a recovery point, or one that runs in the target, cannot be failed over
in any case.

## Codes

| code | component | what | evidence | what to do | failover | tried again |
|---|---|---|---|---|---|---|
`

const wireHead = `
## Codes between agent and server

| number | what | what happens |
|---:|---|---|
`

// onTheWire explains the codes with which a session is refused or ended.
var onTheWire = map[wire.Code][2]string{
	wire.CodeBadFrame:       {"corrupt, oversize or unexpected frame", "the session ends, the agent comes back"},
	wire.CodeVersion:        {"another protocol version, or a release of the agent that the server does not take", api.CodeAgentVersion},
	wire.CodeIdentity:       {"the certificate, or the hardware uuid, is not this machine's", "the agent stands by"},
	wire.CodeUnknownMachine: {"the machine is not granted to this server", "the agent asks the configuration server again"},
	wire.CodeEpoch:          {"another epoch owns the machine", "the agent asks the configuration server again"},
	wire.CodeDisks:          {"not this machine's disks, or their sizes differ", api.CodeDiskChanged},
	wire.CodeResyncRequired: {"the machine is marked for resync", "the agent waits until a resync is ordered"},
	wire.CodeFull:           {"the spool is full", "the agent keeps track of changes and comes back"},
	wire.CodeBusy:           {"too many sessions", "the agent comes back later"},
	wire.CodeGap:            {"the change set does not follow", "the agent compares anew"},
	wire.CodeInternal:       {"the server failed", "its log says why"},
	wire.CodeStopped:        {"the grant was revoked, or the server is stopping", "the agent asks the configuration server again"},
}

// Text is the whole document.
func Text() string {
	var b strings.Builder
	b.WriteString(head)
	for _, e := range api.Catalogue() {
		again := "yes"
		if e.Permanent {
			again = "no"
		}
		_, _ = fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s | %s |\n", e.Code, e.Component, e.Cause, e.Evidence, e.Action, e.Failover, again)
	}
	b.WriteString(wireHead)
	for code := wire.Code(1); known(code); code++ {
		text := onTheWire[code]
		_, _ = fmt.Fprintf(&b, "| %d | %s | %s |\n", code, text[0], text[1])
	}
	return b.String()
}

// known reports whether the protocol has the code.
func known(code wire.Code) bool { return code.String() != fmt.Sprintf("code-%d", uint16(code)) }
