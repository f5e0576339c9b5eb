// Package rawdrpc passes messages through dRPC as the bytes that they are.
package rawdrpc

import "storj.io/drpc"

// Message is an encoded protobuf message.
type Message []byte

// Encoding leaves messages alone.
type Encoding struct{}

// Marshal is part of drpc.Encoding.
func (Encoding) Marshal(message drpc.Message) ([]byte, error) {
	return *message.(*Message), nil
}

// Unmarshal is part of drpc.Encoding.
func (Encoding) Unmarshal(data []byte, message drpc.Message) error {
	*message.(*Message) = append([]byte(nil), data...)
	return nil
}
