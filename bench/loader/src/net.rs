//! A set of connections on one epoll.

use std::sync::Arc;

use crate::conn::{Buffers, Conn, Target};
use crate::sys::{self, Epoll, Event};

/// What one read takes unless a scenario wants less.
pub const FULL: usize = usize::MAX;

pub struct Net {
    pub target: Arc<Target>,
    pub epoll: Epoll,
    pub conns: Vec<Option<Conn>>,
    pub buffers: Buffers,
    pub events: Vec<Event>,
    /// Connections that ended without the scenario's doing.
    pub closed: u64,
    pub last_error: Option<String>,
    seed: u64,
}

impl Net {
    pub fn new(target: Arc<Target>, seed: u64) -> Result<Self, String> {
        Ok(Self {
            target,
            epoll: Epoll::new().map_err(|error| format!("epoll: {error}"))?,
            conns: Vec::new(),
            buffers: Buffers::new(),
            events: Vec::new(),
            closed: 0,
            last_error: None,
            seed,
        })
    }

    pub fn reserve(&mut self, count: usize) {
        self.conns.resize_with(count, || None);
    }

    pub fn open(&mut self, index: usize, receive_buffer: Option<u32>) -> Result<(), String> {
        self.seed = crate::rng::mix(self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15));
        let conn = Conn::open(&self.target, self.seed, receive_buffer)?;
        self.epoll
            .add(conn.fd(), index, true, true)
            .map_err(|error| format!("epoll: {error}"))?;
        self.conns[index] = Some(conn);
        Ok(())
    }

    pub fn wait(&mut self, timeout_ms: i32) -> Result<(), String> {
        self.epoll
            .wait(&mut self.events, timeout_ms)
            .map_err(|error| format!("epoll: {error}"))
    }

    /// Have epoll report writability while, and only while, bytes wait.
    pub fn rearm(&mut self, index: usize) {
        let Some(conn) = &mut self.conns[index] else {
            return;
        };
        let blocked = conn.blocked();
        if blocked != conn.wants_write {
            conn.wants_write = blocked;
            if let Err(error) = self.epoll.modify(conn.fd(), index, true, blocked) {
                self.fail(index, format!("epoll: {error}"));
            }
        }
    }

    pub fn fail(&mut self, index: usize, error: String) {
        if self.conns[index].take().is_some() {
            self.closed += 1;
            self.last_error = Some(error);
        }
    }

    /// Do what an event asks for. False if the connection has ended.
    pub fn handle(
        &mut self,
        event: Event,
        limit: usize,
        frames: &mut dyn FnMut(u8, &[u8]),
    ) -> bool {
        let index = event.token;
        let Some(conn) = &mut self.conns[index] else {
            return false;
        };
        let mut result = Ok(true);
        if event.writable {
            result = conn
                .on_writable(&self.target, &mut self.buffers)
                .map(|()| true);
        }
        if event.readable && result.is_ok() {
            result = conn.on_readable(&self.target, &mut self.buffers, limit, frames);
        }
        match result {
            Ok(true) => {
                self.rearm(index);
                self.conns[index].is_some()
            }
            Ok(false) => {
                self.fail(index, "closed by the relay".into());
                false
            }
            Err(error) => {
                self.fail(index, error);
                false
            }
        }
    }

    /// Bring the connections in `range` up, `parallel` at a time. Returns how many failed;
    /// unless `tolerant` the first failure is an error.
    pub fn connect(
        &mut self,
        range: std::ops::Range<usize>,
        parallel: usize,
        deadline_ns: u64,
        tolerant: bool,
        receive_buffer: Option<u32>,
    ) -> Result<usize, String> {
        let mut next = range.start;
        let mut busy = 0;
        let mut failed = 0;
        let mut up = vec![false; self.conns.len()];
        while next < range.end || busy > 0 {
            while busy < parallel && next < range.end {
                match self.open(next, receive_buffer) {
                    Ok(()) => busy += 1,
                    Err(_) if tolerant => failed += 1,
                    Err(error) => return Err(error),
                }
                next += 1;
            }
            if sys::now_ns() > deadline_ns {
                return Err(format!(
                    "the relay did not complete {busy} handshakes in time"
                ));
            }
            self.wait(20)?;
            for event in std::mem::take(&mut self.events) {
                let index = event.token;
                if index >= up.len() || self.conns[index].is_none() {
                    continue;
                }
                let alive = self.handle(event, FULL, &mut |_, _| {});
                let ready = alive && self.conns[index].as_ref().is_some_and(Conn::ready);
                if !alive && !up[index] {
                    if !tolerant {
                        let error = self.last_error.take().unwrap_or_default();
                        return Err(format!("handshake: {error}"));
                    }
                    failed += 1;
                    busy -= 1;
                    // Counted as a failure, not as a connection that was closed.
                    self.closed -= 1;
                } else if ready && !up[index] {
                    up[index] = true;
                    busy -= 1;
                }
            }
        }
        Ok(failed)
    }

    pub fn cipher(&self) -> Option<String> {
        self.conns.iter().flatten().find_map(Conn::cipher)
    }
}
