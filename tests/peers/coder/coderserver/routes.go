package main

import (
	"encoding/json"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/coder/coder/v2/codersdk"
	"github.com/coder/coder/v2/codersdk/workspacesdk"
	"github.com/coder/coder/v2/tailnet/proto"

	"tailnet.test/peers/coder/internal/peer"
)

// upgradeCounts is what became of requests for /derp.
type upgradeCounts struct {
	raw, websocket, refused atomic.Int64
}

func (s *server) routes(relay http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /derp", func(w http.ResponseWriter, r *http.Request) { s.serveRelay(relay, w, r) })
	ok := func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) }
	mux.HandleFunc("GET /derp/latency-check", ok)
	mux.HandleFunc("GET /latency-check", ok)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("OK")) })

	mux.HandleFunc("GET /api/v2/workspaceagents/me/rpc", s.serveAgent)
	mux.HandleFunc("GET /api/v2/workspaceagents/me/reinit", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusConflict, codersdk.Response{Message: "Workspace is not a prebuild."})
	})
	mux.HandleFunc("GET /api/v2/tailnet", s.asUser(s.serveUserClient))
	mux.HandleFunc("GET /api/v2/workspaceagents/connection", s.asUser(s.answerConnection))
	mux.HandleFunc("GET /api/v2/workspaceagents/{agent}/connection", s.withAgent(s.answerAgentConnection))
	mux.HandleFunc("GET /api/v2/workspaceagents/{agent}/coordinate", s.withAgent(s.serveAgentClient))
	s.addCommandRoutes(mux)
	s.addTestRoutes(mux)
	return mux
}

// answer writes JSON as Coder's server does.
func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}

func answerNotFound(w http.ResponseWriter) {
	answer(w, http.StatusNotFound, codersdk.Response{
		Message: "Resource not found or you do not have access to this resource",
	})
}

// credential looks for a token where Coder's server does, in its order.
func credential(r *http.Request) string {
	if cookie, err := r.Cookie(codersdk.SessionTokenCookie); err == nil && cookie.Value != "" {
		return cookie.Value
	}
	if token := r.URL.Query().Get(codersdk.SessionTokenCookie); token != "" {
		return token
	}
	return r.Header.Get(codersdk.SessionTokenHeader)
}

type userHandler func(http.ResponseWriter, *http.Request, *userEntry)

func (s *server) asUser(handler userHandler) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		user := s.inventory.user(credential(r))
		if user == nil {
			answer(w, http.StatusUnauthorized, codersdk.Response{Message: "You are signed out or your session has expired."})
			return
		}
		handler(w, r, user)
	}
}

type agentHandler func(http.ResponseWriter, *http.Request, *userEntry, *workspaceEntry, *agentEntry)

// withAgent is for routes with the id of an agent that the caller may use.
func (s *server) withAgent(handler agentHandler) http.HandlerFunc {
	return s.asUser(func(w http.ResponseWriter, r *http.Request, user *userEntry) {
		id, err := uuid.Parse(r.PathValue("agent"))
		if err != nil {
			answer(w, http.StatusBadRequest, codersdk.Response{
				Message: "Invalid UUID \"" + r.PathValue("agent") + "\".", Detail: err.Error(),
			})
			return
		}
		workspace, agent := s.inventory.agent(func(a *agentEntry) bool { return a.ID == id })
		if agent == nil || !user.Owner {
			answer(w, http.StatusNotFound, codersdk.Response{
				Message: "Agent doesn't exist with that id, or you do not have access to it.",
			})
			return
		}
		handler(w, r, user, workspace, agent)
	})
}

func (s *server) answerConnection(w http.ResponseWriter, _ *http.Request, _ *userEntry) {
	answer(w, http.StatusOK, workspacesdk.AgentConnectionInfo{
		DERPMap:                  s.derpMap.Load(),
		DERPForceWebSockets:      s.forceWebsockets,
		DisableDirectConnections: s.blockDirect,
		HostnameSuffix:           "coder",
	})
}

func (s *server) answerAgentConnection(
	w http.ResponseWriter, r *http.Request, user *userEntry, _ *workspaceEntry, _ *agentEntry,
) {
	s.answerConnection(w, r, user)
}

// versionRefused answers a version that Coder's own check refuses.
func versionRefused(w http.ResponseWriter, version string) bool {
	err := proto.CurrentVersion.Validate(version)
	if err != nil {
		answer(w, http.StatusBadRequest, codersdk.Response{
			Message:     "Unknown or unsupported API version",
			Validations: []codersdk.ValidationError{{Field: "version", Detail: err.Error()}},
		})
	}
	return err != nil
}

func (s *server) serveRelay(relay http.Handler, w http.ResponseWriter, r *http.Request) {
	switch strings.ToLower(r.Header.Get("Upgrade")) {
	case "websocket":
		s.upgrades.websocket.Add(1)
	case "derp":
		if s.refuseUpgrade {
			s.upgrades.refused.Add(1)
			http.Error(w, "DERP requires connection upgrade", http.StatusUpgradeRequired)
			return
		}
		s.upgrades.raw.Add(1)
	}
	relay.ServeHTTP(w, r)
}

