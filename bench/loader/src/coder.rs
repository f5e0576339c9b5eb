//! What a Coder agent or client says to a coordinator: a websocket, in it yamux, in that
//! dRPC, in that protobuf (`tailnet`). Bytes in, bytes out, no I/O.
//!
//! Only what a coordinator needs to see: the calls Coordinate and StreamDERPMaps, credit,
//! answers to pings. Formats: hashicorp/yamux `spec.md`, storj/drpc `drpcwire`.

use crate::rng::Rng;
use crate::tailnet::{Heard, put_varint, take_varint, updates};
use crate::ws;

const YAMUX_HEADER: usize = 12;
const DATA: u8 = 0;
const WINDOW_UPDATE: u8 = 1;
const PING: u8 = 2;
const GO_AWAY: u8 = 3;
const SYN: u16 = 1;
const ACK: u16 = 2;
const FIN: u16 = 4;
const RST: u16 = 8;
/// The credit that every stream begins with, each way.
const WINDOW: u32 = 256 * 1024;

const DERP_MAPS: u32 = 1;
const COORDINATE: u32 = 3;

const INVOKE: u8 = 1;
const MESSAGE: u8 = 2;
const ERROR: u8 = 3;
const CLOSE: u8 = 5;
const CLOSE_SEND: u8 = 6;
/// The largest message of dRPC as Coder sets it.
const MAX_MESSAGE: usize = 4 << 20;

/// One peer's side of its connection.
pub struct Session {
    upgraded: bool,
    ws: ws::Reader,
    /// Bytes of a head or of a yamux frame that is not whole.
    carry: Vec<u8>,
    coordinate: Call,
    maps: Call,
    /// Bytes that may still be sent on the call Coordinate.
    credit: u64,
    /// Requests that wait for credit.
    waiting: Vec<u8>,
    rng: Rng,
    /// What is to be sent.
    pub out: Vec<u8>,
    pub maps_received: u64,
}

