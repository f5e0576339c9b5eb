package main

import (
	"context"
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/google/uuid"
	"github.com/hashicorp/yamux"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/emptypb"
	"storj.io/drpc/drpcmux"
	"storj.io/drpc/drpcserver"

	"cdr.dev/slog"
	agentproto "github.com/coder/coder/v2/agent/proto"
	"github.com/coder/coder/v2/codersdk"
	"github.com/coder/coder/v2/codersdk/drpcsdk"
	"github.com/coder/coder/v2/tailnet"
	"github.com/coder/coder/v2/tailnet/proto"
	"github.com/coder/websocket"
)

// serveAgentClient is /workspaceagents/{agent}/coordinate.
func (s *server) serveAgentClient(
	w http.ResponseWriter, r *http.Request, _ *userEntry, _ *workspaceEntry, agent *agentEntry,
) {
	// No version was ever 1.0, which is no longer served.
	s.serveClient(w, r, "1.0", "client", tailnet.ClientCoordinateeAuth{AgentID: agent.ID})
}

// serveUserClient is /tailnet.
func (s *server) serveUserClient(w http.ResponseWriter, r *http.Request, user *userEntry) {
	r = r.WithContext(context.WithValue(r.Context(), callerKey{}, user))
	s.serveClient(w, r, "2.0", "client", tailnet.ClientUserCoordinateeAuth{Auth: authorizer{s.inventory, user}})
}

type authorizer struct {
	inventory *inventory
	user      *userEntry
}

func (a authorizer) AuthorizeTunnel(_ context.Context, agentID uuid.UUID) error {
	return a.inventory.mayConnect(a.user, agentID)
}

func (s *server) serveClient(
	w http.ResponseWriter, r *http.Request, oldest string, name string, auth tailnet.CoordinateeAuth,
) {
	version := r.URL.Query().Get("version")
	if version == "" {
		version = oldest
	}
	if versionRefused(w, version) {
		return
	}
	peerID := uuid.New()
	if token := r.URL.Query().Get("resume_token"); token != "" {
		resumed, err := s.tokens.VerifyResumeToken(r.Context(), token)
		if err != nil {
			answer(w, http.StatusUnauthorized, codersdk.Response{
				Message: "Invalid resume token",
				Detail:  err.Error(),
				Validations: []codersdk.ValidationError{
					{Field: "resume_token", Detail: "Invalid resume token"},
				},
			})
			return
		}
		peerID = resumed
	}
	conn, err := websocket.Accept(w, r, nil)
	if err != nil {
		return // It has answered.
	}
	ctx, stream := codersdk.WebsocketNetConn(r.Context(), conn, websocket.MessageBinary)
	defer stream.Close()
	err = s.clients.ServeClient(ctx, version, stream, tailnet.StreamID{Name: name, ID: peerID, Auth: auth})
	s.end(conn, err)
}

// end closes a websocket as Coder's server does: 1011 with the text of what went wrong.
func (s *server) end(conn *websocket.Conn, err error) {
	if err == nil || errors.Is(err, io.EOF) || errors.Is(err, context.Canceled) ||
		errors.Is(err, yamux.ErrSessionShutdown) {
		_ = conn.Close(websocket.StatusNormalClosure, "")
		return
	}
	s.logger.Warn(context.Background(), "session ended", slog.Error(err))
	_ = conn.Close(websocket.StatusInternalError, err.Error())
}

// serveAgent is /workspaceagents/me/rpc: the Agent and the Tailnet service on one connection.
func (s *server) serveAgent(w http.ResponseWriter, r *http.Request) {
	version := r.URL.Query().Get("version")
	if version == "" {
		version = "2.0"
	}
	if versionRefused(w, version) {
		return
	}
	token := credential(r)
	workspace, agent := s.inventory.agent(func(a *agentEntry) bool { return a.Token == token })
	if agent == nil {
		answer(w, http.StatusUnauthorized, codersdk.Response{Message: "Workspace agent not authorized."})
		return
	}
	conn, err := websocket.Accept(w, r, nil)
	if err != nil {
		return
	}
	ctx, stream := codersdk.WebsocketNetConn(r.Context(), conn, websocket.MessageBinary)
	defer stream.Close()
	config := yamux.DefaultConfig()
	config.LogOutput = io.Discard
	session, err := yamux.Server(stream, config)
	if err != nil {
		s.end(conn, err)
		return
	}
	defer session.Close()
	mux := drpcmux.New()
	err = errors.Join(
		agentproto.DRPCRegisterAgent(mux, &agentService{server: s, workspace: workspace, agent: agent}),
		proto.DRPCRegisterTailnet(mux, &tailnet.DRPCService{
			CoordPtr:               &s.coordinator,
			Logger:                 s.logger,
			DerpMapUpdateFrequency: s.mapInterval,
			DerpMapFn:              s.derpMap.Load,
			ResumeTokenProvider:    s.tokens,
		}),
	)
	if err != nil {
		s.end(conn, err)
		return
	}
	ctx = tailnet.WithStreamID(ctx, tailnet.StreamID{
		Name: s.inventory.owner().Username + "-" + workspace.Name + "-" + agent.Name,
		ID:   agent.ID,
		Auth: tailnet.AgentCoordinateeAuth{ID: agent.ID},
	})
	served := drpcserver.NewWithOptions(mux, drpcserver.Options{
		Manager: drpcsdk.DefaultDRPCOptions(nil),
		Log:     func(err error) { s.logger.Debug(ctx, "agent session", slog.Error(err)) },
	})
	s.end(conn, served.Serve(ctx, session))
}

