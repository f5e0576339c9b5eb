package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"

	"github.com/coder/coder/v2/codersdk/workspacesdk"

	"tailnet.test/peers/coder/internal/peer"
)

// tunnel is a connection to an agent that was dialled, and the report about it.
type tunnel struct {
	conn    *workspacesdk.AgentConn
	address netip.Addr
	wait    time.Duration
	report  peer.Event
}

func (t *tunnel) exercise(ctx context.Context, o options) error {
	steps := []struct {
		name   string
		wanted bool
		run    func(context.Context) error
	}{
		{"path", o.path != "", func(ctx context.Context) error { return t.awaitPath(ctx, o.path) }},
		{"ping", o.pings > 0, func(ctx context.Context) error { return t.ping(ctx, o.pings) }},
		{"echo", o.echoBytes > 0, func(ctx context.Context) error {
			return t.echo(ctx, uint16(o.port), o.echoBytes)
		}},
		{"echo rounds", o.echoRounds > 0, func(ctx context.Context) error {
			return t.echoRounds(ctx, uint16(o.port), o.echoRounds)
		}},
		{"udp", o.udp > 0, func(ctx context.Context) error { return t.udp(ctx, uint16(o.port), o.udp) }},
		{"sink", o.sinkBytes > 0, func(ctx context.Context) error {
			return t.sink(ctx, uint16(o.sinkPort), o.sinkBytes)
		}},
	}
	for _, step := range steps {
		if !step.wanted {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, t.wait)
		err := step.run(ctx)
		cancel()
		if err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
	}
	if o.echoFor > 0 {
		if err := t.echoFor(ctx, uint16(o.port), o.echoFor); err != nil {
			return fmt.Errorf("echo for %s: %w", o.echoFor, err)
		}
	}
	if o.udpFor > 0 {
		if err := t.udpFor(ctx, uint16(o.port), o.udpFor); err != nil {
			return fmt.Errorf("udp for %s: %w", o.udpFor, err)
		}
	}
	if o.hold > 0 {
		select {
		case <-ctx.Done():
		case <-time.After(o.hold):
		}
		return t.ping(ctx, 1)
	}
	return nil
}

// pingOnce reports which path a disco ping took, and how long it did.
func (t *tunnel) pingOnce(ctx context.Context) (peer.Event, string, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	latency, direct, result, err := t.conn.Ping(ctx)
	if err != nil {
		return nil, "", err
	}
	path := "derp"
	if direct {
		path = "p2p"
	}
	return peer.Event{
		"ms":          peer.Milliseconds(latency),
		"path":        path,
		"endpoint":    result.Endpoint,
		"derp_region": result.DERPRegionID,
		"derp_code":   result.DERPRegionCode,
	}, path, nil
}

func (t *tunnel) awaitPath(ctx context.Context, wanted string) error {
	began := time.Now()
	for {
		_, path, err := t.pingOnce(ctx)
		if err == nil && path == wanted {
			t.report["path_ms"] = peer.Milliseconds(time.Since(began))
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the path is %q (%v) and not %q", path, err, wanted)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (t *tunnel) ping(ctx context.Context, count int) error {
	pings, _ := t.report["pings"].([]peer.Event)
	for range count {
		ping, path, err := t.pingOnce(ctx)
		if err != nil {
			return err
		}
		pings = append(pings, ping)
		t.report["pings"] = pings
		t.report["path"] = path
		t.report["derp_region"] = ping["derp_region"]
	}
	return nil
}

func (t *tunnel) dial(ctx context.Context, port uint16) (net.Conn, error) {
	conn, err := t.conn.DialContextTCP(ctx, netip.AddrPortFrom(t.address, port))
	if err != nil {
		return nil, err
	}
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline)
	}
	return conn, nil
}

// echo has random bytes echoed and compares them; what was sent is never kept whole.
func (t *tunnel) echo(ctx context.Context, port uint16, count int64) error {
	conn, err := t.dial(ctx, port)
	if err != nil {
		return err
	}
	defer conn.Close()
	began := time.Now()
	var key [32]byte
	binary.BigEndian.PutUint64(key[:], rand.Uint64())
	sent := make(chan error, 1)
	go func() {
		_, err := io.CopyN(conn, rand.NewChaCha8(key), count)
		sent <- err
	}()
	wanted := rand.NewChaCha8(key)
	got, want := make([]byte, 65536), make([]byte, 65536)
	for received := int64(0); received < count; {
		n, err := conn.Read(got[:min(int64(len(got)), count-received)])
		if err != nil {
			return fmt.Errorf("after %d of %d bytes: %w", received, count, err)
		}
		_, _ = wanted.Read(want[:n])
		if !bytes.Equal(got[:n], want[:n]) {
			return fmt.Errorf("other bytes came back, between %d and %d", received, received+int64(n))
		}
		received += int64(n)
	}
	if err := <-sent; err != nil {
		return err
	}
	t.report["echo"] = peer.Event{
		"bytes": count, "equal": true, "ms": peer.Milliseconds(time.Since(began)),
	}
	return nil
}

func (t *tunnel) echoRounds(ctx context.Context, port uint16, count int) error {
	conn, err := t.dial(ctx, port)
	if err != nil {
		return err
	}
	defer conn.Close()
	durations := make([]time.Duration, 0, count)
	for range count {
		began := time.Now()
		if err := roundTrip(conn, began); err != nil {
			return err
		}
		durations = append(durations, time.Since(began))
	}
	t.report["echo_rounds"] = peer.Quantiles(durations)
	return nil
}

