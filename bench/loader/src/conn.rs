//! One client connection: socket, TLS, WebSocket, the DERP handshake, frames.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use crypto_box::aead::Aead;
use crypto_box::{PublicKey, SalsaBox, SecretKey};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;

use crate::frame::{self, Parsed};
use crate::rng::Rng;
use crate::sys;
use crate::tls;
use crate::ws;

/// What one read takes at most.
const READ: usize = 256 * 1024;
/// Room in the shared buffer for an unfinished frame and an unfinished record.
const CARRY: usize = (1 << 20) + 32 * 1024;

/// How to connect; the same for all connections of a run.
pub struct Target {
    pub addr: SocketAddr,
    pub tls: Option<Arc<ClientConfig>>,
    pub server_name: ServerName<'static>,
    pub host: String,
    pub websocket: bool,
    pub fast_start: bool,
    pub rekey_records: u64,
}

/// Buffers that all connections of a thread share.
pub struct Buffers {
    recv: Vec<u8>,
    framed: Vec<u8>,
}

impl Buffers {
    pub fn new() -> Self {
        Self {
            recv: vec![0; READ + CARRY],
            framed: Vec::new(),
        }
    }
}

enum Phase {
    Connecting,
    Tls(Box<tls::Handshake>),
    Http,
    ServerKey,
    ServerInfo,
    Ready,
}

pub struct Conn {
    stream: TcpStream,
    phase: Phase,
    session: Option<Box<tls::Session>>,
    ws: Option<Box<ws::Reader>>,
    out: Vec<u8>,
    out_at: usize,
    plain_carry: Vec<u8>,
    cipher_carry: Vec<u8>,
    rng: Rng,
    secret: SecretKey,
    pub key: [u8; 32],
    sealing: Option<Box<SalsaBox>>,
    /// Whether the epoll registration asks for writability.
    pub wants_write: bool,
    pub sends: u64,
    pub receives: u64,
    /// Bytes read from the socket.
    pub received: u64,
}

impl Conn {
    pub fn open(target: &Target, seed: u64, receive_buffer: Option<u32>) -> Result<Self, String> {
        let mut rng = Rng::new(seed);
        let mut bytes: [u8; 32] = rng.bytes();
        bytes[0] &= 248;
        bytes[31] = bytes[31] & 127 | 64;
        let secret = SecretKey::from(bytes);
        let stream = sys::connect(target.addr, receive_buffer)
            .map_err(|error| format!("connect to {}: {error}", target.addr))?;
        Ok(Self {
            stream,
            phase: Phase::Connecting,
            session: None,
            ws: target.websocket.then(Box::default),
            out: Vec::new(),
            out_at: 0,
            plain_carry: Vec::new(),
            cipher_carry: Vec::new(),
            rng,
            key: *secret.public_key().as_bytes(),
            secret,
            sealing: None,
            wants_write: true,
            sends: 0,
            receives: 0,
            received: 0,
        })
    }

