package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/google/uuid"

	"github.com/coder/coder/v2/tailnet"
	"github.com/coder/coder/v2/tailnet/proto"
)

var errNotFound = errors.New("not found")

type agentEntry struct {
	ID    uuid.UUID `json:"id"`
	Name  string    `json:"name"`
	Token string    `json:"token"`
}

type workspaceEntry struct {
	ID     uuid.UUID     `json:"id"`
	Name   string        `json:"name"`
	Agents []*agentEntry `json:"agents"`
}

type userEntry struct {
	ID       uuid.UUID `json:"id"`
	Username string    `json:"username"`
	Token    string    `json:"token"`
	// Owner has all the workspaces; others have none.
	Owner bool `json:"owner"`
}

// inventory is who exists: two users, of whom the first owns every workspace. It is the provider of
// WorkspaceUpdates, and changes at run time (POST and DELETE below /test).
type inventory struct {
	seed string

	mu          sync.Mutex
	users       []*userEntry
	workspaces  []*workspaceEntry
	subscribers map[*subscription]struct{}
}

func newInventory(seed string, agents int) *inventory {
	i := &inventory{seed: seed, subscribers: make(map[*subscription]struct{})}
	for number, name := range []string{"owner", "stranger"} {
		i.users = append(i.users, &userEntry{
			ID: i.id("user", name), Username: name, Token: i.apiKey(name), Owner: number == 0,
		})
	}
	for number := range agents {
		i.workspaces = append(i.workspaces, i.newWorkspace(fmt.Sprintf("ws%d", number+1), []string{"main"}))
	}
	return i
}

func (i *inventory) id(words ...string) uuid.UUID {
	return uuid.NewSHA1(uuid.NameSpaceURL, []byte(i.seed+"/"+strings.Join(words, "/")))
}

// apiKey has the shape of a user's API key: 10 characters, a dash, 22 characters.
func (i *inventory) apiKey(name string) string {
	hexadecimal := strings.ReplaceAll(i.id("key", name).String(), "-", "")
	return hexadecimal[:10] + "-" + hexadecimal[10:]
}

func (i *inventory) newWorkspace(name string, agents []string) *workspaceEntry {
	workspace := &workspaceEntry{ID: i.id("workspace", name), Name: name}
	for _, agent := range agents {
		workspace.Agents = append(workspace.Agents, &agentEntry{
			ID: i.id("agent", name, agent), Name: agent, Token: i.id("token", name, agent).String(),
		})
	}
	return workspace
}

func (i *inventory) describe() json.RawMessage {
	i.mu.Lock()
	defer i.mu.Unlock()
	text, err := json.Marshal(map[string]any{"users": i.users, "workspaces": i.workspaces})
	if err != nil {
		panic(err)
	}
	return text
}

func (i *inventory) user(token string) *userEntry {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, user := range i.users {
		if user.Token == token {
			return user
		}
	}
	return nil
}

func (i *inventory) owner() *userEntry { return i.users[0] }

// agent looks for the first agent that wanted accepts, with its workspace.
func (i *inventory) agent(wanted func(*agentEntry) bool) (*workspaceEntry, *agentEntry) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, workspace := range i.workspaces {
		for _, agent := range workspace.Agents {
			if wanted(agent) {
				return workspace, agent
			}
		}
	}
	return nil, nil
}

func (i *inventory) workspace(wanted func(*workspaceEntry) bool) *workspaceEntry {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, workspace := range i.workspaces {
		if wanted(workspace) {
			return workspace
		}
	}
	return nil
}

func (i *inventory) addWorkspace(name string, agents []string) *workspaceEntry {
	i.mu.Lock()
	defer i.mu.Unlock()
	workspace := i.newWorkspace(name, agents)
	i.workspaces = append(i.workspaces, workspace)
	i.publish()
	return workspace
}

