package main

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	tailnetproto "github.com/coder/coder/v2/tailnet/proto"

	"tailnet.test/peers/coder/internal/peer"
)

// tally is who was told of what, and when. Clients write to rows of their own.
type tally struct {
	sent    []time.Time       // by update
	took    [][]time.Duration // by client and update; 0 if it was not told
	dials   []time.Duration
	arrived []atomic.Int64 // by update: clients that have it, or a later one
	changed chan struct{}

	mu     sync.Mutex
	broken error

	// The same bytes come to every client, so they are decoded once.
	last atomic.Pointer[decoded]
}

type decoded struct {
	message []byte
	number  int
}

func newTally(o options) *tally {
	t := &tally{
		sent:    make([]time.Time, o.updates+1),
		took:    make([][]time.Duration, o.clients),
		dials:   make([]time.Duration, o.clients),
		arrived: make([]atomic.Int64, o.updates+1),
		changed: make(chan struct{}, 1),
	}
	for number := range t.took {
		t.took[number] = make([]time.Duration, o.updates+1)
	}
	return t
}

func (t *tally) fail(client int, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.broken == nil {
		t.broken = fmt.Errorf("client %d: %w", client, err)
	}
	t.wake()
}

func (t *tally) failure() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.broken
}

func (t *tally) wake() {
	select {
	case t.changed <- struct{}{}:
	default:
	}
}

// waitAll waits until every client has been told of an update.
func (t *tally) waitAll(ctx context.Context, number int, limit time.Duration) error {
	late := time.After(limit)
	everybody := int64(len(t.took))
	for {
		if err := t.failure(); err != nil {
			return err
		}
		have := t.arrived[number].Load()
		if have == everybody {
			return nil
		}
		select {
		case <-t.changed:
		case <-ctx.Done():
			return ctx.Err()
		case <-late:
			return fmt.Errorf("%d of %d clients have update %d after %s", have, everybody, number, limit)
		}
	}
}

func (t *tally) deliveries() int {
	count := 0
	for _, row := range t.took {
		for _, took := range row[1:] {
			if took > 0 {
				count++
			}
		}
	}
	return count
}

func (t *tally) summarise(report peer.Event) error {
	var all []time.Duration
	slowest := make([]time.Duration, len(t.sent))
	missed := 0
	for _, row := range t.took {
		for number, took := range row[1:] {
			if took == 0 {
				missed++ // A later one came in its place.
				continue
			}
			all = append(all, took)
			slowest[number+1] = max(slowest[number+1], took)
		}
	}
	report["deliveries"] = len(all)
	report["skipped"] = missed
	report["latency_ms"] = peer.Quantiles(all)
	report["all_have_it_ms"] = peer.Quantiles(slowest[1:])
	return t.failure()
}

// client is one row of the tally.
type client struct {
	tally  *tally
	number int
	latest int
	begun  bool
	told   chan struct{} // closed at the first node
	gone   chan struct{} // closed when the connection is lost
	ended  sync.Once
}

// receive takes an encoded CoordinateResponse.
func (c *client) receive(message []byte) error {
	if known := c.tally.last.Load(); known != nil && bytes.Equal(known.message, message) {
		return c.note(known.number)
	}
	var response tailnetproto.CoordinateResponse
	if err := proto.Unmarshal(message, &response); err != nil {
		return err
	}
	if response.Error != "" {
		return fmt.Errorf("coordinate: %s", response.Error)
	}
	return c.receiveUpdates(response.PeerUpdates, append([]byte(nil), message...))
}

func (c *client) receiveUpdates(
	updates []*tailnetproto.CoordinateResponse_PeerUpdate, message []byte,
) error {
	for _, update := range updates {
		if update.Kind != tailnetproto.CoordinateResponse_PeerUpdate_NODE {
			return fmt.Errorf("told of %s (%s)", update.Kind, update.Reason)
		}
		number := int(update.Node.Id)
		if message != nil && len(updates) == 1 {
			c.tally.last.Store(&decoded{message, number})
		}
		if err := c.note(number); err != nil {
			return err
		}
	}
	return nil
}

func (c *client) note(number int) error {
	t := c.tally
	if number < 0 || number >= len(t.sent) {
		return fmt.Errorf("told of node %d, which nobody published", number)
	}
	if !c.begun {
		c.begun = true
		c.latest = number
		close(c.told)
		return nil
	}
	if number <= c.latest {
		return fmt.Errorf("told of node %d after node %d", number, c.latest)
	}
	t.took[c.number][number] = time.Since(t.sent[number])
	everybody := int64(len(t.took))
	for ; c.latest < number; c.latest++ {
		if t.arrived[c.latest+1].Add(1) == everybody {
			t.wake()
		}
	}
	return nil
}

// lost is called when a client's connection is over before the program is.
func (c *client) lost(err error) {
	c.tally.fail(c.number, fmt.Errorf("lost its connection: %w", err))
	c.ended.Do(func() { close(c.gone) })
}
