//! TLS 1.3: rustls does the handshake, this module seals and opens the records.
//!
//! rustls' own record layer costs an allocation and two copies a record. The loader
//! handles one record per packet in the harshest case and has to be cheaper than the
//! relay, so it takes the keys over. rustls still derives the keys of key updates.

use std::sync::Arc;

use ring::aead::{
    AES_128_GCM, AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientConnectionData, Resumption, UnbufferedClientConnection};
use rustls::crypto::ring as provider;
use rustls::kernel::KernelConnection;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::unbuffered::{ConnectionState, EncodeError};
use rustls::{
    ClientConfig, ConnectionTrafficSecrets, DigitallySignedStruct, Error, SignatureScheme,
};

const RECORD_HEADER: usize = 5;
const MAX_PLAIN: usize = 16384;
const TAG: usize = 16;
/// Longest record body that TLS 1.3 allows.
const MAX_BODY: usize = MAX_PLAIN + 256;
/// AES-GCM may seal 2^24.5 records with one key.
pub const REKEY_RECORDS: u64 = 1 << 23;

const CHANGE_CIPHER_SPEC: u8 = 20;
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;
const NEW_SESSION_TICKET: u8 = 4;
const KEY_UPDATE: u8 = 24;

/// A relay under test has a self-signed certificate.
#[derive(Debug)]
struct AcceptAny;

