package session

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"drover/agent/disk"
	"drover/agent/tracker"
	"drover/datapath/ident"
	"drover/datapath/wire"
)

// busyPause is how soon a cut is tried again that found no quiet moment though
// somebody waits for it.
const busyPause = time.Second

// Refused is the server's refusal, or its end of the session.
type Refused struct{ wire.Refuse }

func (r *Refused) Error() string {
	return fmt.Sprintf("the server refused (%s): %s", r.Code, r.Detail)
}

// session is one connection's life.
type session struct {
	*Source
	conn    *wire.Conn
	welcome *wire.Welcome
	epoch   ident.Epoch
	ctx     context.Context // ends with the session
	cancel  context.CancelCauseFunc
	wg      sync.WaitGroup

	sums    chan *wire.Sums   // of size maxQueries
	orders  chan wire.Command // of size 1: the newest for a cut
	release chan struct{}     // of size 1
	room    chan struct{}     // of size 1: a set was acknowledged

	barriers chan wire.Barrier // of size 1: the newest step of the group's round
	looping  atomic.Bool       // barriers are taken up
	group    joined

	line line

	comparing comparing

	pack    *packer
	set     *openSet
	copied  []*disk.Overlay // in the order of the disks, while shadow copies are read; else nil
	beside  string          // what was emitted from beside them
	fixed   bool            // the open set may not be ended: its number was promised
	emitted int64           // extents
	bytes   int64           // of data in them
	passed  bool            // a whole pass has been made in this session
	final   bool            // a final cut is wanted
	asked   bool            // a cut was ordered, which is as good as can be
	obeyed  uint32          // the newest command that was taken up
}

// Run streams until ctx ends or the session does. A refusal is a *Refused.
func (s *Source) Run(ctx context.Context, t Target) error {
	s.show(StateConnecting, t.Address)
	if err := s.openDisks(t.Disks); err != nil {
		s.show(StateRefused, err.Error())
		return err
	}
	conn, err := wire.Dial(ctx, t.Dial, t.Address, t.TLS)
	if err != nil {
		return err
	}
	if t.IdleTimeout > 0 {
		conn.SetIdleTimeout(t.IdleTimeout)
	}
	x := &session{
		Source: s, conn: conn, epoch: t.Epoch, sums: make(chan *wire.Sums, maxQueries),
		orders: make(chan wire.Command, 1), release: make(chan struct{}, 1), room: make(chan struct{}, 1),
		barriers: make(chan wire.Barrier, 1), comparing: newComparing(),
	}
	x.ctx, x.cancel = context.WithCancelCause(ctx)
	stop := context.AfterFunc(x.ctx, func() { _ = conn.Close() })
	err = x.run()
	x.cancel(err)
	x.wg.Wait()
	stop()
	_ = conn.Close()
	if x.pack != nil {
		x.pack.close()
	}
	x.breakOff()
	if errors.Is(err, tracker.ErrGap) {
		s.Logger.Warn("nothing is known of the replica any more; the disks will be compared with it", "error", err.Error())
		s.forgetAll(causeGap)
	}
	if cause := context.Cause(x.ctx); cause != nil && ctx.Err() == nil && errors.Is(err, context.Canceled) {
		err = cause
	}
	var r *Refused
	if errors.As(err, &r) {
		s.show(StateRefused, r.Code.String()+": "+r.Detail)
	}
	return err
}

func (x *session) run() error {
	if err := x.greet(); err != nil {
		return err
	}
	x.pack = newPacker(x.conn, x.welcome.Codec, x.welcome.Adapt)
	x.wg.Go(func() { x.cancel(x.read()) })
	x.wg.Go(x.ping)
	x.wg.Go(x.verifies)
	x.Logger.Info("session begins", "mode", modeName(x.welcome.Mode), "position", x.welcome.Position.String(), "generation", x.welcome.Generation)
	if err := x.prepare(); err != nil {
		return x.cause(err)
	}
	return x.cause(x.loop())
}

// cause prefers what ended the session over what an interrupted step says.
func (x *session) cause(err error) error {
	if x.ctx.Err() != nil {
		if c := context.Cause(x.ctx); c != nil {
			return c
		}
	}
	return err
}

func modeName(m wire.Mode) string {
	return map[wire.Mode]string{wire.ModeCopy: "copy", wire.ModeCompare: "compare", wire.ModeDelta: "delta"}[m]
}

// greet says hello and takes the welcome.
func (x *session) greet() error {
	begin := time.Now()
	if err := x.conn.Send(x.hello(x.epoch)); err != nil {
		return err
	}
	answer, err := x.conn.Receive()
	if err != nil {
		return err
	}
	switch m := answer.(type) {
	case *wire.Welcome:
		x.welcome = m
		x.line.measure(begin, m.ServerTime)
		return x.arrange(m.Disks)
	case *wire.Refuse:
		return &Refused{*m}
	}
	return fmt.Errorf("the server answered the hello with %T", answer)
}

