//! An agent and a crowd of clients at a Coder coordinator: what a connect, an idle client
//! and a delivered node cost, and how long until all have it.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;

use crate::cli::Options;
use crate::coder::Session;
use crate::idle::memory_json;
use crate::rng::Rng;
use crate::stats::{Json, Memory, Relay, percentiles};
use crate::sys::{self, Epoll, Event};
use crate::tailnet::{self, Heard, Id, Node};

/// The agent's place among the peers; clients follow.
const AGENT: usize = 0;
const READ: usize = 256 * 1024;
/// Without anything new for so long, a server has stopped delivering.
const SILENCE_NS: u64 = 15_000_000_000;
/// A server may take so long to notice that all have gone.
const CLOSE_NS: u64 = 20_000_000_000;
/// Whatever has not changed for so long is over.
const SETTLE_NS: u64 = 1_000_000_000;
/// Clients that come and go before anything is measured.
const WARM_UP: usize = 10;

struct Peer {
    stream: TcpStream,
    session: Session,
    out_at: usize,
    connected: bool,
    wants_write: bool,
    started: u64,
    /// When its first NODE came; 0 before.
    met: u64,
    /// Number of the last node that came.
    number: u64,
    ready: u64,
}

/// One update on its way to all.
struct Update {
    sent: u64,
    have_it: usize,
}

struct Crowd<'a> {
    o: &'a Options,
    agent: Id,
    node: Node,
    epoll: Epoll,
    peers: Vec<Option<Peer>>,
    rng: Rng,
    buffer: Vec<u8>,
    events: Vec<Event>,
    /// Clients that have the agent's node.
    met: usize,
    /// Nodes that came to clients.
    delivered: u64,
    skipped: u64,
    repeated: u64,
    ready: u64,
    /// The agent's updates after the first; update `n` is at `n - 1`.
    updates: Vec<Update>,
    /// Updates that all have.
    complete: usize,
    /// Since when an update was sent until one client had it, and until all had.
    delivery: Vec<u64>,
    all_have_it: Vec<u64>,
}

pub fn crowd(o: &Options, json: &mut Json) -> Result<(), String> {
    let relay = Relay(o.relay_pid);
    let limit = sys::raise_file_limit().map_err(|error| format!("file limit: {error}"))?;
    if o.clients as u64 + 32 > limit {
        return Err(format!(
            "--clients {}: this process may open {limit} files",
            o.clients
        ));
    }
    let deadline = sys::now_ns() + (o.timeout * 1e9) as u64;
    let mut crowd = Crowd::new(o)?;
    crowd.agent_up(deadline)?;
    crowd.warm_up(deadline)?;
    let before = relay.memory()?;

    let start = (sys::now_ns(), relay.cpu_ns()?, sys::own_cpu_ns());
    let alone = o.alone.min(o.clients);
    crowd.connect(1..alone + 1, 1, deadline)?;
    let mut dials = crowd.dials(1..alone + 1);
    crowd.connect(alone + 1..o.clients + 1, o.concurrency, deadline)?;
    crowd.wait_ready(o.clients as u64, deadline)?;
    let clients = o.clients as f64;
    let spent = Spent::since(start, relay)?;
    json.number("clients", o.clients);
    json.float("connect_seconds", spent.seconds, 3);
    json.maybe("server_cpu_us_per_connect", spent.server_us(clients), 1);
    json.float("loader_cpu_us_per_connect", spent.own_us(clients), 1);
    json.object("dial_us", percentiles(&mut dials));

    let idle = (sys::now_ns(), relay.cpu_ns()?, sys::own_cpu_ns());
    crowd.serve_until(idle.0 + (o.hold * 1e9) as u64)?;
    json.maybe(
        "server_cores_while_idle",
        Spent::since(idle, relay)?.cores(),
        4,
    );
    let during = relay.memory()?;
    let each = |bytes: fn(Memory) -> u64| {
        let (during, before) = (during?, before?);
        Some((bytes(during) as f64 - bytes(before) as f64) / clients)
    };
    json.maybe("rss_bytes_per_client", each(|m| m.rss), 0);
    json.maybe("pss_bytes_per_client", each(|m| m.pss), 0);

    // Not measured: the first ones meet cold caches and small buffers.
    crowd.publish(o.updates.div_ceil(10), 1, deadline)?;
    for (name, window) in [("alone", 1), ("windowed", o.window as usize)] {
        crowd.forget();
        let start = (sys::now_ns(), relay.cpu_ns()?, sys::own_cpu_ns());
        crowd.publish(o.updates, window, deadline)?;
        let spent = Spent::since(start, relay)?;
        let mut part = Json::new();
        crowd.report(&mut part, &spent);
        json.object(name, Some(part));
    }
    let last = crowd.updates.len() as u64;
    let have_last = crowd.count(|client| client.number == last);
    let ready = crowd.count(|client| client.ready == 1);
    json.number("have_last_update", have_last);
    json.number("ready_for_handshake", ready);
    json.number("skipped", crowd.skipped);
    json.number("repeated", crowd.repeated);
    json.number("maps_received", crowd.maps());

    crowd.peers.clear();
    let after = wait_gone(relay)?;
    memory_json(json, "server_before", before);
    memory_json(json, "server_idle", during);
    memory_json(json, "server_after_close", after);
    if (have_last, ready) != (o.clients, o.clients) {
        return Err(format!(
            "of {} clients {have_last} have the last update, and {ready} were told once that\
             the agent is ready",
            o.clients
        ));
    }
    Ok(())
}

