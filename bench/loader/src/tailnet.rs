//! What a coordinator is told and tells, in protobuf.
//!
//! Formats: coder/coder `tailnet/proto/tailnet.proto`.

use std::net::Ipv6Addr;

use crate::rng::Rng;

pub const KIND_NODE: u64 = 1;
const KIND_READY_FOR_HANDSHAKE: u64 = 4;

/// DERP region of Coder's embedded relay.
const REGION: u64 = 999;
/// `as_of` of update 0, in seconds; what is above it is the number of the update.
const EPOCH: u64 = 1_700_000_000;

pub type Id = [u8; 16];

/// One PeerUpdate.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    /// A node, with the number in it.
    Node {
        id: Id,
        key: [u8; 32],
        number: u64,
    },
    Ready {
        id: Id,
    },
    /// Disconnected or lost.
    Gone {
        id: Id,
    },
}

pub fn parse_id(text: &str) -> Result<Id, String> {
    let wrong = || format!("{text:?} is not a UUID");
    let digits: String = text.split('-').collect();
    if digits.len() != 32 || !digits.is_ascii() {
        return Err(wrong());
    }
    let mut id = [0; 16];
    for (index, byte) in id.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&digits[2 * index..2 * index + 2], 16).map_err(|_| wrong())?;
    }
    Ok(id)
}

/// The node of a peer; all that changes is when it is as of.
pub struct Node {
    key: [u8; 32],
    id: u64,
    disco: String,
    pub address: String,
    port: u16,
}

impl Node {
    /// `id` is the one that the address follows from, as an agent's has to.
    pub fn new(rng: &mut Rng, id: &Id) -> Self {
        let mut octets = [
            0xfd, 0x7a, 0x11, 0x5c, 0xa1, 0xe0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        ];
        octets[6..].copy_from_slice(&id[6..]);
        let disco: [u8; 32] = rng.bytes();
        let hex: String = disco.iter().map(|byte| format!("{byte:02x}")).collect();
        Self {
            key: rng.bytes(),
            id: rng.next() >> 1,
            disco: format!("discokey:{hex}"),
            address: format!("{}/128", Ipv6Addr::from(octets)),
            port: 20_000 + (rng.next() % 40_000) as u16,
        }
    }

    pub fn key(&self) -> [u8; 32] {
        self.key
    }

    pub fn encode(&self, number: u64) -> Vec<u8> {
        let mut as_of = Vec::new();
        put_varint_field(&mut as_of, 1, EPOCH + number);
        put_varint_field(&mut as_of, 2, 250_000_000);
        let mut latency = Vec::new();
        put_bytes(&mut latency, 1, b"999-v4");
        latency.push(2 << 3 | 1); // a double
        latency.extend_from_slice(&0.0012f64.to_le_bytes());
        let mut node = Vec::with_capacity(320);
        put_varint_field(&mut node, 1, self.id);
        put_bytes(&mut node, 2, &as_of);
        put_bytes(&mut node, 3, &[b"np", &self.key[..]].concat());
        put_bytes(&mut node, 4, self.disco.as_bytes());
        put_varint_field(&mut node, 5, REGION);
        put_bytes(&mut node, 6, &latency);
        put_bytes(&mut node, 8, self.address.as_bytes());
        put_bytes(&mut node, 9, self.address.as_bytes());
        for host in ["192.0.2.7", "198.51.100.23"] {
            put_bytes(&mut node, 10, format!("{host}:{}", self.port).as_bytes());
        }
        node
    }

    /// The CoordinateRequest that publishes it.
    pub fn update_self(&self, number: u64) -> Vec<u8> {
        let mut update = Vec::new();
        put_bytes(&mut update, 1, &self.encode(number));
        let mut request = Vec::new();
        put_bytes(&mut request, 1, &update);
        request
    }
}

/// The CoordinateRequest that opens a tunnel.
pub fn add_tunnel(id: &Id) -> Vec<u8> {
    let mut tunnel = Vec::new();
    put_bytes(&mut tunnel, 1, id);
    let mut request = Vec::new();
    put_bytes(&mut request, 3, &tunnel);
    request
}

/// The CoordinateRequest with which an agent tells clients that it has their nodes.
pub fn ready_for_handshake(ids: &[Id]) -> Vec<u8> {
    let mut request = Vec::new();
    for id in ids {
        let mut ready = Vec::new();
        put_bytes(&mut ready, 1, id);
        put_bytes(&mut request, 5, &ready);
    }
    request
}