impl ServerCertVerifier for AcceptAny {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

pub fn client_config() -> Arc<ClientConfig> {
    let mut crypto = provider::default_provider();
    // AES-128 first, as Go's client: a relay that follows the client's order then
    // uses what derper chooses by its own.
    crypto.cipher_suites = vec![
        provider::cipher_suite::TLS13_AES_128_GCM_SHA256,
        provider::cipher_suite::TLS13_AES_256_GCM_SHA384,
        provider::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    let mut config = ClientConfig::builder_with_provider(Arc::new(crypto))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has TLS 1.3 suites")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AcceptAny))
        .with_no_client_auth();
    config.enable_secret_extraction = true;
    // Every handshake is a full one.
    config.resumption = Resumption::disabled();
    Arc::new(config)
}

pub struct Handshake {
    conn: UnbufferedClientConnection,
    incoming: Vec<u8>,
}

impl Handshake {
    pub fn new(config: &Arc<ClientConfig>, name: &ServerName<'static>) -> Result<Self, String> {
        let conn = UnbufferedClientConnection::new(Arc::clone(config), name.clone())
            .map_err(|error| format!("tls: {error}"))?;
        Ok(Self {
            conn,
            incoming: Vec::new(),
        })
    }

    /// Take bytes from the relay, append bytes for it to `out`. True when it is done.
    pub fn advance(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<bool, String> {
        self.incoming.extend_from_slice(bytes);
        loop {
            let status = self.conn.process_tls_records(&mut self.incoming);
            let discard = status.discard;
            let mut over = None;
            match status.state.map_err(|error| format!("tls: {error}"))? {
                ConnectionState::EncodeTlsData(mut state) => {
                    let start = out.len();
                    let mut room = 1024;
                    loop {
                        out.resize(start + room, 0);
                        match state.encode(&mut out[start..]) {
                            Ok(len) => {
                                out.truncate(start + len);
                                break;
                            }
                            Err(EncodeError::InsufficientSize(error)) => room = error.required_size,
                            Err(error) => return Err(format!("tls: {error}")),
                        }
                    }
                }
                ConnectionState::TransmitTlsData(state) => state.done(),
                ConnectionState::BlockedHandshake => over = Some(false),
                ConnectionState::WriteTraffic(_) => over = Some(true),
                // Nothing was sent to the relay yet that it could answer.
                ConnectionState::ReadTraffic(_) => {
                    return Err("tls: application data before the request".into());
                }
                other => return Err(format!("tls: unexpected state {other:?}")),
            }
            self.incoming.drain(..discard);
            if let Some(done) = over {
                return Ok(done);
            }
        }
    }

    /// The relay's DERP key from its meta certificate.
    pub fn derp_key(&self) -> Option<[u8; 32]> {
        self.conn
            .peer_certificates()?
            .iter()
            .find_map(|certificate| meta_key(certificate))
    }

    /// The record layer and what was read of the next record.
    pub fn finish(self, rekey_records: u64) -> Result<(Session, Vec<u8>), String> {
        let (secrets, kernel) = self
            .conn
            .dangerous_into_kernel_connection()
            .map_err(|error| format!("tls: {error}"))?;
        let session = Session {
            tx: Half::new(secrets.tx)?,
            rx: Half::new(secrets.rx)?,
            kernel,
            messages: Vec::new(),
            owes_key_update: false,
            closed: false,
            rekey_records,
        };
        Ok((session, self.incoming))
    }
}

/// The key in a certificate with the common name `derpkey<hex>`. The name is longer
/// than X.509 allows, so a proper parser may refuse it; the bytes are unmistakable.
fn meta_key(der: &[u8]) -> Option<[u8; 32]> {
    const PREFIX: &[u8] = b"derpkey";
    let at = der.windows(PREFIX.len()).position(|part| part == PREFIX)?;
    let hex = der.get(at + PREFIX.len()..at + PREFIX.len() + 64)?;
    let mut key = [0; 32];
    for (byte, pair) in key.iter_mut().zip(hex.chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(key)
}

struct Half {
    key: LessSafeKey,
    iv: [u8; 12],
    sequence: u64,
}

impl Half {
    fn new((sequence, secrets): (u64, ConnectionTrafficSecrets)) -> Result<Self, String> {
        let (algorithm, key, iv) = match &secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (&CHACHA20_POLY1305, key, iv),
            _ => return Err("tls: unknown cipher".into()),
        };
        let key = UnboundKey::new(algorithm, key.as_ref()).map_err(|_| "tls: bad key length")?;
        Ok(Self {
            key: LessSafeKey::new(key),
            iv: iv.as_ref().try_into().map_err(|_| "tls: bad iv length")?,
            sequence,
        })
    }

    fn nonce(&mut self) -> Nonce {
        let mut nonce = self.iv;
        for (byte, part) in nonce[4..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= part;
        }
        self.sequence += 1;
        Nonce::assume_unique_for_key(nonce)
    }

    fn seal(&mut self, kind: u8, plain: &[u8], out: &mut Vec<u8>) {
        let body = plain.len() + 1 + TAG;
        let header = [
            APPLICATION_DATA,
            3,
            3,
            (body >> 8) as u8,
            (body & 0xff) as u8,
        ];
        out.extend_from_slice(&header);
        let start = out.len();
        out.extend_from_slice(plain);
        out.push(kind);
        let nonce = self.nonce();
        let tag = self
            .key
            .seal_in_place_separate_tag(nonce, Aad::from(header), &mut out[start..])
            .expect("a record is far below the length limit");
        out.extend_from_slice(tag.as_ref());
    }
}

pub struct Session {
    tx: Half,
    rx: Half,
    kernel: KernelConnection<ClientConnectionData>,
    /// Part of a handshake message that spans records.
    messages: Vec<u8>,
    owes_key_update: bool,
    pub closed: bool,
    rekey_records: u64,
}

impl Session {
    pub fn cipher(&self) -> String {
        format!("{:?}", self.kernel.negotiated_cipher_suite().suite())
    }

    /// Seal `plain` as one write: one record, or as many as its length needs.
    pub fn seal(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
        if self.owes_key_update || self.tx.sequence >= self.rekey_records {
            self.tx.seal(HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, 0], out);
            let next = self.kernel.update_tx_secret();
            self.tx = Half::new(next.map_err(|error| format!("tls: {error}"))?)?;
            self.owes_key_update = false;
        }
        for part in plain.chunks(MAX_PLAIN) {
            self.tx.seal(APPLICATION_DATA, part, out);
        }
        Ok(())
    }

    pub fn seal_close(&mut self, out: &mut Vec<u8>) {
        self.tx.seal(ALERT, &[1, 0], out);
    }

    /// Open the whole records in `buf[from..to]` and put their plaintext at `plain`,
    /// which is not above `from`. Returns the end of the plaintext and the start of
    /// the record that is not whole yet.
    pub fn open(
        &mut self,
        buf: &mut [u8],
        mut plain: usize,
        mut from: usize,
        to: usize,
    ) -> Result<(usize, usize), String> {
        while to - from >= RECORD_HEADER && !self.closed {
            let header: [u8; RECORD_HEADER] = buf[from..from + RECORD_HEADER]
                .try_into()
                .expect("five bytes");
            let body = usize::from(header[3]) << 8 | usize::from(header[4]);
            if body > MAX_BODY {
                return Err(format!("tls: record of {body} bytes"));
            }
            let end = from + RECORD_HEADER + body;
            if end > to {
                break;
            }
            if header[0] == CHANGE_CIPHER_SPEC {
                from = end;
                continue;
            }
            if header[0] != APPLICATION_DATA || body <= TAG {
                return Err(format!("tls: record of type {}", header[0]));
            }
            let nonce = self.rx.nonce();
            let opened = self
                .rx
                .key
                .open_within(
                    nonce,
                    Aad::from(header),
                    &mut buf[plain..end],
                    from + RECORD_HEADER - plain..,
                )
                .map_err(|_| "tls: a record does not open")?;
            // The type is the last byte that is not padding.
            let last = opened
                .iter()
                .rposition(|&byte| byte != 0)
                .ok_or("tls: a record without type")?;
            match opened[last] {
                APPLICATION_DATA => plain += last,
                HANDSHAKE => {
                    self.messages.extend_from_slice(&opened[..last]);
                    self.handshake_messages()?;
                }
                ALERT if opened[..last] == [1, 0] => self.closed = true,
                ALERT => return Err(format!("tls: alert {:?}", &opened[..last])),
                kind => return Err(format!("tls: inner record of type {kind}")),
            }
            from = end;
        }
        Ok((plain, from))
    }

    fn handshake_messages(&mut self) -> Result<(), String> {
        while let Some(&[kind, high, middle, low]) = self.messages.first_chunk::<4>() {
            let len = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
            if self.messages.len() < 4 + len {
                break;
            }
            match (kind, self.messages.get(4)) {
                (NEW_SESSION_TICKET, _) => {}
                (KEY_UPDATE, Some(&asked)) => {
                    let next = self.kernel.update_rx_secret();
                    self.rx = Half::new(next.map_err(|error| format!("tls: {error}"))?)?;
                    self.owes_key_update |= asked == 1;
                }
                _ => return Err(format!("tls: handshake message of type {kind}")),
            }
            self.messages.drain(..4 + len);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_key_of_a_meta_certificate() {
        let mut der = b"\x30\x82junk\x0c\x47derpkey".to_vec();
        der.extend_from_slice("0f".repeat(32).as_bytes());
        der.extend_from_slice(b"more");
        assert_eq!(meta_key(&der), Some([15; 32]));
        assert_eq!(meta_key(&der[..60]), None);
        assert_eq!(meta_key(b"no key at all"), None);
    }

    #[test]
    fn seals_and_opens_with_the_plaintext_moved_down() {
        let half = || Half {
            key: LessSafeKey::new(UnboundKey::new(&AES_128_GCM, &[1; 16]).unwrap()),
            iv: [2; 12],
            sequence: 5,
        };
        let (mut tx, mut rx) = (half(), half());
        let mut buf = vec![9; 7];
        for text in [&b"first"[..], b"second"] {
            tx.seal(APPLICATION_DATA, text, &mut buf);
        }
        let mut from = 7;
        for text in [&b"first"[..], b"second"] {
            let header: [u8; 5] = buf[from..from + 5].try_into().unwrap();
            let end = from + 5 + text.len() + 1 + TAG;
            let nonce = rx.nonce();
            let opened = rx
                .key
                .open_within(nonce, Aad::from(header), &mut buf[2..end], from + 5 - 2..)
                .unwrap();
            assert_eq!(opened[..text.len()], *text);
            assert_eq!(opened[text.len()], APPLICATION_DATA);
            from = end;
        }
    }
}
