//! slow: a flood to a receiver that reads slowly or not at all, beside a quick pair.

use std::sync::Arc;
use std::thread;

use crate::cli::Options;
use crate::conn::{Conn, Target};
use crate::frame;
use crate::net::{FULL, Net};
use crate::pattern::{MAX_PACKET, Pattern};
use crate::report;
use crate::rng::mix;
use crate::stats::{Json, Relay};
use crate::sys::{self, Event};
use crate::traffic::{Measured, Shape, Traffic};

/// Sizes of the reads of the slow receiver. Pauses between them keep its rate.
const READS: [usize; 4] = [1, 7, 333, 4096];
/// The flood is over when the slow receiver gets nothing for so long.
const QUIET_NS: u64 = 700_000_000;
const DRAIN_NS: u64 = 15_000_000_000;

#[derive(Default)]
struct Received {
    delivered: u64,
    bytes: u64,
    reordered: u64,
    corrupt: u64,
    other: u64,
    next: Vec<u64>,
    last_ns: u64,
}

struct Flood {
    net: Net,
    pattern: Arc<Pattern>,
    seed: u64,
    sent: Vec<u64>,
    keys: Vec<[u8; 32]>,
    slow: usize,
    got: Received,
    /// When a sender was told that the slow receiver is gone.
    gone_ns: Option<u64>,
    hung_up_ns: Option<u64>,
    sent_bytes: u64,
}

fn size_of(seed: u64, flow: u64, sequence: u64) -> usize {
    (mix(seed ^ flow << 48 ^ sequence) % (MAX_PACKET as u64 + 1)) as usize
}

impl Flood {
    fn new(
        o: &Options,
        target: Arc<Target>,
        pattern: Arc<Pattern>,
        deadline_ns: u64,
    ) -> Result<Self, String> {
        let mut net = Net::new(target, mix(o.seed ^ 0x736c_6f77))?;
        let slow = o.senders;
        net.reserve(slow + 1);
        net.connect(0..slow, 64, deadline_ns, false, None)?;
        net.connect(slow..slow + 1, 1, deadline_ns, false, Some(o.rcvbuf))?;
        let keys = net.conns.iter().flatten().map(|conn| conn.key).collect();
        let mut flood = Self {
            net,
            pattern,
            seed: o.seed,
            sent: vec![0; slow],
            keys,
            slow,
            got: Received {
                next: vec![0; slow],
                ..Received::default()
            },
            gone_ns: None,
            hung_up_ns: None,
            sent_bytes: 0,
        };
        // Whoever got a packet from a client is told when it leaves: that is how a
        // receiver that does not read finds out when it was dropped.
        let mut hello = Vec::new();
        frame::header(&mut hello, frame::SEND_PACKET, frame::KEY);
        hello.extend_from_slice(&flood.keys[0]);
        flood.write(slow, &hello);
        // The slow receiver reads by the clock, not when epoll says so.
        if let Some(conn) = &flood.net.conns[slow] {
            let _ = flood.net.epoll.modify(conn.fd(), slow, false, false);
        }
        Ok(flood)
    }

    fn write(&mut self, index: usize, bytes: &[u8]) {
        let Some(conn) = &mut self.net.conns[index] else {
            return;
        };
        let result = conn
            .write(bytes, &mut self.net.buffers)
            .and_then(|()| conn.flush());
        match result {
            Ok(()) if index != self.slow => self.net.rearm(index),
            Ok(()) => {}
            Err(error) => self.net.fail(index, error),
        }
    }

    fn send_one(&mut self, sender: usize, scratch: &mut Vec<u8>) {
        let sequence = self.sent[sender];
        let size = size_of(self.seed, sender as u64, sequence);
        self.sent[sender] += 1;
        self.sent_bytes += size as u64;
        scratch.clear();
        frame::header(scratch, frame::SEND_PACKET, frame::KEY + size);
        scratch.extend_from_slice(&self.keys[self.slow]);
        self.pattern.append(scratch, sender as u64, sequence, size);
        self.write(sender, scratch);
    }

