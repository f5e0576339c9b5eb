package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"storj.io/drpc"
	"storj.io/drpc/drpcerr"

	tailnetproto "github.com/coder/coder/v2/tailnet/proto"

	"tailnet.test/peers/coder/internal/peer"
	"tailnet.test/peers/coder/internal/rawdrpc"
)

type step struct {
	Op                string          `json:"op"`
	Request           json.RawMessage `json:"request"`
	AddTunnel         string          `json:"add_tunnel"`
	RemoveTunnel      string          `json:"remove_tunnel"`
	ReadyForHandshake []string        `json:"ready_for_handshake"`
	Disconnect        bool            `json:"disconnect"`
	Owner             string          `json:"owner"`
	Events            int             `json:"events"`
	Method            string          `json:"method"`
	Hex               string          `json:"hex"`
	Event             string          `json:"event"`
	Count             int             `json:"count"`
	Seconds           float64         `json:"seconds"`
}

type performer struct {
	ctx        context.Context
	raw        net.Conn
	conn       drpc.Conn
	client     tailnetproto.DRPCTailnetClient
	coordinate tailnetproto.DRPCTailnet_CoordinateClient

	mu      sync.Mutex
	counts  map[string]int
	changed chan struct{}
}

func newPerformer(ctx context.Context, raw net.Conn) *performer {
	return &performer{
		ctx: ctx, raw: raw, counts: make(map[string]int), changed: make(chan struct{}),
	}
}

func (p *performer) begin(conn drpc.Conn) {
	p.conn = conn
	p.client = tailnetproto.NewDRPCTailnetClient(conn)
}

// emit prints a line and counts it for "wait".
func (p *performer) emit(name string, fields peer.Event) {
	peer.Emit(name, fields)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.counts[name]++
	close(p.changed)
	p.changed = make(chan struct{})
}

func (p *performer) perform(s step) error {
	switch s.Op {
	case "coordinate":
		return p.sendCoordinate(s)
	case "coordinate_end":
		if p.coordinate == nil {
			return errors.New("nothing was sent yet")
		}
		return p.coordinate.CloseSend()
	case "derp_maps":
		return p.streamMaps()
	case "updates":
		return p.streamUpdates(s)
	case "resume_token":
		return p.resumeToken()
	case "telemetry":
		request := &tailnetproto.TelemetryRequest{}
		for range s.Events {
			request.Events = append(request.Events, &tailnetproto.TelemetryEvent{})
		}
		_, err := p.client.PostTelemetry(p.ctx, request)
		p.emit("telemetry", describeError(err))
		return nil
	case "unary":
		return p.unary(s)
	case "wait":
		return p.wait(s)
	case "sleep":
		time.Sleep(seconds(s.Seconds))
		return nil
	case "drop":
		return p.raw.Close()
	default:
		return fmt.Errorf("no such op")
	}
}

func (p *performer) sendCoordinate(s step) error {
	request := &tailnetproto.CoordinateRequest{}
	if s.Request != nil {
		if err := protojson.Unmarshal(s.Request, request); err != nil {
			return err
		}
	}
	var err error
	tunnel := func(text string) *tailnetproto.CoordinateRequest_Tunnel {
		var id []byte
		id, err = idBytes(text)
		return &tailnetproto.CoordinateRequest_Tunnel{Id: id}
	}
	if s.AddTunnel != "" {
		request.AddTunnel = tunnel(s.AddTunnel)
	}
	if s.RemoveTunnel != "" && err == nil {
		request.RemoveTunnel = tunnel(s.RemoveTunnel)
	}
	for _, text := range s.ReadyForHandshake {
		if err != nil {
			break
		}
		request.ReadyForHandshake = append(request.ReadyForHandshake,
			&tailnetproto.CoordinateRequest_ReadyForHandshake{Id: tunnel(text).Id})
	}
	if err != nil {
		return err
	}
	if s.Disconnect {
		request.Disconnect = &tailnetproto.CoordinateRequest_Disconnect{}
	}
	if p.coordinate == nil {
		p.coordinate, err = p.client.Coordinate(p.ctx)
		if err != nil {
			return err
		}
		go receive(p, "coordinate", p.coordinate.Recv)
	}
	if err := p.coordinate.Send(request); err != nil {
		p.emit("send_failed", describeError(err))
	}
	return nil
}

