//! bulk, fanout and sparse: flows of numbered packets, with a window or on a schedule.

use std::ops::Range;
use std::sync::Arc;

use crate::conn::Target;
use crate::flow::{Arrival, Flow};
use crate::frame;
use crate::net::{FULL, Net};
use crate::pattern::Pattern;
use crate::stats::{Counters, Relay};
use crate::sys::{self, Event, Timer};

const TIMER: usize = usize::MAX;
const STALL_CHECK_NS: u64 = 20_000_000;
const MAX_SAMPLES: usize = 1 << 22;
/// A schedule that the relay cannot follow must not grow the loader without bound.
const MAX_BEHIND: u64 = 100_000;

pub struct Shape {
    pub pairs: usize,
    /// One sender to this many receivers, instead of pairs.
    pub receivers: Option<usize>,
    pub window: u64,
    pub frames_per_write: usize,
    pub records_per_send: usize,
    pub size: usize,
    /// Take the latency of every n-th packet of a flow.
    pub sample_every: u64,
    /// Packets a second on a fixed schedule, instead of a window.
    pub rate: Option<f64>,
}

struct Link {
    flow: Flow,
    to: usize,
    from_key: [u8; 32],
    /// The frame up to the packet: header and destination.
    head: Vec<u8>,
}

struct Sender {
    conn: usize,
    links: Range<usize>,
    next: usize,
}

pub struct Measured {
    pub counters: Counters,
    pub seconds: f64,
    pub relay_cpu_ns: Option<u64>,
    pub own_cpu_ns: u64,
    pub own_user_ns: u64,
    pub latencies: Vec<u64>,
    pub lateness: Vec<u64>,
    pub cipher: Option<String>,
    /// Over the whole run and its drain: packets neither delivered nor lost. Not 0 is a fault here.
    pub unaccounted: i64,
    /// Over the same: packets lost and not late either, so that no stall of the machine counts.
    pub never_arrived: u64,
    pub last_error: Option<String>,
}

pub struct Traffic {
    net: Net,
    links: Vec<Link>,
    senders: Vec<Sender>,
    /// Which sender feeds the link that ends at a connection, and which link that is.
    arrivals: Vec<Option<(usize, usize)>>,
    pattern: Arc<Pattern>,
    shape: Shape,
    counters: Counters,
    latencies: Vec<u64>,
    lateness: Vec<u64>,
    measuring: bool,
    sending: bool,
    scratch: Vec<u8>,
    timer: Option<Timer>,
    next_due: u64,
}

impl Traffic {
    /// Connect everything.
    pub fn new(
        target: Arc<Target>,
        seed: u64,
        pattern: Arc<Pattern>,
        shape: Shape,
        deadline_ns: u64,
    ) -> Result<Self, String> {
        let mut net = Net::new(target, seed)?;
        let (senders, receivers) = match shape.receivers {
            Some(receivers) => (1, receivers),
            None => (shape.pairs, shape.pairs),
        };
        net.reserve(senders + receivers);
        net.connect(0..senders + receivers, 64, deadline_ns, false, None)?;
        let key = |index: usize| net.conns[index].as_ref().expect("it is up").key;
        let per_sender = receivers / senders;
        let mut arrivals = vec![None; senders];
        let mut links = Vec::new();
        for index in 0..receivers {
            let mut head = Vec::new();
            frame::header(&mut head, frame::SEND_PACKET, frame::KEY + shape.size);
            head.extend_from_slice(&key(senders + index));
            links.push(Link {
                flow: Flow::default(),
                to: senders + index,
                from_key: key(index / per_sender),
                head,
            });
            arrivals.push(Some((index / per_sender, index)));
        }
        let senders = (0..senders)
            .map(|index| Sender {
                conn: index,
                links: index * per_sender..(index + 1) * per_sender,
                next: 0,
            })
            .collect();
        Ok(Self {
            net,
            links,
            senders,
            arrivals,
            pattern,
            shape,
            counters: Counters::new(),
            latencies: Vec::new(),
            lateness: Vec::new(),
            measuring: false,
            sending: true,
            scratch: Vec::new(),
            timer: None,
            next_due: 0,
        })
    }