    fn read_slow(&mut self, limit: usize) {
        let event = Event {
            token: self.slow,
            readable: true,
            writable: false,
        };
        let Some(conn) = &mut self.net.conns[self.slow] else {
            return;
        };
        let (got, keys, pattern, seed) = (&mut self.got, &self.keys, &*self.pattern, self.seed);
        let (sent, senders) = (&self.sent, self.slow);
        let result = conn.on_readable(
            &self.net.target,
            &mut self.net.buffers,
            limit,
            &mut |kind, payload| {
                got.last_ns = sys::now_ns();
                if kind != frame::RECV_PACKET {
                    got.other += u64::from(kind != frame::KEEP_ALIVE && kind != frame::PEER_GONE);
                    return;
                }
                let Some((source, packet)) = payload.split_first_chunk::<32>() else {
                    got.corrupt += 1;
                    return;
                };
                let sender = keys[..senders].iter().position(|key| key == source);
                let (Some(sender), true) = (sender, pattern.intact(packet)) else {
                    got.corrupt += 1;
                    return;
                };
                if let Some((flow, sequence)) = Pattern::stamp(packet) {
                    if flow != sender as u64
                        || sequence >= sent[sender]
                        || packet.len() != size_of(seed, flow, sequence)
                    {
                        got.corrupt += 1;
                        return;
                    }
                    if sequence < got.next[sender] {
                        got.reordered += 1;
                        return;
                    }
                    got.next[sender] = sequence + 1;
                }
                got.delivered += 1;
                got.bytes += packet.len() as u64;
            },
        );
        match result {
            Ok(true) => {}
            Ok(false) => self.net.fail(event.token, "closed by the relay".into()),
            Err(error) => self.net.fail(event.token, error),
        }
    }

    /// Read in small pieces until `due` bytes are read in all, or there are no more.
    fn read_due(&mut self, due: u64, turn: &mut usize) {
        let received = |flood: &Self| Some(flood.net.conns[flood.slow].as_ref()?.received);
        while let Some(before) = received(self)
            && before < due
        {
            self.read_slow(READS[*turn % READS.len()]);
            *turn += 1;
            if received(self) == Some(before) {
                return;
            }
        }
    }

    /// Serve what epoll reports.
    fn serve(&mut self, timeout_ms: i32) -> Result<(), String> {
        self.net.wait(timeout_ms)?;
        for event in std::mem::take(&mut self.net.events) {
            if event.token == self.slow {
                // Only errors and hang-ups come here. They would come again at once.
                self.hung_up_ns.get_or_insert_with(sys::now_ns);
                if let Some(conn) = &self.net.conns[self.slow] {
                    self.net.epoll.remove(conn.fd());
                }
                continue;
            }
            let (slow_key, gone_ns) = (self.keys[self.slow], &mut self.gone_ns);
            self.net.handle(event, FULL, &mut |kind, payload| {
                if kind == frame::PEER_GONE && payload.starts_with(&slow_key) {
                    gone_ns.get_or_insert_with(sys::now_ns);
                }
            });
        }
        Ok(())
    }

    fn run(&mut self, o: &Options) -> Result<(), String> {
        let start = sys::now_ns();
        let end = start + (o.seconds * 1e9) as u64;
        let mut scratch = Vec::new();
        let mut turn = 0;
        loop {
            let now = sys::now_ns();
            if now >= end {
                return Ok(());
            }
            if !o.stop {
                let due = (o.read_rate * (now - start) as f64 / 1e9) as u64;
                self.read_due(due, &mut turn);
            }
            let allowed = o
                .flood_rate
                .is_none_or(|rate| self.sent_bytes as f64 <= rate * (now - start) as f64 / 1e9);
            let mut busy = false;
            if allowed && self.net.conns[self.slow].is_some() {
                for sender in 0..self.slow {
                    if self.net.conns[sender]
                        .as_ref()
                        .is_some_and(|conn| !conn.blocked())
                    {
                        self.send_one(sender, &mut scratch);
                        busy = true;
                    }
                }
            }
            self.serve(i32::from(!busy))?;
        }
    }

