//! DERP frames: a type byte, a big-endian length, the payload.

pub const HEADER: usize = 5;
pub const KEY: usize = 32;
/// The Go client closes the connection for anything larger.
const MAX_FRAME: usize = 1 << 20;

pub const SERVER_KEY: u8 = 0x01;
pub const CLIENT_INFO: u8 = 0x02;
pub const SERVER_INFO: u8 = 0x03;
pub const SEND_PACKET: u8 = 0x04;
pub const RECV_PACKET: u8 = 0x05;
pub const KEEP_ALIVE: u8 = 0x06;
pub const NOTE_PREFERRED: u8 = 0x07;
pub const PEER_GONE: u8 = 0x08;
pub const PING: u8 = 0x12;
pub const PONG: u8 = 0x13;

pub const MAGIC: &[u8; 8] = b"DERP\xf0\x9f\x94\x91";

pub fn header(out: &mut Vec<u8>, kind: u8, len: usize) {
    out.push(kind);
    out.extend_from_slice(&(len as u32).to_be_bytes());
}

pub fn write(out: &mut Vec<u8>, kind: u8, payload: &[u8]) {
    header(out, kind, payload.len());
    out.extend_from_slice(payload);
}

#[derive(Debug, PartialEq, Eq)]
pub enum Parsed<'a> {
    /// The type, the payload and how many bytes the frame took.
    Frame(u8, &'a [u8], usize),
    Incomplete,
    TooLong(usize),
}

pub fn parse(bytes: &[u8]) -> Parsed<'_> {
    let Some(head) = bytes.first_chunk::<HEADER>() else {
        return Parsed::Incomplete;
    };
    let len = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
    if len > MAX_FRAME {
        return Parsed::TooLong(len);
    }
    match bytes.get(HEADER..HEADER + len) {
        Some(payload) => Parsed::Frame(head[0], payload, HEADER + len),
        None => Parsed::Incomplete,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_the_known_vectors() {
        let mut out = Vec::new();
        write(&mut out, NOTE_PREFERRED, &[1]);
        write(&mut out, PING, b"abcdefgh");
        assert_eq!(out, b"\x07\x00\x00\x00\x01\x01\x12\x00\x00\x00\x08abcdefgh");
    }

    #[test]
    fn parses_back_to_back_frames_at_any_cut() {
        let mut stream = Vec::new();
        write(&mut stream, RECV_PACKET, &[9; 40]);
        write(&mut stream, KEEP_ALIVE, &[]);
        for cut in 0..45 {
            assert_eq!(parse(&stream[..cut]), Parsed::Incomplete);
        }
        assert_eq!(parse(&stream), Parsed::Frame(RECV_PACKET, &[9; 40], 45));
        assert_eq!(parse(&stream[45..]), Parsed::Frame(KEEP_ALIVE, &[], 5));
    }

    #[test]
    fn refuses_a_frame_above_one_mebibyte() {
        assert_eq!(parse(&[5, 0, 0x10, 0, 1]), Parsed::TooLong((1 << 20) + 1));
        assert_eq!(parse(&[5, 0, 0x10, 0, 0]), Parsed::Incomplete);
    }
}
