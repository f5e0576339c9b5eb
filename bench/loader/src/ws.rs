//! WebSocket framing around a DERP byte stream (RFC 6455, client side).
//!
//! Message bounds mean nothing to DERP: what comes in is joined to one stream.

const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// The default read limit of the library that derper uses.
pub const MAX_MESSAGE: usize = 32768;

fn message(out: &mut Vec<u8>, opcode: u8, payload: &[u8], mask: [u8; 4]) {
    out.push(0x80 | opcode);
    match payload.len() {
        len @ 0..=125 => out.push(0x80 | len as u8),
        len @ 126..=0xffff => {
            out.push(0x80 | 126);
            out.extend_from_slice(&(len as u16).to_be_bytes());
        }
        len => {
            out.push(0x80 | 127);
            out.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&mask);
    let start = out.len();
    out.extend_from_slice(payload);
    let wide = u64::from_ne_bytes([
        mask[0], mask[1], mask[2], mask[3], mask[0], mask[1], mask[2], mask[3],
    ]);
    let mut chunks = out[start..].chunks_exact_mut(8);
    for chunk in &mut chunks {
        let word = u64::from_ne_bytes(chunk.try_into().expect("eight bytes")) ^ wide;
        chunk.copy_from_slice(&word.to_ne_bytes());
    }
    for (byte, mask) in chunks
        .into_remainder()
        .iter_mut()
        .zip(mask.into_iter().cycle())
    {
        *byte ^= mask;
    }
}

/// Append one masked binary message.
pub fn binary(out: &mut Vec<u8>, payload: &[u8], mask: [u8; 4]) {
    message(out, BINARY, payload, mask);
}

/// Append the masked answer to a ping.
pub fn pong(out: &mut Vec<u8>, payload: &[u8], mask: [u8; 4]) {
    message(out, PONG, payload, mask);
}

#[derive(Default)]
pub struct Reader {
    head: Vec<u8>,
    left: u64,
    opcode: u8,
    control: Vec<u8>,
    /// Payloads of pings that are to be answered.
    pub pings: Vec<Vec<u8>>,
    pub closed: bool,
}

impl Reader {
    /// Strip the framing from `bytes` in place. Returns how much payload is left in it.
    pub fn strip(&mut self, bytes: &mut [u8]) -> Result<usize, String> {
        let (mut read, mut write) = (0, 0);
        while read < bytes.len() {
            if self.left == 0 {
                self.head.push(bytes[read]);
                read += 1;
                self.header()?;
                continue;
            }
            let take = (bytes.len() - read).min(usize::try_from(self.left).unwrap_or(usize::MAX));
            if self.opcode >= CLOSE {
                self.control.extend_from_slice(&bytes[read..read + take]);
            } else {
                bytes.copy_within(read..read + take, write);
                write += take;
            }
            read += take;
            self.left -= take as u64;
            if self.left == 0 {
                self.end_of_message();
            }
        }
        Ok(write)
    }

    fn header(&mut self) -> Result<(), String> {
        let Some(&[first, second]) = self.head.first_chunk::<2>() else {
            return Ok(());
        };
        if first & 0x70 != 0 || second & 0x80 != 0 {
            return Err("websocket: reserved bits or a masked message from the relay".into());
        }
        let extended = match second {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        if self.head.len() < 2 + extended {
            return Ok(());
        }
        self.left = match extended {
            0 => u64::from(second),
            _ => self.head[2..]
                .iter()
                .fold(0, |sum, &byte| sum << 8 | u64::from(byte)),
        };
        self.head.clear();
        match first & 0x0f {
            // A continuation belongs to a binary message: nothing else is let through.
            0 | BINARY => self.opcode = BINARY,
            opcode @ (CLOSE | PING | PONG) if self.left <= 125 => self.opcode = opcode,
            opcode => return Err(format!("websocket: unexpected message of type {opcode}")),
        }
        if self.left == 0 {
            self.end_of_message();
        }
        Ok(())
    }

    fn end_of_message(&mut self) {
        match self.opcode {
            CLOSE => self.closed = true,
            PING => self.pings.push(std::mem::take(&mut self.control)),
            _ => {}
        }
        self.control.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_every_length_form() {
        for len in [0usize, 3, 125, 126, 1000, 0xffff, 0x10000] {
            let payload: Vec<u8> = (0..len).map(|i| i as u8).collect();
            let mut out = Vec::new();
            let mask = [1, 2, 3, 4];
            binary(&mut out, &payload, mask);
            let body = &out[out.len() - len..];
            let plain: Vec<u8> = body
                .iter()
                .enumerate()
                .map(|(i, b)| b ^ mask[i % 4])
                .collect();
            assert_eq!(plain, payload);
        }
    }

    #[test]
    fn joins_messages_at_any_cut_and_keeps_pings_apart() {
        let stream = b"\x82\x03abc\x89\x02hi\x82\x7e\x00\x04defg\x80\x00\x82\x01h";
        for cut in 0..=stream.len() {
            let mut reader = Reader::default();
            let mut plain = Vec::new();
            for part in [&stream[..cut], &stream[cut..]] {
                let mut bytes = part.to_vec();
                let len = reader.strip(&mut bytes).unwrap();
                plain.extend_from_slice(&bytes[..len]);
            }
            assert_eq!(plain, b"abcdefgh");
            assert_eq!(reader.pings, [b"hi".to_vec()]);
        }
    }

    #[test]
    fn refuses_text_and_sees_close() {
        assert!(Reader::default().strip(&mut b"\x81\x01a".to_vec()).is_err());
        let mut reader = Reader::default();
        reader.strip(&mut b"\x88\x02\x03\xe8".to_vec()).unwrap();
        assert!(reader.closed);
    }
}