// read hands out what the server says.
func (x *session) read() error {
	for {
		message, err := x.conn.Receive()
		if err != nil {
			return fmt.Errorf("session: %w", err)
		}
		switch m := message.(type) {
		case *wire.Ack:
			if err := x.ack(m); err != nil {
				return err
			}
		case *wire.Sums:
			select {
			case x.sums <- m:
			default:
				return errors.New("session: checksums that nobody asked for")
			}
		case *wire.Command:
			x.ordered(*m)
		case *wire.Barrier:
			x.barrier(*m)
		case *wire.Verify:
			x.comparing.ordered(*m)
		case *wire.VerifySums:
			x.comparing.answered(m)
		case *wire.Pong:
			if err := x.line.pong(m.Time); err != nil {
				return err
			}
		case *wire.Refuse:
			return &Refused{*m}
		default:
			return fmt.Errorf("session: unexpected message %T", message)
		}
	}
}

func (x *session) ack(a *wire.Ack) error {
	switch a.Level {
	case wire.Spooled:
		if err := x.acknowledged(x.epoch, a.Position); err != nil {
			return err
		}
	case wire.Stored:
		x.safe(a.Position)
	default:
		return nil
	}
	select {
	case x.room <- struct{}{}:
	default:
	}
	return nil
}

// ping keeps the line alive and the clock's offset fresh.
func (x *session) ping() {
	ticker := time.NewTicker(x.conn.PingInterval())
	defer ticker.Stop()
	for {
		select {
		case <-x.ctx.Done():
			return
		case <-ticker.C:
		}
		if _, err := x.line.ping(x.conn); err != nil {
			x.cancel(err)
			return
		}
	}
}

// loop makes cuts, at their cadence and when the server asks.
func (x *session) loop() error {
	x.showState()
	x.looping.Store(true)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-x.ctx.Done():
			return x.ctx.Err()
		case <-x.release:
			if err := x.thaw(); err != nil {
				return err
			}
			timer.Reset(0)
			continue
		case f := <-x.comparing.forget:
			x.mend(f)
			continue
		case o := <-x.orders:
			if err := x.obey(o); err != nil {
				return err
			}
		case b := <-x.barriers:
			if !x.join(b) {
				continue
			}
		case <-timer.C:
			if x.frozen != nil {
				x.checkHeld()
				timer.Reset(time.Minute)
				continue
			}
		}
		begin := time.Now()
		quiet, err := x.cut(false)
		if err != nil {
			return err
		}
		pause := max(x.welcome.CutInterval-time.Since(begin), 0) + x.welcome.GroupWait
		if !quiet && x.final {
			pause = busyPause
		}
		timer.Reset(pause)
	}
}

// ordered hands a command to the loop. A newer one counts instead of one that nobody
// has begun.
func (x *session) ordered(c wire.Command) {
	select {
	case <-x.orders:
	default:
	}
	if c.Order != wire.OrderRelease {
		x.orders <- c // there is room: nobody else puts any
		return
	}
	select {
	case x.release <- struct{}{}:
	default:
	}
}

// obey notes an order; the loop makes the cut. A release that came before is obeyed
// first.
func (x *session) obey(c wire.Command) error {
	select {
	case <-x.release:
		if err := x.thaw(); err != nil {
			return err
		}
	default:
	}
	x.obeyed, x.asked = c.ID, true
	if c.Order != wire.OrderFinalCut {
		return nil
	}
	x.final = true
	return x.Thaw(x.ctx) // frozen already: that cut did not arrive
}

// thaw releases a machine that a final cut left frozen.
func (x *session) thaw() error {
	x.final = false
	if x.frozen != nil {
		x.Logger.Info("the machine is released")
	}
	defer x.showState()
	return x.Thaw(x.ctx)
}

// checkHeld thaws a machine that was forgotten.
func (x *session) checkHeld() {
	if time.Since(x.frozen.since) < maxHeld {
		return
	}
	x.Logger.Warn("the machine was frozen for a failover that did not come; it is thawed", "after", maxHeld.String())
	if err := x.Thaw(x.ctx); err != nil {
		x.Logger.Error("the machine could not be thawed", "error", err.Error())
	}
	x.showState()
}

// showState shows the ordinary state.
func (x *session) showState() {
	if x.frozen != nil {
		x.show(StateFrozen, "after its final recovery point")
		return
	}
	x.show(StateStreaming, "")
}
