package main

import (
	"context"
	"fmt"
	"sync/atomic"

	"google.golang.org/protobuf/types/known/timestamppb"
	"tailscale.com/types/key"

	"github.com/coder/coder/v2/codersdk/agentsdk"
	"github.com/coder/coder/v2/tailnet"
	"github.com/coder/coder/v2/tailnet/proto"
)

// publisher is the agent, as far as the coordinator can tell.
type publisher struct {
	stream proto.DRPCTailnet_CoordinateClient
	end    func()
	node   *proto.Node
	broken atomic.Pointer[error]
}

func newPublisher(ctx context.Context, o options) (*publisher, error) {
	sdk := agentsdk.New(o.serverURL)
	sdk.SetSessionToken(o.agentToken)
	agentClient, tailnetClient, err := sdk.ConnectRPC26(ctx)
	if err != nil {
		return nil, err
	}
	stream, err := tailnetClient.Coordinate(ctx)
	if err != nil {
		return nil, err
	}
	nodeKey, err := key.NewNode().Public().MarshalBinary()
	if err != nil {
		return nil, err
	}
	disco, err := key.NewDisco().Public().MarshalText()
	if err != nil {
		return nil, err
	}
	addresses := []string{
		tailnet.TailscaleServicePrefix.PrefixFromUUID(o.agent).String(),
		tailnet.CoderServicePrefix.PrefixFromUUID(o.agent).String(),
	}
	p := &publisher{
		stream: stream,
		end:    func() { _ = agentClient.DRPCConn().Close() },
		node: &proto.Node{
			Key: nodeKey, Disco: string(disco), PreferredDerp: 999,
			DerpLatency: map[string]float64{"999-v4": 0.001},
			Addresses:   addresses, AllowedIps: addresses,
		},
	}
	for number := range o.endpoints {
		p.node.Endpoints = append(p.node.Endpoints, fmt.Sprintf("198.51.100.%d:40000", number+1))
	}
	go p.drain()
	return p, nil
}

// drain reads what the coordinator says to the agent: nodes of clients, if they publish any.
func (p *publisher) drain() {
	for {
		response, err := p.stream.Recv()
		if err == nil && response.Error != "" {
			err = fmt.Errorf("coordinate: %s", response.Error)
		}
		if err != nil {
			p.broken.Store(&err)
			return
		}
	}
}

// publish sends a node whose id is the number of the update.
func (p *publisher) publish(number int) error {
	if broken := p.broken.Load(); broken != nil {
		return *broken
	}
	p.node.Id = int64(number)
	p.node.AsOf = timestamppb.Now()
	return p.stream.Send(&proto.CoordinateRequest{UpdateSelf: &proto.CoordinateRequest_UpdateSelf{Node: p.node}})
}

func (p *publisher) close() {
	p.end()
}