// remove takes a workspace, or one agent, out of the list.
func (i *inventory) remove(id uuid.UUID) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	defer i.publish()
	before := len(i.workspaces)
	i.workspaces = slices.DeleteFunc(i.workspaces, func(w *workspaceEntry) bool { return w.ID == id })
	found := len(i.workspaces) < before
	for _, workspace := range i.workspaces {
		kept := slices.DeleteFunc(slices.Clone(workspace.Agents),
			func(a *agentEntry) bool { return a.ID == id })
		found = found || len(kept) < len(workspace.Agents)
		workspace.Agents = kept
	}
	return found
}

// AuthorizeTunnel makes a user of the inventory a tailnet.TunnelAuthorizer.
func (i *inventory) mayConnect(user *userEntry, agentID uuid.UUID) error {
	if _, agent := i.agent(func(a *agentEntry) bool { return a.ID == agentID }); agent == nil || !user.Owner {
		return errNotFound
	}
	return nil
}

type callerKey struct{}

// Close is part of tailnet.WorkspaceUpdatesProvider.
func (*inventory) Close() error { return nil }

// Subscribe is part of tailnet.WorkspaceUpdatesProvider.
func (i *inventory) Subscribe(ctx context.Context, userID uuid.UUID) (tailnet.Subscription, error) {
	caller, _ := ctx.Value(callerKey{}).(*userEntry)
	if caller == nil || caller.ID != userID {
		return nil, errNotFound
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	s := &subscription{
		inventory: i, owner: caller.Owner, updates: make(chan *proto.WorkspaceUpdate, 256),
		workspaces: map[uuid.UUID]string{}, agents: map[uuid.UUID]*proto.Agent{},
	}
	i.subscribers[s] = struct{}{}
	s.publish(true)
	return s, nil
}

// publish tells every subscriber the difference to what it knows; the caller has the lock.
func (i *inventory) publish() {
	for s := range i.subscribers {
		s.publish(false)
	}
}

type subscription struct {
	inventory  *inventory
	owner      bool
	updates    chan *proto.WorkspaceUpdate
	workspaces map[uuid.UUID]string
	agents     map[uuid.UUID]*proto.Agent
}

func (s *subscription) Updates() <-chan *proto.WorkspaceUpdate { return s.updates }

func (s *subscription) Close() error {
	s.inventory.mu.Lock()
	defer s.inventory.mu.Unlock()
	delete(s.inventory.subscribers, s)
	return nil
}

func (s *subscription) publish(first bool) {
	update := &proto.WorkspaceUpdate{}
	workspaces, agents := map[uuid.UUID]string{}, map[uuid.UUID]*proto.Agent{}
	for _, workspace := range s.inventory.workspaces {
		if !s.owner {
			break
		}
		workspaces[workspace.ID] = workspace.Name
		if _, known := s.workspaces[workspace.ID]; !known {
			update.UpsertedWorkspaces = append(update.UpsertedWorkspaces, workspaceMessage(workspace.ID, workspace.Name))
		}
		for _, agent := range workspace.Agents {
			agents[agent.ID] = &proto.Agent{
				Id: agent.ID[:], Name: agent.Name, WorkspaceId: workspace.ID[:],
			}
			if _, known := s.agents[agent.ID]; !known {
				update.UpsertedAgents = append(update.UpsertedAgents, agents[agent.ID])
			}
		}
	}
	for id, name := range s.workspaces {
		if _, kept := workspaces[id]; !kept {
			update.DeletedWorkspaces = append(update.DeletedWorkspaces, workspaceMessage(id, name))
		}
	}
	for id, message := range s.agents {
		if _, kept := agents[id]; !kept {
			update.DeletedAgents = append(update.DeletedAgents, message)
		}
	}
	s.workspaces, s.agents = workspaces, agents
	changes := len(update.UpsertedWorkspaces) + len(update.UpsertedAgents) +
		len(update.DeletedWorkspaces) + len(update.DeletedAgents)
	if first || changes > 0 {
		s.updates <- update
	}
}

func workspaceMessage(id uuid.UUID, name string) *proto.Workspace {
	return &proto.Workspace{Id: id[:], Name: name, Status: proto.Workspace_RUNNING}
}
