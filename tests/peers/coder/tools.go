//go:build tools

// Package tools keeps the unmodified coder command in go.mod, so that it is built pinned and verified.
package tools

import _ "github.com/coder/coder/v2/cmd/coder"