    pub fn fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }

    pub fn ready(&self) -> bool {
        matches!(self.phase, Phase::Ready)
    }

    pub fn cipher(&self) -> Option<String> {
        self.session.as_ref().map(|session| session.cipher())
    }

    /// Whether bytes wait for the socket to take them.
    pub fn blocked(&self) -> bool {
        self.out_at < self.out.len() || matches!(self.phase, Phase::Connecting)
    }

    /// Bytes of a frame that has not arrived whole.
    pub fn unfinished(&self) -> usize {
        self.plain_carry.len() + self.cipher_carry.len()
    }

    /// Queue `plain` as one write. Nothing is sent before [`Self::flush`].
    pub fn write(&mut self, plain: &[u8], buffers: &mut Buffers) -> Result<(), String> {
        if self.ws.is_some() && !matches!(self.phase, Phase::Tls(_) | Phase::Http) {
            buffers.framed.clear();
            for part in plain.chunks(ws::MAX_MESSAGE) {
                let mask = (self.rng.next() as u32).to_ne_bytes();
                ws::binary(&mut buffers.framed, part, mask);
            }
            let framed = std::mem::take(&mut buffers.framed);
            let result = self.seal(&framed);
            buffers.framed = framed;
            return result;
        }
        self.seal(plain)
    }

    fn seal(&mut self, plain: &[u8]) -> Result<(), String> {
        match &mut self.session {
            Some(session) => session.seal(plain, &mut self.out),
            None => {
                self.out.extend_from_slice(plain);
                Ok(())
            }
        }
    }

    /// Send what is queued, as far as the socket takes it.
    pub fn flush(&mut self) -> Result<(), String> {
        while self.out_at < self.out.len() {
            self.sends += 1;
            match (&self.stream).write(&self.out[self.out_at..]) {
                Ok(len) => self.out_at += len,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(format!("send: {error}")),
            }
        }
        self.out.clear();
        self.out_at = 0;
        Ok(())
    }

    /// The socket is writable.
    pub fn on_writable(&mut self, target: &Target, buffers: &mut Buffers) -> Result<(), String> {
        if matches!(self.phase, Phase::Connecting) {
            if let Some(error) = self
                .stream
                .take_error()
                .map_err(|error| error.to_string())?
            {
                return Err(format!("connect to {}: {error}", target.addr));
            }
            match &target.tls {
                Some(config) => {
                    let mut handshake = tls::Handshake::new(config, &target.server_name)?;
                    handshake.advance(&[], &mut self.out)?;
                    self.phase = Phase::Tls(Box::new(handshake));
                }
                None => self.request(target, buffers, None)?,
            }
        }
        self.flush()
    }

    /// The socket is readable: read once, at most `limit` bytes, and hand over whole frames.
    ///
    /// `frames` sees none before the connection is ready. Ok(false) is the end of the stream.
    pub fn on_readable(
        &mut self,
        target: &Target,
        buffers: &mut Buffers,
        limit: usize,
        frames: &mut dyn FnMut(u8, &[u8]),
    ) -> Result<bool, String> {
        let mut recv = std::mem::take(&mut buffers.recv);
        let result = self.read_into(&mut recv, target, buffers, limit, frames);
        buffers.recv = recv;
        result
    }

    fn read_into(
        &mut self,
        buf: &mut [u8],
        target: &Target,
        buffers: &mut Buffers,
        limit: usize,
        frames: &mut dyn FnMut(u8, &[u8]),
    ) -> Result<bool, String> {
        // Layout: unfinished frame, unfinished record, what is read now.
        let carried = self.plain_carry.len();
        let start = carried + self.cipher_carry.len();
        self.receives += 1;
        let read = loop {
            match (&self.stream).read(&mut buf[start..start + limit.min(READ)]) {
                Ok(0) => return Ok(false),
                Ok(len) => break len,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(format!("receive: {error}")),
            }
        };
        let end = start + read;
        self.received += read as u64;
        if let Phase::Tls(handshake) = &mut self.phase {
            if handshake.advance(&buf[start..end], &mut self.out)? {
                let key = handshake.derp_key();
                let Phase::Tls(handshake) = std::mem::replace(&mut self.phase, Phase::Http) else {
                    unreachable!("it was Tls a moment ago");
                };
                let (session, rest) = handshake.finish(target.rekey_records)?;
                self.session = Some(Box::new(session));
                self.cipher_carry = rest;
                self.request(target, buffers, key)?;
            }
            self.flush()?;
            return Ok(true);
        }
        buf[..carried].copy_from_slice(&self.plain_carry);
        buf[carried..start].copy_from_slice(&self.cipher_carry);
        self.plain_carry.clear();
        self.cipher_carry.clear();
        let mut plain_end = end;
        if let Some(session) = &mut self.session {
            let (opened, rest) = session.open(buf, carried, carried, end)?;
            self.cipher_carry.extend_from_slice(&buf[rest..end]);
            plain_end = opened;
        }
        let mut at = 0;
        if matches!(self.phase, Phase::Http) {
            let Some(head) = find(&buf[..plain_end], b"\r\n\r\n") else {
                if plain_end > 65536 {
                    return Err("the answer to the upgrade has no end".into());
                }
                self.plain_carry.extend_from_slice(&buf[..plain_end]);
                return Ok(!self.ended());
            };
            if !buf.starts_with(b"HTTP/1.1 101 ") {
                let line = buf[..head].split(|&byte| byte == b'\r').next();
                let line = String::from_utf8_lossy(line.unwrap_or_default());
                return Err(format!("the relay refused the upgrade: {line}"));
            }
            at = head + 4;
            self.phase = Phase::ServerKey;
        }
        if let Some(ws) = &mut self.ws {
            // What was carried is stripped already.
            let fresh = at.max(carried);
            plain_end = fresh + ws.strip(&mut buf[fresh..plain_end])?;
            if !ws.pings.is_empty() {
                for ping in std::mem::take(&mut ws.pings) {
                    let mask = (self.rng.next() as u32).to_ne_bytes();
                    let mut answer = Vec::new();
                    ws::pong(&mut answer, &ping, mask);
                    self.seal(&answer)?;
                }
                self.flush()?;
            }
        }
        loop {
            match frame::parse(&buf[at..plain_end]) {
                Parsed::Frame(kind, payload, len) => {
                    if self.ready() {
                        frames(kind, payload);
                    } else {
                        self.handshake_frame(kind, payload, buffers)?;
                    }
                    at += len;
                }
                Parsed::Incomplete => break,
                Parsed::TooLong(len) => return Err(format!("a frame of {len} bytes")),
            }
        }
        self.plain_carry.extend_from_slice(&buf[at..plain_end]);
        Ok(!self.ended())
    }

    fn ended(&self) -> bool {
        self.session.as_ref().is_some_and(|session| session.closed)
            || self.ws.as_ref().is_some_and(|ws| ws.closed)
    }

    /// Send the upgrade request, and with a known server key the client info with it.
    fn request(
        &mut self,
        target: &Target,
        buffers: &mut Buffers,
        key: Option<[u8; 32]>,
    ) -> Result<(), String> {
        let host = &target.host;
        let mut request = format!("GET /derp HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\n");
        if target.websocket {
            request += "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                        Sec-WebSocket-Key: ZGVycC1sb2FkZXItZGVycA==\r\n\
                        Sec-WebSocket-Protocol: derp\r\n\r\n";
        } else {
            request += "User-Agent: Go-http-client/1.1\r\nUpgrade: DERP\r\n";
            request += if target.fast_start {
                "Derp-Fast-Start: 1\r\n\r\n"
            } else {
                "\r\n"
            };
        }
        self.phase = Phase::Http;
        if !target.fast_start {
            return self.write(request.as_bytes(), buffers);
        }
        let key = key.ok_or("fast start: the relay shows no meta certificate")?;
        let mut first = request.into_bytes();
        self.client_info(&key, &mut first)?;
        self.phase = Phase::ServerKey;
        self.write(&first, buffers)?;
        self.note_preferred(buffers)
    }

    fn client_info(&mut self, server: &[u8; 32], out: &mut Vec<u8>) -> Result<(), String> {
        const INFO: &[u8] = br#"{"version":2,"CanAckPings":true}"#;
        let sealing = SalsaBox::new(&PublicKey::from(*server), &self.secret);
        let nonce: [u8; 24] = self.rng.bytes();
        let sealed = sealing
            .encrypt(&nonce.into(), INFO)
            .map_err(|_| "the client info cannot be sealed")?;
        frame::header(out, frame::CLIENT_INFO, 32 + 24 + sealed.len());
        out.extend_from_slice(&self.key);
        out.extend_from_slice(&nonce);
        out.extend_from_slice(&sealed);
        self.sealing = Some(Box::new(sealing));
        Ok(())
    }

    fn note_preferred(&mut self, buffers: &mut Buffers) -> Result<(), String> {
        let mut note = Vec::new();
        frame::write(&mut note, frame::NOTE_PREFERRED, &[1]);
        self.write(&note, buffers)
    }

    fn handshake_frame(
        &mut self,
        kind: u8,
        payload: &[u8],
        buffers: &mut Buffers,
    ) -> Result<(), String> {
        match (&self.phase, kind) {
            (Phase::ServerKey, frame::SERVER_KEY) => {
                if payload.len() < 40 || !payload.starts_with(frame::MAGIC) {
                    return Err("the server key frame is not one".into());
                }
                self.phase = Phase::ServerInfo;
                // With fast start it was sent already.
                if self.sealing.is_none() {
                    let server = payload[8..40].try_into().expect("32 bytes");
                    let mut info = Vec::new();
                    self.client_info(&server, &mut info)?;
                    self.write(&info, buffers)?;
                    self.note_preferred(buffers)?;
                    self.flush()?;
                }
                Ok(())
            }
            (Phase::ServerInfo, frame::SERVER_INFO) => {
                let (nonce, sealed) = payload
                    .split_first_chunk::<24>()
                    .ok_or("the server info is too short")?;
                let sealing = self.sealing.take().expect("set with the client info");
                let info = sealing
                    .decrypt(nonce.into(), sealed)
                    .map_err(|_| "the server info does not open")?;
                if !info.starts_with(b"{") {
                    return Err("the server info is not JSON".into());
                }
                self.phase = Phase::Ready;
                Ok(())
            }
            (_, kind) => Err(format!("frame {kind:#04x} in the handshake")),
        }
    }

    /// Say goodbye as TLS wants it, as far as the socket takes it at once.
    pub fn close(mut self) {
        if let Some(session) = &mut self.session {
            session.seal_close(&mut self.out);
            let _ = self.flush();
        }
    }
}

