package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"tailnet.test/peers/coder/internal/peer"
)

const (
	stayBytes = 10_000
	// One try: a TCP connection that began while there was no path does not learn of one at once.
	stayTry = 3 * time.Second
)

// stay keeps the tunnel until SIGTERM. Each SIGUSR1 asks whether the agent can be reached: bytes have to come
// back on a new connection within the time for each thing, however often that is tried.
func (t *tunnel) stay(ctx context.Context, port uint16) error {
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, syscall.SIGUSR1)
	peer.Emit("staying", peer.Event{"path": t.report["path"]})
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-asked:
			if err := t.reach(ctx, port); err != nil {
				return err
			}
		}
	}
}

func (t *tunnel) reach(ctx context.Context, port uint16) error {
	ctx, cancel := context.WithTimeout(ctx, t.wait)
	defer cancel()
	began := time.Now()
	for tries := 1; ; tries++ {
		tryCtx, cancelTry := context.WithTimeout(ctx, stayTry)
		err := t.echo(tryCtx, port, stayBytes)
		cancelTry()
		if err == nil {
			peer.Emit("reached", peer.Event{"tries": tries, "ms": peer.Milliseconds(time.Since(began))})
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not reached in %d tries: %w", tries, err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}
