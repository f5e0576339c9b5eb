package main

import (
	"crypto/sha256"
	"encoding/binary"
	"io"
	"net"

	"tailnet.test/peers/coder/internal/peer"
)

// serveEcho answers on one port, TCP and UDP, with whatever it is sent.
func serveEcho(address string) int {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		peer.Fail("echo: %v", err)
	}
	packets, err := net.ListenPacket("udp", listener.Addr().String())
	if err != nil {
		peer.Fail("echo: %v", err)
	}
	go accept(listener, func(conn net.Conn) { _, _ = io.Copy(conn, conn) })
	go func() {
		buffer := make([]byte, 65536)
		for {
			n, from, err := packets.ReadFrom(buffer)
			if err != nil {
				peer.Fail("echo: %v", err)
			}
			_, _ = packets.WriteTo(buffer[:n], from)
		}
	}()
	return listener.Addr().(*net.TCPAddr).Port
}

// serveSink takes 8 bytes of length (big-endian) and as many bytes of data, and answers with 8 bytes of
// how many there were and their SHA-256. The length is said beforehand since Coder's agent does not keep a
// half-close: the end of one direction ends both.
func serveSink(address string) int {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		peer.Fail("sink: %v", err)
	}
	go accept(listener, func(conn net.Conn) {
		var header [8]byte
		if _, err := io.ReadFull(conn, header[:]); err != nil {
			return
		}
		hash := sha256.New()
		limit := int64(binary.BigEndian.Uint64(header[:])) //nolint:gosec // a test's own number
		count, _ := io.CopyBuffer(hash, io.LimitReader(conn, limit), make([]byte, 1<<18))
		answer := binary.BigEndian.AppendUint64(nil, uint64(count))
		_, _ = conn.Write(hash.Sum(answer))
	})
	return listener.Addr().(*net.TCPAddr).Port
}

func accept(listener net.Listener, serve func(net.Conn)) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			peer.Fail("accept: %v", err)
		}
		go func() {
			defer conn.Close()
			serve(conn)
		}()
	}
}
