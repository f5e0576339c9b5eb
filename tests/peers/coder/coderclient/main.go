// Coderclient is Coder's own client of one agent: it dials, tells by which path, and proves that bytes pass.
//
// It prints one JSON object and ends with status 0 if all that was asked for came true, 1 if not, and 2 if
// it was called wrongly.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"time"

	"github.com/google/uuid"

	"github.com/coder/coder/v2/codersdk"
	"github.com/coder/coder/v2/codersdk/workspacesdk"
	"github.com/coder/coder/v2/tailnet"

	"tailnet.test/peers/coder/internal/peer"
)

type options struct {
	blockEndpoints bool
	telemetry      bool
	wait           time.Duration
	path           string
	pings          int
	port           uint
	echoBytes      int64
	echoRounds     int
	echoFor        time.Duration
	udp            int
	udpFor         time.Duration
	sinkPort       uint
	sinkBytes      int64
	hold           time.Duration
}

func main() {
	var (
		serverURL = flag.String("url", os.Getenv("CODER_URL"), "URL of the server")
		token     = flag.String("token", os.Getenv("CODER_SESSION_TOKEN"), "API key of a user")
		agentID   = flag.String("agent", "", "UUID of the agent")
		debug     = flag.Bool("debug", false, "log everything")
		o         options
	)
	flag.BoolVar(&o.blockEndpoints, "block-endpoints", false, "have no direct paths, as --disable-direct-connections")
	flag.BoolVar(&o.telemetry, "telemetry", false, "send network telemetry to the server")
	flag.DurationVar(&o.wait, "wait", 20*time.Second, "time for the dial, and for each thing after it")
	flag.StringVar(&o.path, "path", "", "ping until this path is in use: p2p or derp")
	flag.IntVar(&o.pings, "pings", 3, "number of pings to report")
	flag.UintVar(&o.port, "port", 0, "port of an echo at the agent; none if 0")
	flag.Int64Var(&o.echoBytes, "echo-bytes", 0, "random bytes to have echoed and compared")
	flag.IntVar(&o.echoRounds, "echo-rounds", 0, "64-byte echoes to time, one after the other")
	flag.DurationVar(&o.echoFor, "echo-for", 0, "keep one TCP connection echoing for this long; tells the worst gap")
	flag.IntVar(&o.udp, "udp", 0, "UDP datagrams to have echoed")
	flag.DurationVar(&o.udpFor, "udp-for", 0, "have datagrams echoed, one after the other, for this long; tells the worst gap")
	flag.UintVar(&o.sinkPort, "sink-port", 0, "port of a sink at the agent")
	flag.Int64Var(&o.sinkBytes, "sink-bytes", 0, "random bytes to send to the sink, timed")
	flag.DurationVar(&o.hold, "hold", 0, "stay connected for this long at the end")
	flag.Parse()
	ctx, cancel := peer.Context()
	defer cancel()

	id, err := uuid.Parse(*agentID)
	if err != nil {
		peer.Fail("--agent: %v", err)
	}
	client := codersdk.New(peer.ParseURL(*serverURL))
	client.SetSessionToken(*token)
	client.SetLogger(peer.Logger(*debug))

	report := peer.Event{"agent": id}
	err = run(ctx, workspacesdk.New(client), id, o, *debug, report)
	report["ok"] = err == nil
	if err != nil {
		report["error"] = err.Error()
		var refused *codersdk.Error
		if errors.As(err, &refused) {
			report["status"] = refused.StatusCode()
			report["response"] = refused.Response
		}
	}
	peer.Print(report)
	if err != nil {
		os.Exit(1)
	}
}

func run(
	ctx context.Context, client *workspacesdk.Client, id uuid.UUID, o options, debug bool, report peer.Event,
) error {
	dialCtx, cancel := context.WithTimeout(ctx, o.wait)
	defer cancel()
	began := time.Now()
	conn, err := client.DialAgent(dialCtx, id, &workspacesdk.DialAgentOptions{
		Logger:          peer.Logger(debug),
		BlockEndpoints:  o.blockEndpoints,
		EnableTelemetry: o.telemetry,
	})
	if err != nil {
		return fmt.Errorf("dial: %w", err)
	}
	report["dial_ms"] = peer.Milliseconds(time.Since(began))

	t := &tunnel{
		conn: conn, address: tailnet.TailscaleServicePrefix.AddrFromUUID(id), wait: o.wait, report: report,
	}
	err = t.exercise(ctx, o)
	if node := conn.Node(); node != nil {
		report["node"] = peer.Event{
			"preferred_derp":        node.PreferredDERP,
			"derp_latency":          node.DERPLatency,
			"endpoints":             node.Endpoints,
			"derp_forced_websocket": node.DERPForcedWebsocket,
		}
	}
	began = time.Now()
	closed := conn.Close()
	report["close_ms"] = peer.Milliseconds(time.Since(began))
	if err == nil && closed != nil {
		err = fmt.Errorf("close: %w", closed)
	}
	return err
}
