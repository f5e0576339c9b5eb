//go:build tools

// Package tools keeps Tailscale's own programs in go.mod, so that the tests build them pinned and verified.
package tools

import (
	_ "tailscale.com/cmd/derper"
	_ "tailscale.com/cmd/derpprobe"
	_ "tailscale.com/cmd/stunc"
)