    pub fn run(mut self, warmup: f64, duration: f64, relay: Relay) -> Result<Measured, String> {
        let cipher = self.net.cipher();
        let start = sys::now_ns();
        let begin = start + (warmup * 1e9) as u64;
        let end = begin + (duration * 1e9) as u64;
        if self.shape.rate.is_some() {
            let timer = Timer::new().map_err(|error| format!("timer: {error}"))?;
            self.net
                .epoll
                .add(timer.fd(), TIMER, true, false)
                .map_err(|error| format!("epoll: {error}"))?;
            self.next_due = start;
            timer
                .set(start)
                .map_err(|error| format!("timer: {error}"))?;
            self.timer = Some(timer);
        } else {
            for sender in 0..self.senders.len() {
                self.refill(sender);
            }
        }
        self.until(begin)?;
        self.measuring = true;
        let first = self.snapshot();
        let (time, own_user) = (sys::now_ns(), sys::own_user_cpu_ns());
        let (relay_cpu, own_cpu) = (relay.cpu_ns()?, sys::own_cpu_ns());
        self.until(end)?;
        let relay_cpu = relay.cpu_ns()?.zip(relay_cpu).map(|(b, a)| b - a);
        let own_cpu = sys::own_cpu_ns() - own_cpu;
        let own_user = sys::own_user_cpu_ns() - own_user;
        let seconds = (sys::now_ns() - time) as f64 / 1e9;
        let last = self.snapshot();
        self.measuring = false;
        self.sending = false;
        self.drain()?;
        let counters = difference(&last, &first);
        let all = &self.counters;
        Ok(Measured {
            seconds,
            relay_cpu_ns: relay_cpu,
            own_cpu_ns: own_cpu,
            own_user_ns: own_user,
            latencies: self.latencies,
            lateness: self.lateness,
            cipher,
            unaccounted: all.sent as i64 - (all.delivered + all.lost) as i64,
            never_arrived: all.lost,
            last_error: self.net.last_error,
            counters,
        })
    }

    fn snapshot(&self) -> Counters {
        let mut counters = self.counters.clone();
        counters.closed = self.net.closed;
        for conn in self.net.conns.iter().flatten() {
            counters.sends += conn.sends;
            counters.receives += conn.receives;
        }
        counters
    }

    /// Wait for what is out; also for what is written off, since it may be late only.
    fn drain(&mut self) -> Result<(), String> {
        let limit = sys::now_ns() + 1_000_000_000;
        while sys::now_ns() < limit
            && (self.counters.lost > 0 || self.links.iter().any(|link| link.flow.outstanding() > 0))
        {
            self.until(sys::now_ns() + STALL_CHECK_NS)?;
        }
        for link in &mut self.links {
            self.counters.lost += link.flow.write_off();
        }
        Ok(())
    }

    fn until(&mut self, end_ns: u64) -> Result<(), String> {
        let mut next_check = sys::now_ns() + STALL_CHECK_NS;
        loop {
            let now = sys::now_ns();
            if now >= end_ns {
                return Ok(());
            }
            if self.net.conns.iter().all(Option::is_none) {
                let error = self.net.last_error.take().unwrap_or_default();
                return Err(format!("all connections ended, the last with: {error}"));
            }
            if now >= next_check {
                next_check = now + STALL_CHECK_NS;
                self.check_stalls(now);
            }
            let left = end_ns.min(next_check).saturating_sub(now);
            self.net.wait((left / 1_000_000) as i32 + 1)?;
            let events = std::mem::take(&mut self.net.events);
            for &event in &events {
                if event.token == TIMER {
                    self.on_timer()?;
                } else {
                    self.on_event(event);
                }
            }
            self.net.events = events;
        }
    }

    fn check_stalls(&mut self, now: u64) {
        for sender in 0..self.senders.len() {
            let mut lost = 0;
            for link in &mut self.links[self.senders[sender].links.clone()] {
                lost += link.flow.check_stall(now);
            }
            self.counters.lost += lost;
            if lost > 0 {
                self.refill(sender);
            }
        }
    }

