//! One flow: packets from one key to another, with a window.

use std::collections::VecDeque;

/// What nothing arriving for this long means: all that is out is lost.
pub const STALL_NS: u64 = 200_000_000;

#[derive(Debug, PartialEq, Eq)]
pub enum Arrival {
    /// In order; so many packets before it are now known to be lost.
    Delivered { newly_lost: u64 },
    /// It had been written off after a stall and came after all.
    Late,
    /// A sequence number that was passed already: the order is broken, or it came twice.
    Reordered,
    /// Never sent.
    Impossible,
}

#[derive(Default)]
pub struct Flow {
    /// Sequence number of the next packet to send; also how many were sent.
    pub sent: u64,
    /// All below this are delivered or lost.
    settled: u64,
    /// One above the last sequence number that did arrive.
    arrived: u64,
    /// Last arrival, or the send that ended a time with nothing outstanding.
    progress_ns: u64,
    /// Send times of sampled packets, oldest first.
    samples: VecDeque<(u64, u64)>,
}

impl Flow {
    pub fn outstanding(&self) -> u64 {
        self.sent - self.settled
    }

    /// Take the next sequence number.
    pub fn send(&mut self, now_ns: u64) -> u64 {
        if self.sent == self.settled {
            self.progress_ns = now_ns;
        }
        self.sent += 1;
        self.sent - 1
    }

    pub fn sample(&mut self, sequence: u64, now_ns: u64) {
        self.samples.push_back((sequence, now_ns));
    }

    /// Send time of a sampled packet. Forgets the samples before it.
    pub fn sampled(&mut self, sequence: u64) -> Option<u64> {
        while let Some(&(first, at)) = self.samples.front() {
            if first > sequence {
                return None;
            }
            self.samples.pop_front();
            if first == sequence {
                return Some(at);
            }
        }
        None
    }

    pub fn arrive(&mut self, sequence: u64, now_ns: u64) -> Arrival {
        if sequence >= self.sent {
            return Arrival::Impossible;
        }
        if sequence < self.arrived {
            return Arrival::Reordered;
        }
        self.progress_ns = now_ns;
        self.arrived = sequence + 1;
        if sequence < self.settled {
            return Arrival::Late;
        }
        let newly_lost = sequence - self.settled;
        self.settled = sequence + 1;
        Arrival::Delivered { newly_lost }
    }

    /// Write off what is out if nothing came for [`STALL_NS`]. Returns how many.
    pub fn check_stall(&mut self, now_ns: u64) -> u64 {
        if self.outstanding() == 0 || now_ns.saturating_sub(self.progress_ns) < STALL_NS {
            return 0;
        }
        self.write_off()
    }

    pub fn write_off(&mut self) -> u64 {
        let lost = self.outstanding();
        self.settled = self.sent;
        self.samples.clear();
        lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(count: u64) -> Flow {
        let mut flow = Flow::default();
        for expected in 0..count {
            assert_eq!(flow.send(1), expected);
        }
        flow
    }

    #[test]
    fn window_opens_as_packets_arrive() {
        let mut flow = sent(3);
        assert_eq!(flow.outstanding(), 3);
        assert_eq!(flow.arrive(0, 2), Arrival::Delivered { newly_lost: 0 });
        assert_eq!(flow.outstanding(), 2);
    }

    #[test]
    fn a_gap_is_a_loss() {
        let mut flow = sent(5);
        assert_eq!(flow.arrive(3, 2), Arrival::Delivered { newly_lost: 3 });
        assert_eq!(flow.outstanding(), 1);
        assert_eq!(flow.arrive(1, 2), Arrival::Reordered);
        assert_eq!(flow.arrive(3, 2), Arrival::Reordered);
        assert_eq!(flow.arrive(5, 2), Arrival::Impossible);
    }

    #[test]
    fn a_stall_writes_off_once_and_late_packets_count_back() {
        let mut flow = sent(4);
        assert_eq!(flow.arrive(0, 10), Arrival::Delivered { newly_lost: 0 });
        assert_eq!(flow.check_stall(10 + STALL_NS - 1), 0);
        assert_eq!(flow.check_stall(10 + STALL_NS), 3);
        assert_eq!(flow.check_stall(10 + 9 * STALL_NS), 0);
        assert_eq!(flow.arrive(1, 20), Arrival::Late);
        assert_eq!(flow.arrive(3, 20), Arrival::Late);
        assert_eq!(flow.arrive(2, 20), Arrival::Reordered);
        flow.send(30);
        assert_eq!(flow.arrive(4, 31), Arrival::Delivered { newly_lost: 0 });
    }

    #[test]
    fn the_stall_clock_starts_with_the_first_packet_out() {
        let mut flow = Flow::default();
        flow.send(STALL_NS * 5);
        assert_eq!(flow.check_stall(STALL_NS * 5 + 1), 0);
    }

    #[test]
    fn samples_of_lost_packets_are_skipped() {
        let mut flow = sent(200);
        flow.sample(0, 100);
        flow.sample(64, 200);
        flow.sample(128, 300);
        assert_eq!(flow.sampled(64), Some(200));
        assert_eq!(flow.sampled(65), None);
        assert_eq!(flow.sampled(128), Some(300));
    }
}