impl Session {
    /// Ask for the upgrade. `path` has the query with it.
    pub fn open(host: &str, path: &str, token: &str, seed: u64) -> Self {
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: Go-http-client/1.1\r\n\
             Connection: Upgrade\r\nCoder-Session-Token: {token}\r\n\
             Sec-WebSocket-Key: ZGVycC1sb2FkZXItZGVycA==\r\nSec-WebSocket-Version: 13\r\n\
             Upgrade: websocket\r\nAccept-Encoding: gzip\r\n\r\n"
        );
        Self {
            upgraded: false,
            ws: ws::Reader::default(),
            carry: Vec::new(),
            coordinate: Call::default(),
            maps: Call::default(),
            credit: u64::from(WINDOW),
            waiting: Vec::new(),
            rng: Rng::new(seed),
            out: request.into_bytes(),
            maps_received: 0,
        }
    }

    /// Make both calls of a peer that stays; the requests go with the first.
    ///
    /// It may be done before the upgrade is answered only if nobody minds: Coder's clients
    /// wait, and so does the crowd.
    pub fn call(&mut self, requests: &[Vec<u8>]) {
        let mut maps = Vec::new();
        put_frame(
            &mut maps,
            INVOKE,
            1,
            b"/coder.tailnet.v2.Tailnet/StreamDERPMaps",
        );
        put_frame(&mut maps, MESSAGE, 2, b"");
        put_frame(&mut maps, CLOSE_SEND, 3, b"");
        self.frame(WINDOW_UPDATE, SYN, DERP_MAPS, 0, b"");
        self.frame(DATA, 0, DERP_MAPS, maps.len() as u32, &maps);
        let mut coordinate = Vec::new();
        put_frame(
            &mut coordinate,
            INVOKE,
            1,
            b"/coder.tailnet.v2.Tailnet/Coordinate",
        );
        self.coordinate.sent = 1;
        self.frame(WINDOW_UPDATE, SYN, COORDINATE, 0, b"");
        self.waiting = coordinate;
        for request in requests {
            self.request(request);
        }
        self.send_waiting();
    }

    /// Send a CoordinateRequest, now or when there is credit.
    pub fn request(&mut self, request: &[u8]) {
        self.coordinate.sent += 1;
        put_frame(&mut self.waiting, MESSAGE, self.coordinate.sent, request);
        self.send_waiting();
    }

    fn send_waiting(&mut self) {
        let len = self.waiting.len().min(self.credit as usize);
        if len > 0 {
            let part: Vec<u8> = self.waiting.drain(..len).collect();
            self.credit -= len as u64;
            self.frame(DATA, 0, COORDINATE, len as u32, &part);
        }
    }

    /// As Go's yamux writes: header and body are a websocket message each.
    fn frame(&mut self, kind: u8, flags: u16, stream: u32, length: u32, body: &[u8]) {
        let mut header = [0; YAMUX_HEADER];
        header[1] = kind;
        header[2..4].copy_from_slice(&flags.to_be_bytes());
        header[4..8].copy_from_slice(&stream.to_be_bytes());
        header[8..12].copy_from_slice(&length.to_be_bytes());
        let mut mask = || (self.rng.next() as u32).to_ne_bytes();
        ws::binary(&mut self.out, &header, mask());
        if !body.is_empty() {
            ws::binary(&mut self.out, body, mask());
        }
    }

    pub fn upgraded(&self) -> bool {
        self.upgraded
    }

    /// Take what was read, and hand over every PeerUpdate in it.
    pub fn receive(
        &mut self,
        bytes: &mut [u8],
        heard: &mut dyn FnMut(Heard),
    ) -> Result<(), String> {
        let mut at = 0;
        if !self.upgraded {
            self.carry.extend_from_slice(bytes);
            let Some(end) = self.carry.windows(4).position(|part| part == b"\r\n\r\n") else {
                return Ok(());
            };
            if !self.carry.starts_with(b"HTTP/1.1 101 ") {
                let text = String::from_utf8_lossy(&self.carry).into_owned();
                return Err(format!("the server refused the upgrade: {text:?}"));
            }
            at = bytes.len() - (self.carry.len() - end - 4);
            self.carry.clear();
            self.upgraded = true;
        }
        let len = self.ws.strip(&mut bytes[at..])?;
        for ping in std::mem::take(&mut self.ws.pings) {
            let mask = (self.rng.next() as u32).to_ne_bytes();
            ws::pong(&mut self.out, &ping, mask);
        }
        if self.carry.is_empty() {
            let used = self.frames(&bytes[at..at + len], heard)?;
            self.carry.extend_from_slice(&bytes[at + used..at + len]);
        } else {
            let mut whole = std::mem::take(&mut self.carry);
            whole.extend_from_slice(&bytes[at..at + len]);
            let used = self.frames(&whole, heard)?;
            whole.drain(..used);
            self.carry = whole;
        }
        if self.ws.closed {
            return Err("the server closed the websocket".into());
        }
        Ok(())
    }

    /// Take whole yamux frames. Returns how many bytes they were.
    fn frames(&mut self, bytes: &[u8], heard: &mut dyn FnMut(Heard)) -> Result<usize, String> {
        let mut at = 0;
        while let Some(header) = bytes[at..].first_chunk::<YAMUX_HEADER>() {
            let kind = header[1];
            let flags = u16::from_be_bytes([header[2], header[3]]);
            let stream = u32::from_be_bytes(header[4..8].try_into().expect("four bytes"));
            let length = u32::from_be_bytes(header[8..12].try_into().expect("four bytes"));
            if header[0] != 0 {
                return Err(format!("yamux: version {}", header[0]));
            }
            let mut end = at + YAMUX_HEADER;
            match kind {
                DATA => {
                    if length > WINDOW {
                        return Err(format!("yamux: {length} bytes are more than the window"));
                    }
                    end += length as usize;
                    if end > bytes.len() {
                        break;
                    }
                    self.data(stream, &bytes[at + YAMUX_HEADER..end], heard)?;
                }
                WINDOW_UPDATE => {
                    if stream == COORDINATE {
                        self.credit += u64::from(length);
                        self.send_waiting();
                    }
                }
                PING if flags & SYN != 0 => self.frame(PING, ACK, 0, length, b""),
                PING => {}
                GO_AWAY => return Err(format!("yamux: go away, code {length}")),
                _ => return Err(format!("yamux: frame type {kind}")),
            }
            if flags & (FIN | RST) != 0 {
                return Err(format!("the server ended the call on stream {stream}"));
            }
            at = end;
        }
        Ok(at)
    }

    fn data(
        &mut self,
        stream: u32,
        bytes: &[u8],
        heard: &mut dyn FnMut(Heard),
    ) -> Result<(), String> {
        let mut maps = 0;
        let credit = match stream {
            COORDINATE => self
                .coordinate
                .receive(bytes, &mut |message| updates(message, heard))?,
            DERP_MAPS => self.maps.receive(bytes, &mut |_| {
                maps += 1;
                Ok(())
            })?,
            _ => return Err(format!("yamux: data on stream {stream}")),
        };
        self.maps_received += maps;
        if let Some(credit) = credit {
            self.frame(WINDOW_UPDATE, 0, stream, credit, b"");
        }
        Ok(())
    }
}

/// A dRPC call as its caller sees it.
#[derive(Default)]
struct Call {
    /// Message id of what was sent last.
    sent: u64,
    /// Bytes that were received since credit was given.
    consumed: u32,
    /// A frame that is not whole.
    carry: Vec<u8>,
    /// Frames of a message before its last.
    message: Vec<u8>,
}