    fn on_event(&mut self, event: Event) {
        let index = event.token;
        let arrival = self.arrivals[index];
        let (links, counters) = (&mut self.links, &mut self.counters);
        let (pattern, latencies, size) = (&*self.pattern, &mut self.latencies, self.shape.size);
        let (sample_every, measuring) = (self.shape.sample_every, self.measuring);
        let mut now = 0;
        let mut pings: Vec<[u8; 8]> = Vec::new();
        self.net
            .handle(event, FULL, &mut |kind, payload| match (kind, arrival) {
                (frame::RECV_PACKET, Some((_, link))) => {
                    if now == 0 {
                        now = sys::now_ns();
                    }
                    let link_state = &mut links[link];
                    let Some((source, packet)) = payload.split_first_chunk::<32>() else {
                        counters.corrupt += 1;
                        return;
                    };
                    let Some((flow, sequence)) = Pattern::stamp(packet) else {
                        counters.corrupt += 1;
                        return;
                    };
                    if *source != link_state.from_key
                        || flow != link as u64
                        || packet.len() != size
                        || !pattern.intact(packet)
                    {
                        counters.corrupt += 1;
                        return;
                    }
                    match link_state.flow.arrive(sequence, now) {
                        Arrival::Delivered { newly_lost } => counters.lost += newly_lost,
                        Arrival::Late => {
                            counters.lost -= 1;
                            counters.late += 1;
                        }
                        Arrival::Reordered => {
                            counters.reordered += 1;
                            return;
                        }
                        Arrival::Impossible => {
                            counters.corrupt += 1;
                            return;
                        }
                    }
                    counters.delivered += 1;
                    counters.bytes += packet.len() as u64;
                    if sequence.is_multiple_of(sample_every)
                        && let Some(sent_at) = link_state.flow.sampled(sequence)
                        && measuring
                        && latencies.len() < MAX_SAMPLES
                    {
                        latencies.push(now.saturating_sub(sent_at));
                    }
                }
                (frame::KEEP_ALIVE, _) => counters.keep_alives += 1,
                (frame::PING, _) => {
                    if let Some(data) = payload.first_chunk::<8>() {
                        pings.push(*data);
                    }
                }
                (kind, _) => counters.unexpected[usize::from(kind)] += 1,
            });
        for data in pings {
            self.pong(index, data);
        }
        match arrival {
            Some((sender, _)) if event.readable => self.refill(sender),
            None if event.writable => self.refill(index),
            _ => {}
        }
    }

    fn pong(&mut self, index: usize, data: [u8; 8]) {
        let mut pong = Vec::new();
        frame::write(&mut pong, frame::PONG, &data);
        self.write_and_flush(index, &pong);
    }

    fn write_and_flush(&mut self, index: usize, bytes: &[u8]) {
        let Some(conn) = &mut self.net.conns[index] else {
            return;
        };
        let result = conn
            .write(bytes, &mut self.net.buffers)
            .and_then(|()| conn.flush());
        match result {
            Ok(()) => self.net.rearm(index),
            Err(error) => self.net.fail(index, error),
        }
    }

    /// Append one packet of a link to the scratch buffer.
    fn append(&mut self, link: usize) {
        let state = &mut self.links[link];
        let sequence = if state.flow.sent.is_multiple_of(self.shape.sample_every) {
            let now = sys::now_ns();
            let sequence = state.flow.send(now);
            state.flow.sample(sequence, now);
            sequence
        } else if state.flow.outstanding() == 0 {
            state.flow.send(sys::now_ns())
        } else {
            state.flow.send(0)
        };
        self.scratch.extend_from_slice(&state.head);
        let size = self.shape.size;
        self.pattern
            .append(&mut self.scratch, link as u64, sequence, size);
        self.counters.sent += 1;
    }

