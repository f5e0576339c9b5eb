//! Packet bodies that are cheap to make and cheap to check whole.
//!
//! A packet of 16 bytes or more is: flow u64 LE, sequence u64 LE, then a slice of one
//! random block, cut at a place that depends on the flow and the sequence. Making it
//! is a memcpy and checking it a memcmp. A shorter packet is only the slice.

use crate::rng::Rng;

const SPREAD: usize = 4096;
pub const MAX_PACKET: usize = 65536;
pub const STAMP: usize = 16;

pub struct Pattern {
    block: Vec<u8>,
}

impl Pattern {
    pub fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed ^ 0x7061_7474_6572_6e00);
        let mut block = Vec::with_capacity(MAX_PACKET + SPREAD);
        while block.len() < MAX_PACKET + SPREAD {
            block.extend_from_slice(&rng.next().to_le_bytes());
        }
        Self { block }
    }

    fn slice(&self, flow: u64, sequence: u64, len: usize) -> &[u8] {
        let start =
            (flow.wrapping_mul(2_654_435_761) ^ sequence.wrapping_mul(40_503)) as usize % SPREAD;
        &self.block[start..start + len]
    }

    pub fn append(&self, out: &mut Vec<u8>, flow: u64, sequence: u64, size: usize) {
        if size < STAMP {
            out.extend_from_slice(self.slice(0, 0, size));
            return;
        }
        out.extend_from_slice(&flow.to_le_bytes());
        out.extend_from_slice(&sequence.to_le_bytes());
        out.extend_from_slice(self.slice(flow, sequence, size - STAMP));
    }

    /// Flow and sequence of a packet, or None if it is too short to bear them.
    pub fn stamp(packet: &[u8]) -> Option<(u64, u64)> {
        let flow = packet.first_chunk::<8>()?;
        let sequence = packet.get(8..)?.first_chunk::<8>()?;
        Some((u64::from_le_bytes(*flow), u64::from_le_bytes(*sequence)))
    }

    /// Whether the whole body is as it was made.
    pub fn intact(&self, packet: &[u8]) -> bool {
        match Self::stamp(packet) {
            Some((flow, sequence)) => {
                packet[STAMP..] == *self.slice(flow, sequence, packet.len() - STAMP)
            }
            None => packet == self.slice(0, 0, packet.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_damage() {
        let pattern = Pattern::new(7);
        for size in [0, 1, 15, 16, 17, 64, 1400, MAX_PACKET] {
            let mut packet = Vec::new();
            pattern.append(&mut packet, 3, 99, size);
            assert_eq!(packet.len(), size);
            assert!(pattern.intact(&packet));
            if size >= STAMP {
                assert_eq!(Pattern::stamp(&packet), Some((3, 99)));
            }
            if size > STAMP {
                packet[size - 1] ^= 1;
                assert!(!pattern.intact(&packet));
            }
        }
    }

    #[test]
    fn bodies_differ_between_packets() {
        let pattern = Pattern::new(7);
        let (mut a, mut b) = (Vec::new(), Vec::new());
        pattern.append(&mut a, 0, 1, 64);
        pattern.append(&mut b, 0, 2, 64);
        assert_ne!(a[STAMP..], b[STAMP..]);
    }
}