    /// Read what is left at full speed.
    fn drain(&mut self) -> Result<(), String> {
        let start = sys::now_ns();
        self.got.last_ns = start;
        while self.net.conns[self.slow].is_some() {
            let now = sys::now_ns();
            if now - start > DRAIN_NS || now - self.got.last_ns > QUIET_NS {
                break;
            }
            self.read_slow(FULL);
            self.serve(1)?;
        }
        Ok(())
    }
}

pub fn slow(o: &Options, target: Arc<Target>, json: &mut Json) -> Result<(), String> {
    let relay = Relay(o.relay_pid);
    let deadline = sys::now_ns() + (o.timeout * 1e9) as u64;
    let pattern = Arc::new(Pattern::new(o.seed));
    let shape = Shape {
        pairs: 1,
        receivers: None,
        window: o.window,
        frames_per_write: 1,
        records_per_send: 1,
        size: o.size,
        sample_every: 1,
        rate: None,
    };
    let bystander = Traffic::new(
        Arc::clone(&target),
        o.seed,
        Arc::clone(&pattern),
        shape,
        deadline,
    )?;
    let mut flood = Flood::new(o, target, pattern, deadline)?;
    let (relay_cpu, own_cpu) = (relay.cpu_ns()?, sys::own_cpu_ns());
    let start = sys::now_ns();
    // A thread of its own: its latency must not wait for the flood of this one.
    let (flooded, beside): (Result<(), String>, Result<Measured, String>) =
        thread::scope(|scope| {
            let beside = scope.spawn(|| {
                sys::no_timer_slack();
                // The relay's CPU time is that of the flood: of no use per packet here.
                bystander.run(0.0, o.seconds, Relay(None))
            });
            let flooded = flood.run(o);
            (flooded, beside.join().expect("panics abort"))
        });
    flooded?;
    let beside = beside?;
    let seconds = (sys::now_ns() - start) as f64 / 1e9;
    let slow_bytes = flood.got.bytes;
    let spent = relay.cpu_ns()?.zip(relay_cpu).map(|(b, a)| b - a);
    let own = sys::own_cpu_ns() - own_cpu;
    let open_before_drain = flood.net.conns[flood.slow].is_some();
    flood.drain()?;

    let since = |at: Option<u64>| at.map(|at| (at - start) as f64 / 1e9);
    let sent: u64 = flood.sent.iter().sum();
    let got = &flood.got;
    json.float("seconds", seconds, 3);
    json.number("sent", sent);
    json.number("sent_bytes", flood.sent_bytes);
    json.number("delivered", got.delivered);
    json.number("lost", sent.saturating_sub(got.delivered));
    json.number("corrupt", got.corrupt);
    json.number("reordered", got.reordered);
    json.number("unexpected_frames", got.other);
    json.float("slow_bytes_per_second", slow_bytes as f64 / seconds, 0);
    json.number("slow_open_until_drain", open_before_drain);
    // Whole: the stream stands between two frames and was never closed.
    let rest = flood.net.conns[flood.slow].as_ref().map(Conn::unfinished);
    json.number("slow_stream_whole", rest == Some(0));
    json.maybe("slow_gone_after_seconds", since(flood.gone_ns), 3);
    json.maybe("slow_hung_up_after_seconds", since(flood.hung_up_ns), 3);
    json.maybe_text("slow_error", flood.net.last_error.as_deref());
    json.number(
        "closed_connections",
        flood.net.closed + beside.counters.closed,
    );
    json.maybe("relay_cores", spent.map(|ns| ns as f64 / 1e9 / seconds), 3);
    json.float("loader_cores", own as f64 / 1e9 / seconds, 3);
    let mut inner = Json::new();
    report::measured(&mut inner, beside);
    json.object("bystander", Some(inner));
    Ok(())
}