// addCommandRoutes adds what the coder command asks before it dials, no more than it needs.
func (s *server) addCommandRoutes(mux *http.ServeMux) {
	mux.HandleFunc("GET /api/v2/buildinfo", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, codersdk.BuildInfoResponse{
			Version: "v2.24.0", DashboardURL: s.accessURL.String(), AgentAPIVersion: proto.CurrentVersion.String(),
		})
	})
	mux.HandleFunc("GET /api/v2/users/me", s.asUser(func(w http.ResponseWriter, _ *http.Request, user *userEntry) {
		answer(w, http.StatusOK, map[string]any{"id": user.ID, "username": user.Username})
	}))
	mux.HandleFunc("GET /api/v2/users/{user}/workspace/{name}",
		s.asUser(func(w http.ResponseWriter, r *http.Request, user *userEntry) {
			s.answerWorkspace(w, user, func(e *workspaceEntry) bool { return e.Name == r.PathValue("name") })
		}))
	mux.HandleFunc("GET /api/v2/workspaces/{id}",
		s.asUser(func(w http.ResponseWriter, r *http.Request, user *userEntry) {
			s.answerWorkspace(w, user, func(e *workspaceEntry) bool { return e.ID.String() == r.PathValue("id") })
		}))
	mux.HandleFunc("POST /api/v2/workspaces/{id}/usage",
		s.asUser(func(w http.ResponseWriter, _ *http.Request, _ *userEntry) { w.WriteHeader(http.StatusNoContent) }))
	mux.HandleFunc("GET /api/v2/templateversions/{id}",
		s.asUser(func(w http.ResponseWriter, _ *http.Request, _ *userEntry) { answer(w, http.StatusOK, struct{}{}) }))
	mux.HandleFunc("GET /api/v2/workspaceagents/{agent}", s.withAgent(func(
		w http.ResponseWriter, _ *http.Request, _ *userEntry, _ *workspaceEntry, agent *agentEntry,
	) {
		answer(w, http.StatusOK, agentJSON(agent))
	}))
	mux.HandleFunc("GET /api/v2/debug/coordinator", s.asUser(func(w http.ResponseWriter, r *http.Request, _ *userEntry) {
		(*s.coordinator.Load()).ServeHTTPDebug(w, r)
	}))
}

func (s *server) answerWorkspace(w http.ResponseWriter, user *userEntry, wanted func(*workspaceEntry) bool) {
	workspace := s.inventory.workspace(wanted)
	if workspace == nil || !user.Owner {
		answerNotFound(w)
		return
	}
	agents := []any{}
	for _, agent := range workspace.Agents {
		agents = append(agents, agentJSON(agent))
	}
	answer(w, http.StatusOK, map[string]any{
		"id":         workspace.ID,
		"name":       workspace.Name,
		"owner_id":   s.inventory.owner().ID,
		"owner_name": s.inventory.owner().Username,
		"latest_build": map[string]any{
			"transition": "start",
			"status":     "running",
			// Without an end of the job, the command believes that the build is queued.
			"job":       map[string]any{"status": "succeeded", "completed_at": time.Now().UTC()},
			"resources": []any{map[string]any{"agents": agents}},
		},
	})
}

func agentJSON(agent *agentEntry) map[string]any {
	return map[string]any{
		"id": agent.ID, "name": agent.Name, "status": "connected", "lifecycle_state": "ready",
	}
}

// addTestRoutes adds what only tests use: to change who exists, and to look at counters.
func (s *server) addTestRoutes(mux *http.ServeMux) {
	mux.HandleFunc("GET /test/derp", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, peer.Event{
			"raw": s.upgrades.raw.Load(), "websocket": s.upgrades.websocket.Load(),
			"refused": s.upgrades.refused.Load(),
		})
	})
	mux.HandleFunc("GET /test/inventory", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, s.inventory.describe())
	})
	mux.HandleFunc("POST /test/workspaces", func(w http.ResponseWriter, r *http.Request) {
		var body struct {
			Name   string   `json:"name"`
			Agents []string `json:"agents"`
		}
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			answer(w, http.StatusBadRequest, codersdk.Response{Message: err.Error()})
			return
		}
		answer(w, http.StatusCreated, s.inventory.addWorkspace(body.Name, body.Agents))
	})
	mux.HandleFunc("DELETE /test/{id}", func(w http.ResponseWriter, r *http.Request) {
		id, err := uuid.Parse(r.PathValue("id"))
		if err != nil || !s.inventory.remove(id) {
			answerNotFound(w)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("PUT /test/derp-map", func(w http.ResponseWriter, r *http.Request) {
		derpMap := embeddedMap(s.accessURL)
		if err := json.NewDecoder(r.Body).Decode(derpMap); err != nil {
			answer(w, http.StatusBadRequest, codersdk.Response{Message: err.Error()})
			return
		}
		s.derpMap.Store(derpMap)
		w.WriteHeader(http.StatusNoContent)
	})
}
