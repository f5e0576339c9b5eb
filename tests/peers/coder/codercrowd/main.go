// Codercrowd is many clients of one agent: it measures how a server tells all of them of a new node.
//
// Every client dials the coordinate route and adds a tunnel to the agent. Then the agent (played by this
// program too, with its token) publishes a new node --updates times, and every client notes when it has
// been told. One JSON object comes out; the status is 1 unless every client got the last update, each
// client in order and none twice.
//
// Modes, from cheap to real: "raw" speaks websocket, yamux and dRPC by itself, one goroutine a client, and
// is the one to measure servers with, since the load generator shares the machine with them; "drpc" uses
// the libraries that Coder uses; "sdk" is Coder's whole client with its own WireGuard.
package main

import (
	"context"
	"flag"
	"fmt"
	"net/url"
	"os"
	"sync"
	"time"

	"github.com/google/uuid"

	"tailnet.test/peers/coder/internal/peer"
)

type options struct {
	serverURL   *url.URL
	token       string
	agentToken  string
	agent       uuid.UUID
	mode        string
	clients     int
	parallel    int
	updates     int
	interval    time.Duration
	afterUpdate bool
	endpoints   int
	wait        time.Duration
	hold        time.Duration
	serverPID   int
}

func main() {
	var (
		o         options
		serverURL = flag.String("url", os.Getenv("CODER_URL"), "URL of the server")
		agentID   = flag.String("agent", "", "UUID of the agent")
	)
	flag.StringVar(&o.token, "token", os.Getenv("CODER_SESSION_TOKEN"), "API key of a user")
	flag.StringVar(&o.agentToken, "agent-token", "", "token of the agent")
	flag.StringVar(&o.mode, "mode", "raw", "raw, drpc or sdk")
	flag.IntVar(&o.clients, "clients", 100, "number of clients")
	flag.IntVar(&o.parallel, "parallel", 16, "dials at a time")
	flag.IntVar(&o.updates, "updates", 10, "number of times that the agent publishes a node")
	flag.DurationVar(&o.interval, "interval", 100*time.Millisecond, "time between updates, at least")
	flag.BoolVar(&o.afterUpdate, "after-update", false, "publish the next only when all have the one before")
	flag.IntVar(&o.endpoints, "endpoints", 4, "endpoints in a node: its size")
	flag.DurationVar(&o.wait, "wait", 30*time.Second, "time for one dial, and for the last update to arrive")
	flag.DurationVar(&o.hold, "hold", 0, "stay connected, without updates, before the first one")
	flag.IntVar(&o.serverPID, "server-pid", 0, "process of the server, to report its CPU time and memory")
	flag.Parse()
	id, err := uuid.Parse(*agentID)
	if err != nil {
		peer.Fail("--agent: %v", err)
	}
	o.serverURL, o.agent = peer.ParseURL(*serverURL), id
	ctx, cancel := peer.Context()
	defer cancel()

	report := peer.Event{"mode": o.mode, "clients": o.clients, "updates": o.updates}
	err = run(ctx, o, report)
	report["ok"] = err == nil
	if err != nil {
		report["error"] = err.Error()
	}
	peer.Print(report)
	if err != nil {
		os.Exit(1)
	}
}

func run(ctx context.Context, o options, report peer.Event) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	speaker, err := newPublisher(ctx, o)
	if err != nil {
		return fmt.Errorf("agent: %w", err)
	}
	defer speaker.close()
	// Node 0: whoever adds a tunnel is told of it, which is the end of its dial.
	if err := speaker.publish(0); err != nil {
		return fmt.Errorf("agent: %w", err)
	}

	watched := newUsage(o.serverPID)
	tally := newTally(o)
	if err := dialAll(ctx, o, tally); err != nil {
		return err
	}
	report["connect_ms"] = peer.Quantiles(tally.dials)
	report["connect"] = watched.lap(o.clients)
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(o.hold):
	}
	report["idle"] = watched.lap(o.clients)

	if o.updates > 0 {
		if err := publishAll(ctx, o, speaker, tally); err != nil {
			return err
		}
	}
	report["fan_out"] = watched.lap(tally.deliveries())
	return tally.summarise(report)
}

// dialAll connects the clients; each is connected when it has been told of node 0.
func dialAll(ctx context.Context, o options, tally *tally) error {
	var (
		group   sync.WaitGroup
		tickets = make(chan struct{}, o.parallel)
	)
	for number := range o.clients {
		tickets <- struct{}{}
		if err := tally.failure(); err != nil {
			break
		}
		group.Add(1)
		go func() {
			defer group.Done()
			defer func() { <-tickets }()
			began := time.Now()
			c := &client{tally: tally, number: number, told: make(chan struct{}), gone: make(chan struct{})}
			if err := dial(ctx, o, c); err != nil {
				tally.fail(number, err)
				return
			}
			select {
			case <-c.told:
				tally.dials[number] = time.Since(began)
			case <-c.gone:
			case <-time.After(o.wait):
				tally.fail(number, fmt.Errorf("was told of no node within %s", o.wait))
			case <-ctx.Done():
			}
		}()
	}
	group.Wait()
	return tally.failure()
}

func dial(ctx context.Context, o options, c *client) error {
	switch o.mode {
	case "raw":
		return dialRaw(o, c)
	case "drpc":
		return dialDRPC(ctx, o, c)
	case "sdk":
		return dialSDK(ctx, o, c)
	default:
		peer.Fail("--mode %q is none of raw, drpc and sdk", o.mode)
		return nil
	}
}

func publishAll(ctx context.Context, o options, speaker *publisher, tally *tally) error {
	for number := 1; number <= o.updates; number++ {
		due := time.After(o.interval)
		tally.sent[number] = time.Now()
		if err := speaker.publish(number); err != nil {
			return fmt.Errorf("update %d: %w", number, err)
		}
		if o.afterUpdate || number == o.updates {
			if err := tally.waitAll(ctx, number, o.wait); err != nil {
				return err
			}
		}
		if number < o.updates {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-due:
			}
		}
	}
	return nil
}
