package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"

	"github.com/google/uuid"
	"github.com/hashicorp/yamux"
	"google.golang.org/protobuf/proto"
	"storj.io/drpc"

	"github.com/coder/coder/v2/codersdk"
	"github.com/coder/coder/v2/codersdk/drpcsdk"
	"github.com/coder/coder/v2/codersdk/workspacesdk"
	"github.com/coder/coder/v2/tailnet"
	tailnetproto "github.com/coder/coder/v2/tailnet/proto"
	"github.com/coder/websocket"

	"tailnet.test/peers/coder/internal/peer"
	"tailnet.test/peers/coder/internal/rawdrpc"
)

const coordinateMethod = "/coder.tailnet.v2.Tailnet/Coordinate"

func coordinateURL(o options) *url.URL {
	return o.serverURL.JoinPath("/api/v2/workspaceagents", o.agent.String(), "coordinate")
}

// tunnelRequest is an encoded CoordinateRequest that adds a tunnel to the agent.
func tunnelRequest(agent uuid.UUID) []byte {
	request, err := proto.Marshal(&tailnetproto.CoordinateRequest{
		AddTunnel: &tailnetproto.CoordinateRequest_Tunnel{Id: agent[:]},
	})
	if err != nil {
		peer.Fail("%v", err)
	}
	return request
}

// dialDRPC connects by the libraries of Coder's client: websocket, yamux and dRPC.
func dialDRPC(ctx context.Context, o options, c *client) error {
	target := coordinateURL(o)
	target.RawQuery = "version=2.0"
	dialCtx, cancel := context.WithTimeout(ctx, o.wait)
	defer cancel()
	conn, response, err := websocket.Dial(dialCtx, target.String(), &websocket.DialOptions{
		HTTPHeader:      http.Header{codersdk.SessionTokenHeader: {o.token}},
		CompressionMode: websocket.CompressionDisabled,
	})
	if err != nil {
		if response != nil {
			return codersdk.ReadBodyAsError(response)
		}
		return err
	}
	_, stream := codersdk.WebsocketNetConn(ctx, conn, websocket.MessageBinary)
	config := yamux.DefaultConfig()
	config.LogOutput = io.Discard
	session, err := yamux.Client(stream, config)
	if err != nil {
		return err
	}
	calls := drpcsdk.MultiplexedConn(session)
	call, err := calls.NewStream(ctx, coordinateMethod, rawdrpc.Encoding{})
	if err != nil {
		return err
	}
	request := rawdrpc.Message(tunnelRequest(o.agent))
	if err := call.MsgSend(&request, rawdrpc.Encoding{}); err != nil {
		return err
	}
	go receiveDRPC(ctx, c, call)
	return nil
}

func receiveDRPC(ctx context.Context, c *client, call drpc.Stream) {
	for {
		var message rawdrpc.Message
		err := call.MsgRecv(&message, rawdrpc.Encoding{})
		if err == nil {
			err = c.receive(message)
		}
		if err != nil {
			if ctx.Err() == nil {
				c.lost(err)
			}
			return
		}
	}
}

// countingConn is Coder's own client of a tailnet, which we look over the shoulder of.
type countingConn struct {
	*tailnet.Conn
	client *client
}

func (c countingConn) UpdatePeers(updates []*tailnetproto.CoordinateResponse_PeerUpdate) error {
	if err := c.client.receiveUpdates(updates, nil); err != nil {
		c.client.lost(err)
	}
	return c.Conn.UpdatePeers(updates)
}

// dialSDK is what workspacesdk.DialAgent does, but for waiting until the agent answers: ours cannot.
func dialSDK(ctx context.Context, o options, c *client) error {
	sdk := codersdk.New(o.serverURL)
	sdk.SetSessionToken(o.token)
	logger := peer.Logger(false)
	info, err := workspacesdk.New(sdk).AgentConnectionInfo(ctx, o.agent)
	if err != nil {
		return fmt.Errorf("connection info: %w", err)
	}
	dialer := workspacesdk.NewWebsocketDialer(logger, coordinateURL(o), &websocket.DialOptions{
		HTTPClient:      sdk.HTTPClient,
		HTTPHeader:      http.Header{codersdk.SessionTokenHeader: {o.token}},
		CompressionMode: websocket.CompressionDisabled,
	})
	address := netip.PrefixFrom(tailnet.TailscaleServicePrefix.RandomAddr(), 128)
	conn, err := tailnet.NewConn(&tailnet.Options{
		Addresses: []netip.Prefix{address},
		DERPMap:   info.DERPMap,
		Logger:    logger,
	})
	if err != nil {
		return err
	}
	coordination := tailnet.NewTunnelSrcCoordController(logger, countingConn{conn, c})
	coordination.AddDestination(o.agent)
	controller := tailnet.NewController(logger, dialer)
	controller.CoordCtrl = coordination
	controller.DERPCtrl = tailnet.NewBasicDERPController(logger, conn)
	controller.Run(ctx)
	select {
	case err := <-dialer.Connected():
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}