// echoFor finds out what an open TCP connection feels of what happens meanwhile. It does not survive
// everything: Coder's TCP gives up after five retransmissions, which is 6 to 13 s without an answer.
func (t *tunnel) echoFor(ctx context.Context, port uint16, length time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, length+t.wait)
	defer cancel()
	conn, err := t.dial(ctx, port)
	if err != nil {
		return err
	}
	defer conn.Close()
	// Others wait for this line before they disturb anything.
	peer.Emit("echoing", peer.Event{"path": t.report["path"]})
	var worst time.Duration
	rounds := 0
	for began := time.Now(); time.Since(began) < length; rounds++ {
		round := time.Now()
		if err := roundTrip(conn, round); err != nil {
			return fmt.Errorf("after %d rounds: %w", rounds, err)
		}
		worst = max(worst, time.Since(round))
		time.Sleep(2 * time.Millisecond)
	}
	t.report["echo_for"] = peer.Event{
		"rounds": rounds, "worst_gap_ms": peer.Milliseconds(worst),
	}
	return t.ping(ctx, 1)
}

// udpFor finds out what the tunnel itself feels: a datagram that is lost is not missed.
func (t *tunnel) udpFor(ctx context.Context, port uint16, length time.Duration) error {
	conn, err := t.conn.DialContextUDP(ctx, netip.AddrPortFrom(t.address, port))
	if err != nil {
		return err
	}
	defer conn.Close()
	var worst time.Duration
	rounds, lost := 0, 0
	began := time.Now()
	for last := began; time.Since(began) < length && ctx.Err() == nil; {
		sent := binary.BigEndian.AppendUint64(nil, uint64(rounds+lost))
		answered, err := exchange(conn, sent, 100*time.Millisecond)
		if err != nil {
			return err
		}
		if !answered {
			lost++
			continue
		}
		worst = max(worst, time.Since(last))
		last = time.Now()
		if rounds++; rounds == 1 {
			peer.Emit("echoing", peer.Event{"path": t.report["path"]})
		}
		time.Sleep(2 * time.Millisecond)
	}
	t.report["udp_for"] = peer.Event{
		"rounds": rounds, "lost": lost, "worst_gap_ms": peer.Milliseconds(worst),
	}
	return t.ping(ctx, 1)
}

// exchange sends one datagram that is unlike all others, and waits for it to come back. Answers to ones that
// were given up come late, and count for nothing.
func exchange(conn net.Conn, sent []byte, limit time.Duration) (answered bool, err error) {
	if _, err := conn.Write(sent); err != nil {
		return false, err
	}
	_ = conn.SetReadDeadline(time.Now().Add(limit))
	buffer := make([]byte, 2048)
	for {
		n, err := conn.Read(buffer)
		if isTimeout(err) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		if bytes.Equal(buffer[:n], sent) {
			return true, nil
		}
	}
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

// roundTrip sends 64 bytes that no other round sends, and takes them back.
func roundTrip(conn net.Conn, now time.Time) error {
	var sent, got [64]byte
	binary.BigEndian.PutUint64(sent[:], uint64(now.UnixNano()))
	if _, err := conn.Write(sent[:]); err != nil {
		return err
	}
	if _, err := io.ReadFull(conn, got[:]); err != nil {
		return err
	}
	if sent != got {
		return fmt.Errorf("other bytes came back")
	}
	return nil
}

// udp sends datagrams one after the other; each may be lost and is then sent again.
func (t *tunnel) udp(ctx context.Context, port uint16, count int) error {
	conn, err := t.conn.DialContextUDP(ctx, netip.AddrPortFrom(t.address, port))
	if err != nil {
		return err
	}
	defer conn.Close()
	var durations []time.Duration
	lost := 0
	for len(durations) < count {
		sent := make([]byte, 1000)
		binary.BigEndian.PutUint64(sent, uint64(len(durations)+lost))
		began := time.Now()
		answered, err := exchange(conn, sent, time.Second)
		switch {
		case err != nil:
			return err
		case answered:
			durations = append(durations, time.Since(began))
		case ctx.Err() != nil || lost == count:
			return fmt.Errorf("%d datagrams were lost, %d answered", lost, len(durations))
		default:
			lost++
		}
	}
	summary := peer.Quantiles(durations)
	summary["lost"] = lost
	t.report["udp"] = summary
	return nil
}

// sink sends bytes as fast as they go; the sink proves that all of them came.
func (t *tunnel) sink(ctx context.Context, port uint16, count int64) error {
	conn, err := t.dial(ctx, port)
	if err != nil {
		return err
	}
	defer conn.Close()
	var key [32]byte
	binary.BigEndian.PutUint64(key[:], rand.Uint64())
	hash := sha256.New()
	source := io.TeeReader(io.LimitReader(rand.NewChaCha8(key), count), hash)
	began := time.Now()
	if _, err := conn.Write(binary.BigEndian.AppendUint64(nil, uint64(count))); err != nil {
		return err
	}
	if _, err := io.CopyBuffer(conn, onlyReader{source}, make([]byte, 1<<18)); err != nil {
		return err
	}
	answer := make([]byte, 8+sha256.Size)
	if _, err := io.ReadFull(conn, answer); err != nil {
		return fmt.Errorf("answer: %w", err)
	}
	spent := time.Since(began)
	if arrived := binary.BigEndian.Uint64(answer); arrived != uint64(count) {
		return fmt.Errorf("%d of %d bytes arrived", arrived, count)
	}
	if !bytes.Equal(answer[8:], hash.Sum(nil)) {
		return fmt.Errorf("other bytes arrived")
	}
	t.report["sink"] = peer.Event{
		"bytes": count, "equal": true, "ms": peer.Milliseconds(spent),
		"mb_per_s": float64(count) / 1e6 / spent.Seconds(),
	}
	return nil
}

// onlyReader hides everything but Read, so that the copy uses our buffer.
type onlyReader struct{ io.Reader }
