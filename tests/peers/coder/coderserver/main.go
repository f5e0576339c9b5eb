// Coderserver is a reference server: Coder's own coordinator, tailnet service and DERP relay behind the
// HTTP routes that agents, clients and the coder command use.
//
// Only the glue is ours: the Agent API is a stub that says yes, and who exists is a list in memory (see
// inventory.go). What comes from Coder's code: the coordinator with its authorisation, the dRPC services,
// DERP maps, resume tokens, version checks, DERP with websockets.
package main

import (
	"context"
	"crypto/sha512"
	"errors"
	"flag"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/coder/quartz"
	"tailscale.com/derp"
	"tailscale.com/derp/derphttp"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"

	"cdr.dev/slog"
	"github.com/coder/coder/v2/coderd/jwtutils"
	"github.com/coder/coder/v2/tailnet"

	"tailnet.test/peers/coder/internal/peer"
)

// regionID is the one of the embedded relay in Coder's default DERP map.
const regionID = 999

type server struct {
	logger          slog.Logger
	accessURL       *url.URL
	blockDirect     bool
	forceWebsockets bool
	refuseUpgrade   bool

	inventory   *inventory
	coordinator atomic.Pointer[tailnet.Coordinator]
	clients     *tailnet.ClientService
	tokens      tailnet.ResumeTokenProvider
	mapInterval time.Duration
	derpMap     atomic.Pointer[tailcfg.DERPMap]
	upgrades    upgradeCounts
}

func main() {
	var (
		listen      = flag.String("listen", "127.0.0.1:0", "address to listen on")
		access      = flag.String("access-url", "", "URL that clients reach this server by; default is where it listens")
		blockDirect = flag.Bool("block-direct", false, "tell everybody to have no direct paths")
		force       = flag.Bool("force-websockets", false, "tell everybody to use DERP over websockets")
		refuse      = flag.Bool("fail-derp-upgrade-with-426", false, "refuse raw DERP, as a proxy may")
		agents      = flag.Int("agents", 1, "number of workspaces to begin with, each with one agent")
		seed        = flag.String("seed", "reference", "ids, tokens and keys follow from it")
		interval    = flag.Duration("derp-map-interval", time.Second, "time between looks at the DERP map")
		debug       = flag.Bool("debug", false, "log everything")
	)
	flag.Parse()
	ctx, cancel := peer.Context()
	defer cancel()

	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		peer.Fail("--listen: %v", err)
	}
	if *access == "" {
		*access = "http://" + listener.Addr().String()
	}
	s := &server{
		logger:          peer.Logger(*debug),
		accessURL:       peer.ParseURL(*access),
		blockDirect:     *blockDirect,
		forceWebsockets: *force,
		refuseUpgrade:   *refuse,
		inventory:       newInventory(*seed, *agents),
		mapInterval:     *interval,
	}
	s.derpMap.Store(embeddedMap(s.accessURL))
	coordinator := tailnet.NewCoordinator(s.logger)
	defer coordinator.Close()
	s.coordinator.Store(&coordinator)
	// The key follows from the seed, so that tokens hold over a restart, as they do with a database.
	secret := sha512.Sum512([]byte("resume " + *seed))
	s.tokens = tailnet.NewResumeTokenKeyProvider(
		jwtutils.StaticKey{ID: "1", Key: secret[:]}, quartz.NewReal(), 0)
	s.clients, err = tailnet.NewClientService(tailnet.ClientServiceOptions{
		Logger:                   s.logger,
		CoordPtr:                 &s.coordinator,
		DERPMapUpdateFrequency:   s.mapInterval,
		DERPMapFn:                s.derpMap.Load,
		ResumeTokenProvider:      s.tokens,
		WorkspaceUpdatesProvider: s.inventory,
	})
	if err != nil {
		peer.Fail("client service: %v", err)
	}

	relay := derp.NewServer(key.NewNode(), tailnet.Logger(s.logger.Named("derp")))
	defer relay.Close()
	relayHandler, closeRelay := tailnet.WithWebsocketSupport(relay, derphttp.Handler(relay))
	defer closeRelay()
	served := &http.Server{
		Handler:           s.routes(relayHandler),
		ReadHeaderTimeout: 10 * time.Second,
		// The end of the program ends what hangs on it.
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	go func() {
		<-ctx.Done()
		_ = served.Close()
	}()
	peer.Emit("ready", peer.Event{
		"address":   listener.Addr().String(),
		"url":       s.accessURL.String(),
		"inventory": s.inventory.describe(),
	})
	if err := served.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		peer.Fail("serve: %v", err)
	}
	peer.Emit("stopped", nil)
}

// embeddedMap is the DERP map of a server that is its own relay, without STUN.
func embeddedMap(access *url.URL) *tailcfg.DERPMap {
	port := 80
	if access.Scheme == "https" {
		port = 443
	}
	if given := access.Port(); given != "" {
		port, _ = strconv.Atoi(given)
	}
	return &tailcfg.DERPMap{Regions: map[int]*tailcfg.DERPRegion{
		regionID: {
			EmbeddedRelay: true,
			RegionID:      regionID,
			RegionCode:    "coder",
			RegionName:    "Coder Embedded Relay",
			Nodes: []*tailcfg.DERPNode{{
				Name:      strconv.Itoa(regionID) + "b",
				RegionID:  regionID,
				HostName:  access.Hostname(),
				DERPPort:  port,
				STUNPort:  -1,
				ForceHTTP: access.Scheme == "http",
			}},
		},
	}}
}