impl Call {
    /// Take bytes of the stream. Returns the credit to give, when it is time.
    fn receive(
        &mut self,
        bytes: &[u8],
        message: &mut dyn FnMut(&[u8]) -> Result<(), String>,
    ) -> Result<Option<u32>, String> {
        if self.carry.is_empty() {
            let used = self.frames(bytes, message)?;
            self.carry.extend_from_slice(&bytes[used..]);
        } else {
            let mut whole = std::mem::take(&mut self.carry);
            whole.extend_from_slice(bytes);
            let used = self.frames(&whole, message)?;
            whole.drain(..used);
            self.carry = whole;
        }
        self.consumed += bytes.len() as u32;
        if self.consumed < WINDOW / 2 {
            return Ok(None);
        }
        Ok(Some(std::mem::take(&mut self.consumed)))
    }

    fn frames(
        &mut self,
        bytes: &[u8],
        message: &mut dyn FnMut(&[u8]) -> Result<(), String>,
    ) -> Result<usize, String> {
        let mut at = 0;
        while at < bytes.len() {
            let control = bytes[at];
            let mut rest = &bytes[at + 1..];
            let (Some(_stream), Some(_id), Some(length)) = (
                take_varint(&mut rest),
                take_varint(&mut rest),
                take_varint(&mut rest),
            ) else {
                break;
            };
            let length = length as usize;
            if length > MAX_MESSAGE || self.message.len() + length > MAX_MESSAGE {
                return Err("dRPC: more than 4 MiB in a message".into());
            }
            if rest.len() < length {
                break;
            }
            let body = &rest[..length];
            at = bytes.len() - rest.len() + length;
            let done = control & 1 != 0;
            match control >> 1 & 0x3f {
                MESSAGE if done && self.message.is_empty() => message(body)?,
                MESSAGE => {
                    self.message.extend_from_slice(body);
                    if done {
                        let whole = std::mem::take(&mut self.message);
                        message(&whole)?;
                    }
                }
                ERROR => {
                    let text = String::from_utf8_lossy(body.get(8..).unwrap_or_default());
                    return Err(format!("the call failed: {text}"));
                }
                CLOSE | CLOSE_SEND => return Err("the server ended the call".into()),
                kind => return Err(format!("dRPC: frame kind {kind}")),
            }
        }
        Ok(at)
    }
}