/// Read a CoordinateResponse.
pub fn updates(message: &[u8], heard: &mut dyn FnMut(Heard)) -> Result<(), String> {
    for field in Fields(message) {
        match field? {
            (1, Value::Bytes(update)) => heard(peer_update(update)?),
            (2, Value::Bytes(error)) if !error.is_empty() => {
                let text = String::from_utf8_lossy(error);
                return Err(format!("the coordinator says: {text}"));
            }
            _ => {}
        }
    }
    Ok(())
}

fn peer_update(update: &[u8]) -> Result<Heard, String> {
    let (mut id, mut kind, mut node) = (None, 0, None);
    for field in Fields(update) {
        match field? {
            (1, Value::Bytes(bytes)) => id = bytes.try_into().ok(),
            (2, Value::Bytes(bytes)) => node = Some(bytes),
            (3, Value::Varint(value)) => kind = value,
            _ => {}
        }
    }
    let id: Id = id.ok_or("a peer update without an id of 16 bytes")?;
    if kind == KIND_READY_FOR_HANDSHAKE {
        return Ok(Heard::Ready { id });
    }
    if kind != KIND_NODE {
        return Ok(Heard::Gone { id });
    }
    let (mut key, mut number) = (None, None);
    for field in Fields(node.ok_or("a NODE without a node")?) {
        match field? {
            (2, Value::Bytes(as_of)) => {
                for field in Fields(as_of) {
                    if let (1, Value::Varint(seconds)) = field? {
                        number = seconds.checked_sub(EPOCH);
                    }
                }
            }
            (3, Value::Bytes(bytes)) => {
                key = bytes
                    .strip_prefix(b"np")
                    .and_then(|key| key.try_into().ok());
            }
            _ => {}
        }
    }
    Ok(Heard::Node {
        id,
        key: key.ok_or("a node without a key")?,
        number: number.ok_or("a node that is as of another time than any we sent")?,
    })
}

enum Value<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
    Fixed,
}

/// The fields of a protobuf message, in order.
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Value<'a>), String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.0 = &[]; // Else it would be tried for ever.
        }
        Some(field.ok_or_else(|| "a protobuf message that is broken".into()))
    }
}

impl<'a> Fields<'a> {
    fn field(&mut self) -> Option<(u64, Value<'a>)> {
        let tag = take_varint(&mut self.0)?;
        let value = match tag & 7 {
            0 => Value::Varint(take_varint(&mut self.0)?),
            1 => self.take(8).map(|_| Value::Fixed)?,
            2 => {
                let length = take_varint(&mut self.0)?;
                Value::Bytes(self.take(usize::try_from(length).ok()?)?)
            }
            5 => self.take(4).map(|_| Value::Fixed)?,
            _ => return None,
        };
        Some((tag >> 3, value))
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }
}

pub fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for (index, &byte) in bytes.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte < 0x80 {
            *bytes = &bytes[index + 1..];
            return Some(value);
        }
    }
    None
}

pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub fn put_varint_field(out: &mut Vec<u8>, field: u64, value: u64) {
    put_varint(out, field << 3);
    put_varint(out, value);
}

pub fn put_bytes(out: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    put_varint(out, field << 3 | 2);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        text.as_bytes()
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect()
    }

    #[test]
    fn requests_are_those_of_go() {
        let agent = parse_id("8c7d5f4e-0b1a-4c2d-9e3f-a1b2c3d4e5f6").unwrap();
        let tunnel = hex("1a120a108c7d5f4e0b1a4c2d9e3fa1b2c3d4e5f6");
        assert_eq!(add_tunnel(&agent), tunnel);
        let ready = hex("2a120a108c7d5f4e0b1a4c2d9e3fa1b2c3d4e5f6");
        assert_eq!(ready_for_handshake(&[agent]), ready);
        assert!(parse_id("8c7d5f4e").is_err());
        assert!(parse_id(&"x".repeat(32)).is_err());
    }

    #[test]
    fn what_is_broken_is_an_error_and_not_a_panic() {
        let whole = hex("0a160a108c7d5f4e0b1a4c2d9e3fa1b2c3d4e5f618042200");
        assert!(updates(&whole, &mut |_| {}).is_ok());
        for len in 1..whole.len() {
            assert!(updates(&whole[..len], &mut |_| {}).is_err(), "{len}");
        }
        for text in ["0a00", "0b", "0affffffffffffffffff01", "0a020801"] {
            assert!(updates(&hex(text), &mut |_| {}).is_err(), "{text}");
        }
    }
}
