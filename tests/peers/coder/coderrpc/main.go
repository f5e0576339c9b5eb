// Coderrpc speaks the Tailnet API directly, also in ways that Coder's own clients never would.
//
// It dials one of the websocket routes, reads steps from standard input, one JSON object a line, and prints
// what comes back, one JSON object a line. After the last step it closes the connection and ends; the
// status is 1 if it was refused or if something waited for did not come.
//
// Steps, by their "op":
//
//	coordinate     send one CoordinateRequest: "request" is the message as protobuf JSON
//	               (ids are base64 there), and/or "add_tunnel", "remove_tunnel": a UUID,
//	               "ready_for_handshake": UUIDs, "disconnect": true. In place of a UUID, "hex:…" sends
//	               exactly these bytes. Answers come as "coordinate" lines.
//	coordinate_end half-close the Coordinate stream
//	derp_maps      begin StreamDERPMaps; "derp_map" lines
//	updates        begin WorkspaceUpdates for "owner" (UUID, or "hex:…"); "updates" lines
//	resume_token   call RefreshResumeToken; a "resume_token" line
//	telemetry      call PostTelemetry with "events" empty ones; a "telemetry" line
//	unary          call "method" with the bytes "hex"; a "reply" line
//	wait           until there have been "count" (1) lines of "event" since the beginning, at most
//	               "seconds" (5)
//	sleep          "seconds"
//	drop           close the TCP connection without a word
//
// Streams end with a line "<name>_end": "eof", or "error" and "code". A connection that the server ends is
// a "closed" line, with the code of the websocket.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync/atomic"

	"github.com/hashicorp/yamux"

	"github.com/coder/coder/v2/codersdk"
	"github.com/coder/coder/v2/codersdk/drpcsdk"
	"github.com/coder/websocket"

	"tailnet.test/peers/coder/internal/peer"
)

func main() {
	var (
		serverURL = flag.String("url", os.Getenv("CODER_URL"), "URL of the server")
		token     = flag.String("token", os.Getenv("CODER_SESSION_TOKEN"), "API key, or token of an agent")
		path      = flag.String("path", "/api/v2/tailnet",
			"route; {agent} in it stands for --agent. Others: /api/v2/workspaceagents/{agent}/coordinate, "+
				"/api/v2/workspaceagents/me/rpc")
		agent   = flag.String("agent", "", "UUID of an agent")
		version = flag.String("version", "2.3", "API version to ask for; \"none\" asks for none")
		resume  = flag.String("resume-token", "", "resume token to dial with")
		origin  = flag.String("origin", "", "Origin header to dial with")
	)
	flag.Parse()
	ctx, cancel := peer.Context()
	defer cancel()

	target := dialURL(*serverURL, *path, *agent, *version, *resume)
	header := http.Header{codersdk.SessionTokenHeader: {*token}}
	if *origin != "" {
		header.Set("Origin", *origin)
	}
	var raw net.Conn
	transport := &http.Transport{DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, address)
		raw = conn
		return conn, err
	}}
	conn, response, err := websocket.Dial(ctx, target, &websocket.DialOptions{
		HTTPClient: &http.Client{Transport: transport}, HTTPHeader: header,
		CompressionMode: websocket.CompressionDisabled,
	})
	if err != nil {
		refused(response, err)
	}
	peer.Emit("connected", nil)
	_, stream := codersdk.WebsocketNetConn(ctx, conn, websocket.MessageBinary)
	config := yamux.DefaultConfig()
	config.LogOutput = io.Discard
	p := newPerformer(ctx, raw)
	telling := &tellingConn{Conn: stream, performer: p}
	session, err := yamux.Client(telling, config)
	if err != nil {
		peer.Fail("yamux: %v", err)
	}
	p.begin(drpcsdk.MultiplexedConn(session))
	ok := performAll(p)
	// From here on it is we who end it.
	telling.over.Store(true)
	_ = session.Close()
	_ = conn.Close(websocket.StatusNormalClosure, "")
	if !ok {
		os.Exit(1)
	}
}

func dialURL(serverURL, path, agent, version, resume string) string {
	target := peer.ParseURL(serverURL).JoinPath(strings.ReplaceAll(path, "{agent}", agent))
	query := url.Values{}
	if version != "none" {
		query.Set("version", version)
	}
	if resume != "" {
		query.Set("resume_token", resume)
	}
	target.RawQuery = query.Encode()
	return target.String()
}

// refused tells what the server answered in place of 101, and ends the program.
func refused(response *http.Response, err error) {
	if response == nil {
		peer.Emit("refused", peer.Event{"error": err.Error()})
		os.Exit(1)
	}
	fields := peer.Event{"status": response.StatusCode, "type": response.Header.Get("Content-Type")}
	body, _ := io.ReadAll(response.Body)
	if json.Valid(body) {
		fields["body"] = json.RawMessage(body)
	} else {
		fields["body"] = string(body)
	}
	peer.Emit("refused", fields)
	os.Exit(1)
}

// tellingConn says how the server ended the byte stream: for a websocket, its close code and reason.
type tellingConn struct {
	net.Conn
	performer *performer
	over      atomic.Bool
}

func (c *tellingConn) Read(buffer []byte) (int, error) {
	n, err := c.Conn.Read(buffer)
	if err != nil && !c.over.Swap(true) {
		c.performer.emit("closed", peer.Event{
			"code": int(websocket.CloseStatus(err)), "eof": err == io.EOF, "error": err.Error(),
		})
	}
	return n, err
}

func performAll(p *performer) bool {
	scanner := bufio.NewScanner(os.Stdin)
	scanner.Buffer(nil, 16<<20)
	for scanner.Scan() {
		if len(scanner.Bytes()) == 0 {
			continue
		}
		var s step
		if err := json.Unmarshal(scanner.Bytes(), &s); err != nil {
			peer.Fail("step %s: %v", scanner.Text(), err)
		}
		if err := p.perform(s); err != nil {
			peer.Emit("failed", peer.Event{"op": s.Op, "error": fmt.Sprint(err)})
			return false
		}
	}
	return true
}