// agentService is a stub of the Agent API: it answers what a real agent needs to stay connected.
type agentService struct {
	agentproto.DRPCAgentUnimplementedServer
	server    *server
	workspace *workspaceEntry
	agent     *agentEntry
}

func (a *agentService) GetManifest(
	context.Context, *agentproto.GetManifestRequest,
) (*agentproto.Manifest, error) {
	return &agentproto.Manifest{
		AgentId:                  a.agent.ID[:],
		AgentName:                a.agent.Name,
		OwnerUsername:            a.server.inventory.owner().Username,
		WorkspaceId:              a.workspace.ID[:],
		WorkspaceName:            a.workspace.Name,
		DerpMap:                  tailnet.DERPMapToProto(a.server.derpMap.Load()),
		DerpForceWebsockets:      a.server.forceWebsockets,
		DisableDirectConnections: a.server.blockDirect,
	}, nil
}

func (*agentService) GetServiceBanner(
	context.Context, *agentproto.GetServiceBannerRequest,
) (*agentproto.ServiceBanner, error) {
	return &agentproto.ServiceBanner{}, nil
}

func (*agentService) GetAnnouncementBanners(
	context.Context, *agentproto.GetAnnouncementBannersRequest,
) (*agentproto.GetAnnouncementBannersResponse, error) {
	return &agentproto.GetAnnouncementBannersResponse{}, nil
}

func (*agentService) GetResourcesMonitoringConfiguration(
	context.Context, *agentproto.GetResourcesMonitoringConfigurationRequest,
) (*agentproto.GetResourcesMonitoringConfigurationResponse, error) {
	return &agentproto.GetResourcesMonitoringConfigurationResponse{
		Config: &agentproto.GetResourcesMonitoringConfigurationResponse_Config{
			NumDatapoints: 20, CollectionIntervalSeconds: 10,
		},
	}, nil
}

func (*agentService) PushResourcesMonitoringUsage(
	context.Context, *agentproto.PushResourcesMonitoringUsageRequest,
) (*agentproto.PushResourcesMonitoringUsageResponse, error) {
	return &agentproto.PushResourcesMonitoringUsageResponse{}, nil
}

func (*agentService) UpdateStats(
	context.Context, *agentproto.UpdateStatsRequest,
) (*agentproto.UpdateStatsResponse, error) {
	return &agentproto.UpdateStatsResponse{ReportInterval: durationpb.New(5 * time.Minute)}, nil
}

func (*agentService) UpdateLifecycle(
	_ context.Context, request *agentproto.UpdateLifecycleRequest,
) (*agentproto.Lifecycle, error) {
	return request.Lifecycle, nil
}

func (*agentService) UpdateStartup(
	_ context.Context, request *agentproto.UpdateStartupRequest,
) (*agentproto.Startup, error) {
	return request.Startup, nil
}

func (*agentService) BatchUpdateAppHealths(
	context.Context, *agentproto.BatchUpdateAppHealthRequest,
) (*agentproto.BatchUpdateAppHealthResponse, error) {
	return &agentproto.BatchUpdateAppHealthResponse{}, nil
}

func (*agentService) BatchUpdateMetadata(
	context.Context, *agentproto.BatchUpdateMetadataRequest,
) (*agentproto.BatchUpdateMetadataResponse, error) {
	return &agentproto.BatchUpdateMetadataResponse{}, nil
}

func (*agentService) BatchCreateLogs(
	context.Context, *agentproto.BatchCreateLogsRequest,
) (*agentproto.BatchCreateLogsResponse, error) {
	return &agentproto.BatchCreateLogsResponse{}, nil
}

func (*agentService) ScriptCompleted(
	context.Context, *agentproto.WorkspaceAgentScriptCompletedRequest,
) (*agentproto.WorkspaceAgentScriptCompletedResponse, error) {
	return &agentproto.WorkspaceAgentScriptCompletedResponse{}, nil
}

func (*agentService) ReportConnection(
	context.Context, *agentproto.ReportConnectionRequest,
) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, nil
}