/// A dRPC frame that is a packet of its own, on dRPC's stream 1 as every call of Coder's.
fn put_frame(out: &mut Vec<u8>, kind: u8, message: u64, body: &[u8]) {
    out.push(kind << 1 | 1);
    out.push(1);
    put_varint(out, message);
    put_varint(out, body.len() as u64);
    out.extend_from_slice(body);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tailnet::{KIND_NODE, Node, parse_id, put_bytes, put_varint_field};

    const AGENT: &str = "8c7d5f4e-0b1a-4c2d-9e3f-a1b2c3d4e5f6";

    fn hex(text: &str) -> Vec<u8> {
        text.as_bytes()
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect()
    }

    fn opened() -> Session {
        let mut session = Session::open("127.0.0.1:1", "/path", "token", 1);
        let mut answer = b"HTTP/1.1 101 Switching Protocols\r\n\r\n".to_vec();
        session
            .receive(&mut answer, &mut |_| unreachable!())
            .unwrap();
        session.out.clear();
        session
    }

    /// Strip and unmask what a client sends.
    fn sent(session: &mut Session) -> Vec<u8> {
        let bytes = std::mem::take(&mut session.out);
        let (mut at, mut plain) = (0, Vec::new());
        while at < bytes.len() {
            assert_eq!(bytes[at], 0x82);
            let (mut len, mut head) = (usize::from(bytes[at + 1] & 0x7f), 2);
            if len == 126 {
                len = usize::from(u16::from_be_bytes([bytes[at + 2], bytes[at + 3]]));
                head = 4;
            }
            let mask = &bytes[at + head..at + head + 4];
            let body = &bytes[at + head + 4..at + head + 4 + len];
            plain.extend(body.iter().zip(mask.iter().cycle()).map(|(b, m)| b ^ m));
            at += head + 4 + len;
        }
        plain
    }

    /// A message as a server sends it: websocket, yamux, dRPC.
    fn from_server(stream: u32, message: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        put_frame(&mut frame, MESSAGE, 1, message);
        let mut out = vec![0x82, 12, 0, DATA, 0, 0];
        out.extend_from_slice(&stream.to_be_bytes());
        out.extend_from_slice(&(frame.len() as u32).to_be_bytes());
        out.extend_from_slice(&[0x82, 126]);
        out.extend_from_slice(&(frame.len() as u16).to_be_bytes());
        out.extend_from_slice(&frame);
        out
    }

    #[test]
    fn calls_are_those_of_go() {
        let mut session = opened();
        session.call(&[vec![0x12, 0]]);
        let mut wire = hex("000100010000000100000000000000000000000100000034");
        wire.extend_from_slice(b"\x03\x01\x01\x28/coder.tailnet.v2.Tailnet/StreamDERPMaps");
        wire.extend_from_slice(&hex("050102000d010300"));
        wire.extend_from_slice(&hex("00010001000000030000000000000000000000030000002e"));
        wire.extend_from_slice(b"\x03\x01\x01\x24/coder.tailnet.v2.Tailnet/Coordinate");
        wire.extend_from_slice(&hex("050102021200"));
        assert_eq!(sent(&mut session), wire);
    }

    #[test]
    fn a_node_comes_back_with_its_number_at_any_cut() {
        let agent = parse_id(AGENT).unwrap();
        let node = Node::new(&mut Rng::new(7), &agent);
        assert_eq!(node.address, "fd7a:115c:a1e0:4c2d:9e3f:a1b2:c3d4:e5f6/128");
        let mut update = Vec::new();
        put_bytes(&mut update, 1, &agent);
        put_bytes(&mut update, 2, &node.encode(41));
        put_varint_field(&mut update, 3, KIND_NODE);
        put_bytes(&mut update, 4, b"node update");
        let mut response = Vec::new();
        put_bytes(&mut response, 1, &update);
        put_bytes(
            &mut response,
            1,
            &hex("0a108c7d5f4e0b1a4c2d9e3fa1b2c3d4e5f61804"),
        );
        put_bytes(
            &mut response,
            1,
            &hex("0a108c7d5f4e0b1a4c2d9e3fa1b2c3d4e5f61803"),
        );
        let wire = [b"\x89\x02hi".to_vec(), from_server(COORDINATE, &response)].concat();
        for cut in 0..=wire.len() {
            let mut session = opened();
            let mut all = Vec::new();
            for part in [&wire[..cut], &wire[cut..]] {
                session
                    .receive(&mut part.to_vec(), &mut |heard| all.push(heard))
                    .unwrap();
            }
            let node = Heard::Node {
                id: agent,
                key: node.key(),
                number: 41,
            };
            let ready = Heard::Ready { id: agent };
            assert_eq!(all, [node, ready, Heard::Gone { id: agent }]);
            assert_eq!(session.out[..2], [0x8a, 0x82]);
        }
    }

    #[test]
    fn what_is_sent_waits_for_credit_and_what_comes_gives_it() {
        let mut session = opened();
        session.call(&[]);
        session.out.clear();
        session.credit = 10;
        session.request(&[0x12, 0]);
        assert_eq!(session.credit, 4);
        sent(&mut session);
        session.request(&[0x12, 0]);
        assert_eq!(sent(&mut session).len(), 12 + 4);
        let mut credit = hex("820c000100000000000300000064");
        session.receive(&mut credit, &mut |_| {}).unwrap();
        assert_eq!(sent(&mut session).len(), 12 + 2);
        assert_eq!(session.credit, 98);

        // Half a window of maps, then the credit for it.
        let map = from_server(DERP_MAPS, &[0; 32_000]);
        for number in 1..=5 {
            session.receive(&mut map.clone(), &mut |_| {}).unwrap();
            let expected = match number {
                5 => hex("00010000000000010002711e"),
                _ => Vec::new(),
            };
            assert_eq!(sent(&mut session), expected, "map {number}");
        }
        assert_eq!(session.maps_received, 5);
    }

    #[test]
    fn pings_are_answered_and_ends_are_errors() {
        let mut session = opened();
        let mut ping = hex("820c000200010000000000000007");
        session.receive(&mut ping, &mut |_| {}).unwrap();
        assert_eq!(sent(&mut session), hex("000200020000000000000007"));
        for end in [
            "820c000100040000000300000000",
            "820c000300000000000000000000",
            "820c010000000000000000000000",
            "880203e8",
        ] {
            assert!(
                opened().receive(&mut hex(end), &mut |_| {}).is_err(),
                "{end}"
            );
        }
        let mut failed = from_server(COORDINATE, b"\x12\x04gone");
        let error = opened().receive(&mut failed, &mut |_| {}).unwrap_err();
        assert_eq!(error, "the coordinator says: gone");
        let mut refused = b"HTTP/1.1 401 Unauthorized\r\n\r\n{}".to_vec();
        let mut session = Session::open("h", "/", "t", 1);
        let error = session.receive(&mut refused, &mut |_| {}).unwrap_err();
        assert!(error.contains("401 Unauthorized"), "{error}");
    }
}
