package fault

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"drover/datapath/changeset"
	"drover/datapath/codec"
	"drover/datapath/ident"
	"drover/datapath/wire"
	"drover/tests/rig"
)

// impostor is a hostile program that has the server's key: it answers an agent's hello as
// it likes.
type impostor struct {
	*peer
	hello *wire.Hello
}

// fine is a welcome that the agent takes.
func (i *impostor) fine() *wire.Welcome {
	w := &wire.Welcome{Nonce: 7, Generation: 1, Mode: wire.ModeDelta, KeyID: "k", ServerTime: time.Now(), CutInterval: cut, BaseSetBytes: 1 << 20, Codec: codec.None}
	for _, d := range i.hello.Disks {
		w.Disks = append(w.Disks, changeset.Disk{ID: d.ID, Size: d.Size, Seed: 5})
	}
	return w
}

// says sends a message.
func (i *impostor) says(kind wire.Kind, m wire.Message) {
	i.write(i.of(kind, m).seal())
	if w, ok := m.(*wire.Welcome); ok {
		i.nonce = w.Nonce
	}
}

// impersonate takes one session of an agent, and does with it what it is told to.
func impersonate(t *testing.T, r *rig.Rig, do func(*impostor)) (address string) {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", r.CA.Server(rig.ServerPeer))
	require.NoError(t, err)
	done := make(chan struct{})
	t.Cleanup(func() {
		_ = l.Close()
		<-done
	})
	go func() {
		defer close(done)
		serveOnce(t, l, do)
	}()
	return l.Addr().String()
}

func serveOnce(t *testing.T, l net.Listener, do func(*impostor)) {
	conn, err := l.Accept()
	_ = l.Close() // one session: who comes again is refused
	if err != nil {
		return
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(soon)); err != nil {
		return
	}
	i := &impostor{peer: &peer{t: t, conn: conn.(*tls.Conn), in: bufio.NewReader(conn)}}
	for line := ""; line != "\r\n"; {
		if line, err = i.in.ReadString('\n'); err != nil {
			return
		}
	}
	if _, err := fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", wire.UpgradeToken); err != nil {
		return
	}
	m, err := i.read()
	if err != nil {
		return
	}
	i.hello = m.(*wire.Hello)
	do(i)
	_, _ = io.Copy(io.Discard, conn) // until the agent ends it
}

// TestCase30HostileServers: whatever a server says, an agent ends the session with the
// reason, and believes nothing: with the real server it goes on where it was.
func TestCase30HostileServers(t *testing.T) {
	welcome := func(change func(*wire.Welcome)) func(*impostor) {
		return func(i *impostor) {
			w := i.fine()
			change(w)
			i.says(wire.KindWelcome, w)
		}
	}
	after := func(say func(*impostor)) func(*impostor) {
		return func(i *impostor) {
			i.says(wire.KindWelcome, i.fine())
			say(i)
		}
	}
	stranger := ident.NewDiskID(ident.NewMachineID("v", "another"), "a")
	for name, c := range map[string]struct {
		do   func(*impostor)
		want string
	}{
		"a disk of another machine": {welcome(func(w *wire.Welcome) { w.Disks[0].ID = stranger }), "is not one of ours"},
		"a disk of another size":    {welcome(func(w *wire.Welcome) { w.Disks[1].Size += rig.Block }), "is not one of ours"},
		"fewer disks":               {welcome(func(w *wire.Welcome) { w.Disks = w.Disks[:1] }), "the server has 1 disks of 2"},
		"one disk twice": {func(i *impostor) {
			w := i.fine()
			payload, err := wire.Marshal(w)
			if err == nil {
				i.write(i.next(wire.KindWelcome, bytes.Replace(payload, w.Disks[1].ID[:], w.Disks[0].ID[:], 1)).seal())
			}
		}, "twice"},
		"something else than a welcome": {func(i *impostor) {
			i.says(wire.KindAck, &wire.Ack{Level: wire.Spooled, Position: ident.Position{Epoch: 1, Seq: 1}})
		}, "Ack"},
		"a set that was not sent": {after(func(i *impostor) {
			i.says(wire.KindAck, &wire.Ack{Level: wire.Spooled, Position: ident.Position{Epoch: 1, Seq: 9999}})
		}), "which was not sent"},
		"checksums that nobody asked for": {after(func(i *impostor) {
			for range 64 {
				i.says(wire.KindSums, &wire.Sums{Disk: 0, Sums: []uint64{1}})
			}
		}), "checksums"},
		"what only agents say": {after(func(i *impostor) { i.says(wire.KindBegin, &wire.Begin{Seq: 1, Kind: changeset.Delta}) }), "the wrong side"},
		"a frame once more": {after(func(i *impostor) {
			f := i.of(wire.KindCommand, &wire.Command{ID: 1, Order: wire.OrderCut}).seal()
			i.write(f, f)
		}), "frame"},
		"a frame of another session": {after(func(i *impostor) {
			i.nonce++
			i.says(wire.KindCommand, &wire.Command{ID: 1, Order: wire.OrderCut})
		}), "nonce"},
		"a flipped bit": {after(func(i *impostor) {
			f := i.of(wire.KindCommand, &wire.Command{ID: 1, Order: wire.OrderCut}).seal()
			f[len(f)-1] ^= 1
			i.write(f)
		}), "damaged"},
		"a length of 4 GiB": {after(func(i *impostor) {
			f := i.next(wire.KindSums, nil)
			f.length = 1<<32 - 1
			i.write(f.seal())
		}), "bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := rig.New(t, 64*rig.Block, 64*rig.Block)
			r.StartServer()
			r.Grant(1, cut)
			r.Write(0, 1, []byte(strings.Repeat("a", rig.Block)))
			r.StartAgent(1)
			r.Await("complete", complete)
			r.AfterNow()
			before := len(r.Ended())

			r.Via = impersonate(t, r, c.do)
			r.Assign(1)
			r.StopServer() // ends the session
			require.Eventually(t, func() bool {
				for _, err := range r.Ended()[before:] {
					if err != nil && strings.Contains(err.Error(), c.want) {
						return true
					}
				}
				return false
			}, soon, often, "%q in how sessions end: %v", c.want, lastEnded{r})
			r.StartServer()
			r.Write(0, 2, []byte(strings.Repeat("b", rig.Block)))
			r.Via = ""
			r.Assign(1)
			require.Equal(t, r.Digest(), r.DigestAt(r.AfterNow()))
			require.Nil(t, r.Status().Broken)
			require.Equal(t, uint32(1), r.Status().Generation, "no resync")
		})
	}
}

// lastEnded shows how the last sessions ended, when it is asked.
type lastEnded struct{ *rig.Rig }

func (l lastEnded) String() string {
	var out []string
	for _, err := range l.Ended() {
		if err != nil && !strings.Contains(err.Error(), "refused") {
			out = append(out, err.Error())
		}
	}
	return strings.Join(out, "\n")
}