    /// The next link of a sender whose window is open.
    fn next_open(&mut self, sender: usize) -> Option<usize> {
        let sender = &mut self.senders[sender];
        for _ in 0..sender.links.len() {
            let link = sender.links.start + sender.next;
            sender.next = (sender.next + 1) % sender.links.len();
            if self.links[link].flow.outstanding() < self.shape.window
                && self.net.conns[self.links[link].to].is_some()
            {
                return Some(link);
            }
        }
        None
    }

    /// Whether the windows of a sender take `unit` packets more.
    fn room(&self, sender: usize, unit: u64) -> bool {
        if unit == 1 {
            return true;
        }
        let mut room = 0;
        for link in &self.links[self.senders[sender].links.clone()] {
            room += self.shape.window - link.flow.outstanding().min(self.shape.window);
            if room >= unit {
                return true;
            }
        }
        false
    }

    /// Send as much as the windows and the socket allow.
    fn refill(&mut self, sender: usize) {
        if self.shape.rate.is_some() || !self.sending {
            return;
        }
        let index = self.senders[sender].conn;
        let unit = (self.shape.frames_per_write * self.shape.records_per_send) as u64;
        loop {
            match &self.net.conns[index] {
                Some(conn) if !conn.blocked() => {}
                _ => return,
            }
            if !self.room(sender, unit) {
                return;
            }
            for _ in 0..self.shape.records_per_send {
                self.scratch.clear();
                for _ in 0..self.shape.frames_per_write {
                    let Some(link) = self.next_open(sender) else {
                        break;
                    };
                    self.append(link);
                }
                if self.scratch.is_empty() {
                    break;
                }
                let Some(conn) = &mut self.net.conns[index] else {
                    return;
                };
                if let Err(error) = conn.write(&self.scratch, &mut self.net.buffers) {
                    self.net.fail(index, error);
                    return;
                }
            }
            let Some(conn) = &mut self.net.conns[index] else {
                return;
            };
            if !conn.blocked() {
                return;
            }
            match conn.flush() {
                Ok(()) => self.net.rearm(index),
                Err(error) => self.net.fail(index, error),
            }
        }
    }

    /// Send what the schedule says is due.
    fn on_timer(&mut self) -> Result<(), String> {
        let (Some(timer), Some(rate)) = (&self.timer, self.shape.rate) else {
            return Ok(());
        };
        let period = ((1e9 / rate) as u64).max(1);
        let now = sys::now_ns();
        let mut times = Vec::new();
        while self.next_due <= now && self.sending {
            times.push(self.next_due);
            self.next_due += period;
        }
        // Setting the timer also clears the expiry that woke us.
        let next = if self.sending {
            self.next_due
        } else {
            u64::MAX >> 1
        };
        timer.set(next).map_err(|error| format!("timer: {error}"))?;
        for scheduled in times {
            if self.links[0].flow.outstanding() > MAX_BEHIND {
                return Err(format!(
                    "{MAX_BEHIND} packets are out: the rate is too high"
                ));
            }
            self.scratch.clear();
            self.append(0);
            if self.measuring && self.lateness.len() < MAX_SAMPLES {
                self.lateness.push(sys::now_ns().saturating_sub(scheduled));
            }
            let bytes = std::mem::take(&mut self.scratch);
            self.write_and_flush(0, &bytes);
            self.scratch = bytes;
        }
        Ok(())
    }
}

fn difference(last: &Counters, first: &Counters) -> Counters {
    let mut unexpected = [0; 256];
    for (kind, count) in unexpected.iter_mut().enumerate() {
        *count = last.unexpected[kind] - first.unexpected[kind];
    }
    Counters {
        sent: last.sent - first.sent,
        delivered: last.delivered - first.delivered,
        bytes: last.bytes - first.bytes,
        // Packets that came late may have been written off before.
        lost: last.lost.saturating_sub(first.lost),
        late: last.late - first.late,
        reordered: last.reordered - first.reordered,
        corrupt: last.corrupt - first.corrupt,
        closed: last.closed,
        keep_alives: last.keep_alives - first.keep_alives,
        unexpected,
        sends: last.sends.saturating_sub(first.sends),
        receives: last.receives.saturating_sub(first.receives),
    }
}
