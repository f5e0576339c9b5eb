package main

import (
	"bufio"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/coder/coder/v2/codersdk"
)

// A connection that costs as little as possible: one goroutine, one buffer, and only what one Coordinate
// call needs of websocket, yamux and dRPC. Whatever else a server sends is an error.
type rawConn struct {
	conn   net.Conn
	reader *bufio.Reader
	client *client

	stream  []byte // bytes of the yamux session, not yet a frame
	call    []byte // bytes of stream 1, not yet a dRPC frame
	packet  []byte // data of a dRPC packet that is not done
	granted uint32 // bytes of stream 1 since we last gave credit
}

const (
	opContinuation = 0
	opBinary       = 2
	opClose        = 8
	opPing         = 9
	opPong         = 10

	yamuxData         = 0
	yamuxWindowUpdate = 1
	yamuxPing         = 2
	yamuxGoAway       = 3
	flagSYN           = 1
	flagACK           = 2
	flagFIN           = 4
	flagRST           = 8
	yamuxWindow       = 256 << 10

	kindInvoke    = 1
	kindMessage   = 2
	kindError     = 3
	kindClose     = 5
	kindCloseSend = 6
)

func dialRaw(o options, c *client) error {
	host := o.serverURL.Host
	if o.serverURL.Port() == "" {
		host += ":80"
	}
	if o.serverURL.Scheme != "http" {
		return errors.New("raw mode speaks http only")
	}
	conn, err := net.DialTimeout("tcp", host, o.wait)
	if err != nil {
		return err
	}
	_ = conn.SetDeadline(time.Now().Add(o.wait))
	r := &rawConn{conn: conn, reader: bufio.NewReaderSize(conn, 2048), client: c}
	if err := r.upgrade(o); err != nil {
		_ = conn.Close()
		return err
	}
	// One write: open stream 1, and on it Invoke and the first message.
	call := drpcFrame(kindInvoke, 1, []byte(coordinateMethod))
	call = append(call, drpcFrame(kindMessage, 2, tunnelRequest(o.agent))...)
	frames := yamuxFrame(yamuxWindowUpdate, flagSYN, 1, 0)
	frames = append(frames, yamuxFrame(yamuxData, 0, 1, uint32(len(call)))...)
	if err := r.write(opBinary, append(frames, call...)); err != nil {
		_ = conn.Close()
		return err
	}
	_ = conn.SetDeadline(time.Time{})
	go func() {
		c.lost(r.receive())
		_ = conn.Close()
	}()
	return nil
}

func (r *rawConn) upgrade(o options) error {
	var nonce [16]byte
	_, _ = rand.Read(nonce[:])
	target := coordinateURL(o)
	target.RawQuery = "version=2.0"
	_, err := fmt.Fprintf(r.conn, "GET /%s HTTP/1.1\r\nHost: %s\r\n%s: %s\r\n"+
		"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %s\r\n\r\n",
		strings.TrimPrefix(target.RequestURI(), "/"), o.serverURL.Host, codersdk.SessionTokenHeader, o.token,
		base64.StdEncoding.EncodeToString(nonce[:]))
	if err != nil {
		return err
	}
	response, err := http.ReadResponse(r.reader, nil)
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusSwitchingProtocols {
		body, _ := io.ReadAll(io.LimitReader(response.Body, 1000))
		return fmt.Errorf("status %d: %s", response.StatusCode, body)
	}
	return nil
}

// write sends one masked websocket frame. The mask is zero, so that it changes nothing.
func (r *rawConn) write(opcode byte, payload []byte) error {
	frame := []byte{0x80 | opcode}
	switch {
	case len(payload) < 126:
		frame = append(frame, 0x80|byte(len(payload)))
	case len(payload) < 1<<16:
		frame = append(frame, 0x80|126)
		frame = binary.BigEndian.AppendUint16(frame, uint16(len(payload)))
	default:
		return errors.New("a longer frame than this client has use for")
	}
	frame = append(frame, 0, 0, 0, 0)
	_, err := r.conn.Write(append(frame, payload...))
	return err
}