/// Wait until the server closes no more descriptors.
fn wait_gone(relay: Relay) -> Result<Option<Memory>, String> {
    let deadline = sys::now_ns() + CLOSE_NS;
    let (mut fds, mut settled) = (0, 0);
    loop {
        let memory = relay.memory()?;
        let now = sys::now_ns();
        if memory.is_none_or(|memory| memory.fds != fds) {
            settled = now + SETTLE_NS;
        }
        if memory.is_none() || now > settled || now > deadline {
            return Ok(memory);
        }
        fds = memory.map_or(0, |memory| memory.fds);
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}

/// What some time has cost.
struct Spent {
    seconds: f64,
    server_ns: Option<f64>,
    own_ns: f64,
}

impl Spent {
    fn since(start: (u64, Option<u64>, u64), relay: Relay) -> Result<Self, String> {
        let (time, server, own) = start;
        Ok(Self {
            seconds: (sys::now_ns() - time) as f64 / 1e9,
            server_ns: relay.cpu_ns()?.zip(server).map(|(b, a)| (b - a) as f64),
            own_ns: (sys::own_cpu_ns() - own) as f64,
        })
    }

    fn server_us(&self, each: f64) -> Option<f64> {
        self.server_ns.map(|ns| ns / 1e3 / each)
    }

    fn own_us(&self, each: f64) -> f64 {
        self.own_ns / 1e3 / each
    }

    fn cores(&self) -> Option<f64> {
        self.server_ns.map(|ns| ns / 1e9 / self.seconds)
    }
}

impl<'a> Crowd<'a> {
    fn new(o: &'a Options) -> Result<Self, String> {
        let agent = tailnet::parse_id(&o.agent_id)?;
        let mut rng = Rng::new(o.seed);
        let node = Node::new(&mut rng, &agent);
        let mut peers = Vec::new();
        peers.resize_with(o.clients + 1, || None);
        Ok(Self {
            o,
            agent,
            node,
            epoll: Epoll::new().map_err(|error| format!("epoll: {error}"))?,
            peers,
            rng,
            buffer: vec![0; READ],
            events: Vec::new(),
            met: 0,
            delivered: 0,
            skipped: 0,
            repeated: 0,
            ready: 0,
            updates: Vec::new(),
            complete: 0,
            delivery: Vec::new(),
            all_have_it: Vec::new(),
        })
    }

    fn open(&mut self, index: usize) -> Result<(), String> {
        let o = self.o;
        let path = match index {
            AGENT => "/api/v2/workspaceagents/me/rpc?version=2.0".to_owned(),
            _ => format!(
                "/api/v2/workspaceagents/{}/coordinate?version=2.0",
                o.agent_id
            ),
        };
        let token = match index {
            AGENT => &o.agent_token,
            _ => &o.user_token,
        };
        let seed = self.rng.next();
        let started = sys::now_ns();
        let stream = sys::connect(o.addr, None)
            .map_err(|error| format!("connect to {}: {error}", o.addr))?;
        self.epoll
            .add(stream.as_raw_fd(), index, true, true)
            .map_err(|error| format!("epoll: {error}"))?;
        self.peers[index] = Some(Peer {
            stream,
            session: Session::open(&o.addr.to_string(), &path, token, seed),
            out_at: 0,
            connected: false,
            wants_write: true,
            started,
            met: 0,
            number: 0,
            ready: 0,
        });
        Ok(())
    }

    /// Connect the agent, and publish its node.
    fn agent_up(&mut self, deadline: u64) -> Result<(), String> {
        self.open(AGENT)?;
        // The map comes after the upgrade, on a call of the same connection.
        while self.peers[AGENT]
            .as_ref()
            .is_none_or(|agent| agent.session.maps_received == 0)
        {
            self.turn(50)?;
            if sys::now_ns() > deadline {
                return Err("the agent got no DERP map".into());
            }
        }
        Ok(())
    }

    /// Have a few clients come and go, so that what a server loads with the first of them
    /// is not counted as theirs.
    fn warm_up(&mut self, deadline: u64) -> Result<(), String> {
        let last = WARM_UP.min(self.o.clients);
        self.connect(1..last + 1, 1, deadline)?;
        self.wait_ready(last as u64, deadline)?;
        self.peers.truncate(1);
        self.peers.resize_with(self.o.clients + 1, || None);
        (self.met, self.ready) = (0, 0);
        self.serve_until(sys::now_ns() + SETTLE_NS)
    }

    /// Bring clients up, `parallel` at a time; each until it has the agent's node.
    fn connect(
        &mut self,
        range: std::ops::Range<usize>,
        parallel: usize,
        deadline: u64,
    ) -> Result<(), String> {
        let mut next = range.start;
        while self.met + 1 < range.end {
            while next < range.end && next - self.met - 1 < parallel {
                self.open(next)?;
                next += 1;
            }
            self.turn(20)?;
            if sys::now_ns() > deadline {
                let met = self.met;
                return Err(format!("{met} of {} clients have a node", self.o.clients));
            }
        }
        Ok(())
    }

    /// Wait until the agent has told all clients that it is ready for them.
    fn wait_ready(&mut self, clients: u64, deadline: u64) -> Result<(), String> {
        let mut quiet = sys::now_ns() + SILENCE_NS;
        while self.ready < clients {
            let ready = self.ready;
            self.turn(20)?;
            if self.ready > ready {
                quiet = sys::now_ns() + SILENCE_NS;
            }
            if sys::now_ns() > deadline.min(quiet) {
                return Err(format!(
                    "{ready} of {clients} clients got READY_FOR_HANDSHAKE"
                ));
            }
        }
        Ok(())
    }

    fn serve_until(&mut self, end: u64) -> Result<(), String> {
        while sys::now_ns() < end {
            self.turn(20)?;
        }
        Ok(())
    }

    /// Have the agent publish `count` nodes, at most `window` of them on the way.
    fn publish(&mut self, count: usize, window: usize, deadline: u64) -> Result<(), String> {
        let last = self.updates.len() + count;
        let mut quiet = sys::now_ns() + SILENCE_NS;
        while self.complete < last {
            while self.updates.len() < last && self.updates.len() - self.complete < window {
                let number = self.updates.len() as u64 + 1;
                let request = self.node.update_self(number);
                self.updates.push(Update {
                    sent: sys::now_ns(),
                    have_it: 0,
                });
                if let Some(agent) = &mut self.peers[AGENT] {
                    agent.session.request(&request);
                }
                self.flush(AGENT)?;
            }
            let delivered = self.delivered;
            self.turn(20)?;
            let now = sys::now_ns();
            if self.delivered > delivered {
                quiet = now + SILENCE_NS;
            }
            if now > deadline.min(quiet) {
                let have_it = self.updates[self.complete].have_it;
                return Err(format!(
                    "{have_it} of {} clients have update {}",
                    self.o.clients,
                    self.complete + 1
                ));
            }
        }
        Ok(())
    }

    /// Begin to count anew.
    fn forget(&mut self) {
        self.delivered = 0;
        self.delivery.clear();
        self.all_have_it.clear();
    }

    fn report(&mut self, json: &mut Json, spent: &Spent) {
        let delivered = self.delivered as f64;
        json.number("updates", self.all_have_it.len());
        json.number("delivered", self.delivered);
        json.float("seconds", spent.seconds, 4);
        let updates = self.all_have_it.len() as f64;
        json.float("updates_per_second", updates / spent.seconds, 1);
        json.float("deliveries_per_second", delivered / spent.seconds, 1);
        json.maybe("server_cpu_us_per_delivery", spent.server_us(delivered), 3);
        json.maybe("server_cores", spent.cores(), 3);
        json.float("loader_cpu_us_per_delivery", spent.own_us(delivered), 3);
        json.object("delivery_us", percentiles(&mut self.delivery));
        json.object("all_have_it_us", percentiles(&mut self.all_have_it));
    }

    fn clients(&self) -> impl Iterator<Item = &Peer> {
        self.peers[AGENT + 1..].iter().flatten()
    }

    fn count(&self, wanted: impl Fn(&Peer) -> bool) -> usize {
        self.clients().filter(|client| wanted(client)).count()
    }

    fn maps(&self) -> u64 {
        self.clients().map(|peer| peer.session.maps_received).sum()
    }

    fn dials(&self, range: std::ops::Range<usize>) -> Vec<u64> {
        self.peers[range]
            .iter()
            .flatten()
            .map(|client| client.met - client.started)
            .collect()
    }

    /// Wait, and do what there is to do. The end of any connection is an error.
    fn turn(&mut self, timeout_ms: i32) -> Result<(), String> {
        self.epoll
            .wait(&mut self.events, timeout_ms)
            .map_err(|error| format!("epoll: {error}"))?;
        let events = std::mem::take(&mut self.events);
        for event in &events {
            self.handle(*event).map_err(|error| match event.token {
                AGENT => format!("the agent: {error}"),
                index => format!("client {index}: {error}"),
            })?;
        }
        self.events = events;
        Ok(())
    }

    fn handle(&mut self, event: Event) -> Result<(), String> {
        let index = event.token;
        let Some(peer) = &mut self.peers[index] else {
            return Ok(());
        };
        if event.writable && !peer.connected {
            if let Some(error) = peer.stream.take_error().map_err(|e| e.to_string())? {
                return Err(format!("connect: {error}"));
            }
            peer.connected = true;
        }
        if event.readable {
            let mut buffer = std::mem::take(&mut self.buffer);
            let result = self.read(index, &mut buffer);
            self.buffer = buffer;
            result?;
        }
        self.flush(index)
    }

    fn read(&mut self, index: usize, buffer: &mut [u8]) -> Result<(), String> {
        let peer = self.peers[index].as_mut().expect("an event is for it");
        let read = match (&peer.stream).read(buffer) {
            Ok(0) => return Err("closed by the server".into()),
            Ok(read) => read,
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
            {
                return Ok(());
            }
            Err(error) => return Err(format!("receive: {error}")),
        };
        let now = sys::now_ns();
        let was_upgraded = peer.session.upgraded();
        let mut heard = Vec::new();
        peer.session
            .receive(&mut buffer[..read], &mut |update| heard.push(update))?;
        if peer.session.upgraded() && !was_upgraded {
            if index == AGENT {
                peer.session.call(&[self.node.update_self(0)]);
            } else {
                let node = Node::new(&mut self.rng, &self.agent);
                let tunnel = tailnet::add_tunnel(&self.agent);
                peer.session.call(&[tunnel, node.update_self(0)]);
            }
        }
        if index == AGENT {
            self.answer(&heard);
        } else {
            for update in heard {
                self.note(index, &update, now)?;
            }
        }
        Ok(())
    }

    /// As an agent does: tell every client whose node came that it is ready.
    fn answer(&mut self, heard: &[Heard]) {
        let ids: Vec<Id> = heard
            .iter()
            .filter_map(|update| match update {
                Heard::Node { id, .. } => Some(*id),
                _ => None,
            })
            .collect();
        if let Some(agent) = &mut self.peers[AGENT]
            && !ids.is_empty()
        {
            agent.session.request(&tailnet::ready_for_handshake(&ids));
        }
    }

    /// A client heard something, which can only be of the agent.
    fn note(&mut self, index: usize, update: &Heard, now: u64) -> Result<(), String> {
        let client = self.peers[index].as_mut().expect("it has just read");
        match update {
            Heard::Node { id, key, number } => {
                if *id != self.agent || *key != self.node.key() {
                    return Err("a node that is not the agent's".into());
                }
                let number = *number;
                if client.met == 0 {
                    client.met = now;
                    client.number = number;
                    self.met += 1;
                    return Ok(());
                }
                self.delivered += 1;
                if number <= client.number {
                    self.repeated += 1;
                    return Ok(());
                }
                if number > self.updates.len() as u64 {
                    return Err(format!("update {number}, which was not sent"));
                }
                self.skipped += number - client.number - 1;
                let fresh = client.number as usize..number as usize;
                client.number = number;
                for update in &mut self.updates[fresh] {
                    update.have_it += 1;
                    self.delivery.push(now - update.sent);
                }
                while let Some(update) = self.updates.get(self.complete)
                    && update.have_it == self.o.clients
                {
                    self.all_have_it.push(sys::now_ns() - update.sent);
                    self.complete += 1;
                }
            }
            Heard::Ready { id } if *id == self.agent => {
                client.ready += 1;
                self.ready += 1;
            }
            other => return Err(format!("{other:?} while the agent is there")),
        }
        Ok(())
    }

    /// Send what there is to send, as far as the socket takes it.
    fn flush(&mut self, index: usize) -> Result<(), String> {
        let Some(peer) = &mut self.peers[index] else {
            return Ok(());
        };
        let out = &mut peer.session.out;
        while peer.connected && peer.out_at < out.len() {
            match (&peer.stream).write(&out[peer.out_at..]) {
                Ok(len) => peer.out_at += len,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(format!("send: {error}")),
            }
        }
        if peer.out_at == out.len() {
            // The many idle ones keep no buffer.
            *out = Vec::new();
            peer.out_at = 0;
        }
        let wants_write = !peer.connected || peer.out_at < out.len();
        if wants_write != peer.wants_write {
            peer.wants_write = wants_write;
            self.epoll
                .modify(peer.stream.as_raw_fd(), index, true, wants_write)
                .map_err(|error| format!("epoll: {error}"))?;
        }
        Ok(())
    }
}