fn find(hay: &[u8], needle: &[u8]) -> Option<usize> {
    hay.windows(needle.len()).position(|part| part == needle)
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

    fn key(text: &str) -> [u8; 32] {
        hex(text).try_into().unwrap()
    }

    /// The vectors of the fact sheet, computed with libsodium.
    #[test]
    fn the_boxes_are_those_of_libsodium() {
        let server = SecretKey::from(key(
            "1011111111111111111111111111111111111111111111111111111111111151",
        ));
        let client = SecretKey::from(key(
            "2022222222222222222222222222222222222222222222222222222222222262",
        ));
        assert_eq!(
            *client.public_key().as_bytes(),
            key("0faa684ed28867b97f4a6a2dee5df8ce974e76b7018e3f22a1c4cf2678570f20")
        );
        let sealing = SalsaBox::new(&server.public_key(), &client);
        let nonce: [u8; 24] = std::array::from_fn(|i| i as u8);
        let sealed = sealing
            .encrypt(&nonce.into(), &br#"{"version":2,"CanAckPings":true}"#[..])
            .unwrap();
        assert_eq!(
            sealed,
            hex(concat!(
                "a858a062bb55fbd0e565bf952225b5e220ae6ff32ce093a7",
                "548f0f9efd7331db8b94711fe4546f1ed0d738121d94abe3"
            ))
        );
        let nonce: [u8; 24] = std::array::from_fn(|i| i as u8 + 0x18);
        let info = sealing
            .decrypt(
                &nonce.into(),
                &hex("48d4e10bb2f1dedcba9b4640f9c2b79086782b02b3b9514bd41e78bc86")[..],
            )
            .unwrap();
        assert_eq!(info, br#"{"version":2}"#);
    }
}