// receive reads websocket frames until the connection is over.
func (r *rawConn) receive() error {
	for {
		var header [2]byte
		if _, err := io.ReadFull(r.reader, header[:]); err != nil {
			return err
		}
		length := int(header[1] & 0x7f)
		switch length {
		case 126:
			var extended [2]byte
			if _, err := io.ReadFull(r.reader, extended[:]); err != nil {
				return err
			}
			length = int(binary.BigEndian.Uint16(extended[:]))
		case 127:
			var extended [8]byte
			if _, err := io.ReadFull(r.reader, extended[:]); err != nil {
				return err
			}
			length = int(binary.BigEndian.Uint64(extended[:]))
		}
		begin := len(r.stream)
		if header[1]&0x80 != 0 || header[0]&0x70 != 0 || length > 8<<20 {
			return fmt.Errorf("websocket frame % x", header)
		}
		// Control frames go through the same buffer, and are taken out of it at once.
		r.stream = append(r.stream, make([]byte, length)...)
		payload := r.stream[begin:]
		if _, err := io.ReadFull(r.reader, payload); err != nil {
			return err
		}
		switch header[0] & 0x0f {
		case opContinuation, opBinary:
			if err := r.takeYamux(); err != nil {
				return err
			}
		case opPing:
			if err := r.write(opPong, payload); err != nil {
				return err
			}
			r.stream = r.stream[:begin]
		case opPong:
			r.stream = r.stream[:begin]
		default:
			return fmt.Errorf("websocket frame % x: %q", header, payload)
		}
	}
}

func yamuxFrame(kind byte, flags uint16, stream, length uint32) []byte {
	frame := binary.BigEndian.AppendUint16([]byte{0, kind}, flags)
	frame = binary.BigEndian.AppendUint32(frame, stream)
	return binary.BigEndian.AppendUint32(frame, length)
}

func (r *rawConn) takeYamux() error {
	data := r.stream
	for len(data) >= 12 {
		kind, flags := data[1], binary.BigEndian.Uint16(data[2:])
		stream, length := binary.BigEndian.Uint32(data[4:]), binary.BigEndian.Uint32(data[8:])
		size := 12
		if kind == yamuxData {
			size += int(length)
			if len(data) < size {
				break
			}
		}
		if data[0] != 0 || flags&(flagFIN|flagRST) != 0 || kind == yamuxGoAway || kind > yamuxGoAway {
			return fmt.Errorf("yamux frame % x", data[:12])
		}
		switch kind {
		case yamuxData:
			if stream != 1 {
				return fmt.Errorf("data on yamux stream %d", stream)
			}
			if err := r.takeCall(data[12:size]); err != nil {
				return err
			}
			if err := r.grant(length); err != nil {
				return err
			}
		case yamuxPing:
			if flags&flagSYN != 0 {
				if err := r.write(opBinary, yamuxFrame(yamuxPing, flagACK, 0, length)); err != nil {
					return err
				}
			}
		}
		data = data[size:]
	}
	// What is left moves to the front, so that the buffer does not grow.
	r.stream = r.stream[:copy(r.stream, data)]
	return nil
}

// grant gives credit back when half of the window is used, as yamux does.
func (r *rawConn) grant(length uint32) error {
	r.granted += length
	if r.granted < yamuxWindow/2 {
		return nil
	}
	frame := yamuxFrame(yamuxWindowUpdate, 0, 1, r.granted)
	r.granted = 0
	return r.write(opBinary, frame)
}

func drpcFrame(kind byte, message uint64, data []byte) []byte {
	frame := []byte{kind<<1 | 1, 1}
	frame = binary.AppendUvarint(frame, message)
	frame = binary.AppendUvarint(frame, uint64(len(data)))
	return append(frame, data...)
}

func (r *rawConn) takeCall(data []byte) error {
	if len(r.call) > 0 {
		r.call = append(r.call, data...)
		data = r.call
	}
	for {
		control, body, rest, ok := splitDRPC(data)
		if !ok {
			break
		}
		if err := r.takeDRPC(control, body); err != nil {
			return err
		}
		data = rest
	}
	r.call = append(r.call[:0], data...)
	return nil
}

// splitDRPC takes one frame off; not ok if it is not all there.
func splitDRPC(data []byte) (control byte, body, rest []byte, ok bool) {
	if len(data) == 0 {
		return 0, nil, nil, false
	}
	control, rest = data[0], data[1:]
	var numbers [3]uint64 // stream, message, length
	for i := range numbers {
		number, size := binary.Uvarint(rest)
		if size <= 0 {
			return 0, nil, nil, false
		}
		numbers[i], rest = number, rest[size:]
	}
	if uint64(len(rest)) < numbers[2] {
		return 0, nil, nil, false
	}
	return control, rest[:numbers[2]], rest[numbers[2]:], true
}

func (r *rawConn) takeDRPC(control byte, body []byte) error {
	kind, done := control>>1&0x3f, control&1 != 0
	if !done || len(r.packet) > 0 {
		r.packet = append(r.packet, body...)
		body = r.packet
	}
	if !done {
		return nil
	}
	r.packet = r.packet[:0]
	switch kind {
	case kindMessage:
		return r.client.receive(body)
	case kindError:
		return fmt.Errorf("dRPC error: %q", body)
	case kindClose, kindCloseSend:
		return errors.New("the server ended the call")
	default:
		return fmt.Errorf("dRPC packet of kind %d", kind)
	}
}
