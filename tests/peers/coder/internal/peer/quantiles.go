package peer

import (
	"sort"
	"time"
)

// Quantiles summarises durations in milliseconds; nil if there are none.
func Quantiles(durations []time.Duration) Event {
	if len(durations) == 0 {
		return nil
	}
	sorted := append([]time.Duration(nil), durations...)
	sort.Slice(sorted, func(i, j int) bool { return sorted[i] < sorted[j] })
	at := func(share float64) float64 {
		return Milliseconds(sorted[int(share*float64(len(sorted)-1)+0.5)])
	}
	return Event{
		"count": len(sorted),
		"min":   at(0),
		"p50":   at(0.5),
		"p90":   at(0.9),
		"p99":   at(0.99),
		"max":   at(1),
	}
}
