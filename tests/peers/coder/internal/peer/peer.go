// Package peer has what all the programs of this module share: JSON lines on standard output, a log on
// standard error, and an end on SIGTERM.
package peer

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"cdr.dev/slog"
	"cdr.dev/slog/sloggers/sloghuman"
)

// Event is one line of output. Its "event" says what it is.
type Event map[string]any

var stdout sync.Mutex

// Emit prints one event, with the time in milliseconds since the program began.
func Emit(name string, fields Event) {
	line := Event{"event": name, "t_ms": Milliseconds(time.Since(began))}
	for key, value := range fields {
		line[key] = value
	}
	Print(line)
}

// Print writes any value as one line of JSON.
func Print(value any) {
	data, err := json.Marshal(value)
	if err != nil {
		Fail("print: %v", err)
	}
	stdout.Lock()
	defer stdout.Unlock()
	if _, err := os.Stdout.Write(append(data, '\n')); err != nil {
		// Nobody reads any more.
		os.Exit(1)
	}
}

var began = time.Now()

// Milliseconds is a duration as the JSON lines have it, to the microsecond.
func Milliseconds(d time.Duration) float64 {
	return float64(d.Microseconds()) / 1000
}

// Logger writes to standard error.
func Logger(debug bool) slog.Logger {
	level := slog.LevelWarn
	if debug {
		level = slog.LevelDebug
	}
	return slog.Make(sloghuman.Sink(os.Stderr)).Leveled(level)
}

// Context ends on SIGTERM and SIGINT.
func Context() (context.Context, context.CancelFunc) {
	return signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
}

// ParseURL reads the --url of a program, or ends it.
func ParseURL(text string) *url.URL {
	parsed, err := url.Parse(text)
	if err != nil || parsed.Host == "" {
		Fail("--url %q is not a URL", text)
	}
	return parsed
}

// Fail ends the program for a mistake in how it was called, or in itself.
func Fail(format string, arguments ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", arguments...)
	os.Exit(2)
}
