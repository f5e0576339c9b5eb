// Coderagent is Coder's own workspace agent, with things to talk to beside it and a voice.
//
// It prints one JSON line for each thing that happens between it and the server: "start" (with the ports of
// the echo and the sink), "connected", "lifecycle", "node" (its own, as published), "peer" (what the
// coordinator told it), "derp_map", "ready_for_handshake", "disconnected", "ready" once (lifecycle READY and a node
// published) and "stopped".
package main

import (
	"context"
	"flag"
	"os"
	"sync"

	"github.com/google/uuid"
	"storj.io/drpc"

	"cdr.dev/slog"
	"github.com/coder/coder/v2/agent"
	agentproto "github.com/coder/coder/v2/agent/proto"
	"github.com/coder/coder/v2/buildinfo"
	"github.com/coder/coder/v2/codersdk/agentsdk"
	"github.com/coder/coder/v2/tailnet/proto"

	"tailnet.test/peers/coder/internal/peer"
)

func main() {
	var (
		serverURL = flag.String("url", os.Getenv("CODER_AGENT_URL"), "URL of the server")
		token     = flag.String("token", os.Getenv("CODER_AGENT_TOKEN"), "token of the agent")
		echo      = flag.String("echo", "127.0.0.1:0", "where the TCP and UDP echo listens")
		sink      = flag.String("sink", "127.0.0.1:0", "where the TCP sink listens")
		folder    = flag.String("dir", "", "folder for the agent's files; default is a temporary one")
		debug     = flag.Bool("debug", false, "log everything")
	)
	flag.Parse()
	ctx, cancel := peer.Context()
	defer cancel()
	logger := peer.Logger(*debug)

	echoPort := serveEcho(*echo)
	sinkPort := serveSink(*sink)
	if *folder == "" {
		made, err := os.MkdirTemp("", "coderagent-")
		if err != nil {
			peer.Fail("%v", err)
		}
		defer os.RemoveAll(made)
		*folder = made
	}

	client := agentsdk.New(peer.ParseURL(*serverURL))
	client.SetSessionToken(*token)
	client.SDK.SetLogger(logger)
	peer.Emit("start", peer.Event{
		"pid": os.Getpid(), "version": buildinfo.Version(), "echo": echoPort, "sink": sinkPort,
	})
	running := agent.New(agent.Options{
		Client:        &watchedClient{Client: client},
		Logger:        logger,
		LogDir:        *folder,
		TempDir:       *folder,
		ScriptDataDir: *folder,
		ExchangeToken: func(context.Context) (string, error) { return *token, nil },
	})

	<-ctx.Done()
	peer.Emit("stopping", nil)
	err := running.Close()
	fields := peer.Event{}
	if err != nil {
		fields["error"] = err.Error()
		logger.Error(context.Background(), "close", slog.Error(err))
	}
	peer.Emit("stopped", fields)
}

// progress says "ready" when the agent can be reached for the first time.
type progress struct {
	sync.Mutex
	lifecycle, node, said bool
}

var reached progress

func (p *progress) update(lifecycle, node bool) {
	p.Lock()
	defer p.Unlock()
	p.lifecycle = p.lifecycle || lifecycle
	p.node = p.node || node
	if p.lifecycle && p.node && !p.said {
		p.said = true
		peer.Emit("ready", nil)
	}
}

// watchedClient lets the agent do as it does, and tells about it.
type watchedClient struct {
	*agentsdk.Client
}

func (c *watchedClient) ConnectRPC26(ctx context.Context) (
	agentproto.DRPCAgentClient26, proto.DRPCTailnetClient26, error,
) {
	agentClient, tailnetClient, err := c.Client.ConnectRPC26(ctx)
	if err != nil {
		peer.Emit("refused", peer.Event{"error": err.Error()})
		return nil, nil, err
	}
	peer.Emit("connected", nil)
	go tellEnd(agentClient.DRPCConn())
	return watchedAgent{agentClient}, watchedTailnet{tailnetClient}, nil
}

func tellEnd(conn drpc.Conn) {
	<-conn.Closed()
	peer.Emit("disconnected", nil)
}

type watchedAgent struct {
	agentproto.DRPCAgentClient26
}

