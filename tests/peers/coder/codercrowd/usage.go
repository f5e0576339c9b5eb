package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"tailnet.test/peers/coder/internal/peer"
)

// ticksPerSecond is USER_HZ, which is 100 on every Linux that there is.
const ticksPerSecond = 100

// usage is what the server and this program use of the machine, lap by lap.
type usage struct {
	pid    int
	at     time.Time
	server time.Duration
	own    time.Duration
	memory int64
}

func newUsage(pid int) *usage {
	u := &usage{pid: pid}
	u.lap(1)
	return u
}

// lap reports what was used since the last one, the server's also by unit of work.
func (u *usage) lap(units int) peer.Event {
	now, server, own, memory := time.Now(), processTime(u.pid), ownTime(), residentBytes(u.pid)
	lap := peer.Event{
		"seconds":  now.Sub(u.at).Seconds(),
		"loader_s": (own - u.own).Seconds(),
	}
	if u.pid != 0 && units > 0 {
		lap["server_s"] = (server - u.server).Seconds()
		lap["server_us_per_unit"] = float64((server - u.server).Microseconds()) / float64(units)
		lap["server_rss"] = memory
		lap["server_rss_grown"] = memory - u.memory
	}
	u.at, u.server, u.own, u.memory = now, server, own, memory
	return lap
}

func ownTime() time.Duration {
	var own syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &own); err != nil {
		peer.Fail("getrusage: %v", err)
	}
	return time.Duration(own.Utime.Nano() + own.Stime.Nano())
}

// processTime is the user and system time of a process, with its threads.
func processTime(pid int) time.Duration {
	if pid == 0 {
		return 0
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		peer.Fail("--server-pid: %v", err)
	}
	// The name of the program is in parentheses and may have spaces.
	fields := strings.Fields(string(text)[strings.LastIndexByte(string(text), ')')+2:])
	ticks := 0
	for _, field := range fields[11:13] {
		count, err := strconv.Atoi(field)
		if err != nil {
			peer.Fail("/proc/%d/stat: %v", pid, err)
		}
		ticks += count
	}
	return time.Duration(ticks) * time.Second / ticksPerSecond
}

func residentBytes(pid int) int64 {
	if pid == 0 {
		return 0
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		peer.Fail("--server-pid: %v", err)
	}
	pages, err := strconv.ParseInt(strings.Fields(string(text))[1], 10, 64)
	if err != nil {
		peer.Fail("/proc/%d/statm: %v", pid, err)
	}
	return pages * int64(os.Getpagesize())
}