func (p *performer) streamMaps() error {
	stream, err := p.client.StreamDERPMaps(p.ctx, &tailnetproto.StreamDERPMapsRequest{})
	if err != nil {
		return err
	}
	go receive(p, "derp_map", stream.Recv)
	return nil
}

func (p *performer) streamUpdates(s step) error {
	owner, err := idBytes(s.Owner)
	if err != nil {
		return err
	}
	stream, err := p.client.WorkspaceUpdates(p.ctx,
		&tailnetproto.WorkspaceUpdatesRequest{WorkspaceOwnerId: owner})
	if err != nil {
		return err
	}
	go receive(p, "updates", stream.Recv)
	return nil
}

func (p *performer) resumeToken() error {
	answer, err := p.client.RefreshResumeToken(p.ctx, &tailnetproto.RefreshResumeTokenRequest{})
	fields := describeError(err)
	if err == nil {
		fields = peer.Event{
			"token":              answer.Token,
			"refresh_in_seconds": answer.RefreshIn.AsDuration().Seconds(),
			"expires_in_seconds": time.Until(answer.ExpiresAt.AsTime()).Seconds(),
		}
	}
	p.emit("resume_token", fields)
	return nil
}

func (p *performer) unary(s step) error {
	request, err := hex.DecodeString(s.Hex)
	if err != nil {
		return err
	}
	var answer rawdrpc.Message
	message := rawdrpc.Message(request)
	err = p.conn.Invoke(p.ctx, s.Method, rawdrpc.Encoding{}, &message, &answer)
	fields := describeError(err)
	if err == nil {
		fields = peer.Event{"hex": hex.EncodeToString(answer)}
	}
	p.emit("reply", fields)
	return nil
}

func (p *performer) wait(s step) error {
	late := time.After(seconds(s.Seconds))
	if s.Seconds == 0 {
		late = time.After(5 * time.Second)
	}
	wanted := max(s.Count, 1)
	for {
		p.mu.Lock()
		count, changed := p.counts[s.Event], p.changed
		p.mu.Unlock()
		if count >= wanted {
			return nil
		}
		select {
		case <-changed:
		case <-late:
			return fmt.Errorf("%d of %d %q lines came", count, wanted, s.Event)
		}
	}
}

// receive prints what a stream brings, and "<name>_end" when it is over.
func receive[M proto.Message](p *performer, name string, next func() (M, error)) {
	for {
		message, err := next()
		if err != nil {
			p.emit(name+"_end", describeError(err))
			return
		}
		text, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(message)
		if err != nil {
			peer.Fail("%v", err)
		}
		fields := peer.Event{"message": json.RawMessage(text)}
		if response, ok := any(message).(*tailnetproto.CoordinateResponse); ok {
			fields["peers"] = describePeers(response)
		}
		p.emit(name, fields)
	}
}

// describePeers is the part of a response that people can read, with UUIDs as text.
func describePeers(response *tailnetproto.CoordinateResponse) []peer.Event {
	peers := []peer.Event{}
	for _, update := range response.PeerUpdates {
		id, err := uuid.FromBytes(update.Id)
		if err != nil {
			peer.Fail("peer update: %v", err)
		}
		peers = append(peers, peer.Event{"id": id, "kind": update.Kind.String(), "reason": update.Reason})
	}
	return peers
}

func describeError(err error) peer.Event {
	switch {
	case err == nil:
		return peer.Event{}
	case errors.Is(err, io.EOF):
		return peer.Event{"eof": true}
	default:
		return peer.Event{"error": err.Error(), "code": drpcerr.Code(err)}
	}
}

// idBytes reads a UUID, or "hex:" and any bytes at all.
func idBytes(text string) ([]byte, error) {
	if rest, ok := strings.CutPrefix(text, "hex:"); ok {
		return hex.DecodeString(rest)
	}
	id, err := uuid.Parse(text)
	return id[:], err
}

func seconds(count float64) time.Duration {
	return time.Duration(count * float64(time.Second))
}