func (a watchedAgent) GetManifest(
	ctx context.Context, request *agentproto.GetManifestRequest,
) (*agentproto.Manifest, error) {
	manifest, err := a.DRPCAgentClient26.GetManifest(ctx, request)
	if err == nil {
		id, _ := uuid.FromBytes(manifest.AgentId)
		peer.Emit("manifest", peer.Event{
			"agent":                      id,
			"name":                       manifest.AgentName,
			"workspace":                  manifest.WorkspaceName,
			"owner":                      manifest.OwnerUsername,
			"disable_direct_connections": manifest.DisableDirectConnections,
			"derp_force_websockets":      manifest.DerpForceWebsockets,
		})
	}
	return manifest, err
}

func (a watchedAgent) UpdateLifecycle(
	ctx context.Context, request *agentproto.UpdateLifecycleRequest,
) (*agentproto.Lifecycle, error) {
	answer, err := a.DRPCAgentClient26.UpdateLifecycle(ctx, request)
	if err == nil {
		state := request.GetLifecycle().GetState()
		peer.Emit("lifecycle", peer.Event{"state": state.String()})
		reached.update(state == agentproto.Lifecycle_READY, false)
	}
	return answer, err
}

type watchedTailnet struct {
	proto.DRPCTailnetClient26
}

func (t watchedTailnet) Coordinate(ctx context.Context) (proto.DRPCTailnet_CoordinateClient, error) {
	stream, err := t.DRPCTailnetClient26.Coordinate(ctx)
	if err != nil {
		return nil, err
	}
	return watchedStream{stream}, nil
}

func (t watchedTailnet) StreamDERPMaps(
	ctx context.Context, request *proto.StreamDERPMapsRequest,
) (proto.DRPCTailnet_StreamDERPMapsClient, error) {
	stream, err := t.DRPCTailnetClient26.StreamDERPMaps(ctx, request)
	if err != nil {
		return nil, err
	}
	return watchedMaps{stream}, nil
}

type watchedMaps struct {
	proto.DRPCTailnet_StreamDERPMapsClient
}

func (m watchedMaps) Recv() (*proto.DERPMap, error) {
	derpMap, err := m.DRPCTailnet_StreamDERPMapsClient.Recv()
	if err != nil {
		return nil, err
	}
	ports := map[int64]int32{}
	for id, region := range derpMap.Regions {
		for _, node := range region.Nodes {
			ports[id] = node.DerpPort
		}
	}
	peer.Emit("derp_map", peer.Event{"ports": ports})
	return derpMap, nil
}

type watchedStream struct {
	proto.DRPCTailnet_CoordinateClient
}

func (s watchedStream) Send(request *proto.CoordinateRequest) error {
	err := s.DRPCTailnet_CoordinateClient.Send(request)
	if err != nil {
		return err
	}
	if node := request.GetUpdateSelf().GetNode(); node != nil {
		peer.Emit("node", describeNode(node))
		reached.update(false, node.PreferredDerp != 0)
	}
	for _, ready := range request.GetReadyForHandshake() {
		peer.Emit("ready_for_handshake", peer.Event{"id": idText(ready.Id)})
	}
	if request.GetDisconnect() != nil {
		peer.Emit("disconnect", nil)
	}
	return nil
}

func (s watchedStream) Recv() (*proto.CoordinateResponse, error) {
	response, err := s.DRPCTailnet_CoordinateClient.Recv()
	if err != nil {
		return nil, err
	}
	if response.Error != "" {
		peer.Emit("coordinate_error", peer.Event{"error": response.Error})
	}
	for _, update := range response.GetPeerUpdates() {
		fields := peer.Event{
			"id": idText(update.Id), "kind": update.Kind.String(), "reason": update.Reason,
		}
		if update.Node != nil {
			fields["node"] = describeNode(update.Node)
		}
		peer.Emit("peer", fields)
	}
	return response, nil
}

func describeNode(node *proto.Node) peer.Event {
	return peer.Event{
		"preferred_derp":        node.PreferredDerp,
		"endpoints":             node.Endpoints,
		"addresses":             node.Addresses,
		"derp_forced_websocket": node.DerpForcedWebsocket,
	}
}

func idText(id []byte) string {
	parsed, err := uuid.FromBytes(id)
	if err != nil {
		return err.Error()
	}
	return parsed.String()
}
