//! idle and handshakes: what connections cost, without traffic.

use std::sync::Arc;

use crate::cli::Options;
use crate::conn::{Conn, Target};
use crate::net::{FULL, Net};
use crate::stats::{Json, Memory, Relay, percentiles};
use crate::sys;

/// A handshake that takes longer is a failure.
const HANDSHAKE_NS: u64 = 10_000_000_000;
/// How long after the close the relay's memory is read again.
const SETTLE_NS: u64 = 2_000_000_000;

pub fn memory_json(json: &mut Json, name: &str, memory: Option<Memory>) {
    json.object(
        name,
        memory.map(|memory| {
            let mut json = Json::new();
            json.number("rss_bytes", memory.rss);
            json.number("pss_bytes", memory.pss);
            json.number("fds", memory.fds);
            json
        }),
    );
}

/// Serve the connections until a point in time.
fn serve(net: &mut Net, end_ns: u64, frames: &mut dyn FnMut(u8)) -> Result<(), String> {
    loop {
        let now = sys::now_ns();
        if now >= end_ns {
            return Ok(());
        }
        net.wait(((end_ns - now) / 1_000_000) as i32 + 1)?;
        for event in std::mem::take(&mut net.events) {
            net.handle(event, FULL, &mut |kind, _| frames(kind));
        }
    }
}

pub fn idle(o: &Options, target: Arc<Target>, json: &mut Json) -> Result<(), String> {
    let relay = Relay(o.relay_pid);
    let limit = sys::raise_file_limit().map_err(|error| format!("file limit: {error}"))?;
    if o.connections as u64 + 32 > limit {
        return Err(format!(
            "--connections {}: this process may open {limit} files",
            o.connections
        ));
    }
    let mut net = Net::new(target, o.seed)?;
    net.reserve(o.connections);
    let before = relay.memory()?;
    let start = sys::now_ns();
    let (relay_cpu, own_cpu) = (relay.cpu_ns()?, sys::own_cpu_ns());
    let deadline = start + (o.timeout * 1e9) as u64;
    let failed = net.connect(0..o.connections, o.concurrency, deadline, true, None)?;
    let connect_seconds = (sys::now_ns() - start) as f64 / 1e9;
    let relay_up = relay.cpu_ns()?;
    let own_up = sys::own_cpu_ns() - own_cpu;
    let open = o.connections - failed;
    if open == 0 {
        let error = net.last_error.take().unwrap_or_default();
        return Err(format!(
            "no connection came up, the last failed with: {error}"
        ));
    }
    let (mut keep_alives, mut unexpected) = (0u64, 0u64);
    serve(
        &mut net,
        sys::now_ns() + (o.hold * 1e9) as u64,
        &mut |kind| match kind {
            crate::frame::KEEP_ALIVE => keep_alives += 1,
            _ => unexpected += 1,
        },
    )?;
    let during = relay.memory()?;
    let relay_held = relay.cpu_ns()?;
    let alive = net.conns.iter().flatten().count();
    let cipher = net.cipher();
    for conn in net.conns.drain(..).flatten() {
        conn.close();
    }
    std::thread::sleep(std::time::Duration::from_nanos(SETTLE_NS));
    let after = relay.memory()?;

    let each = |bytes: fn(Memory) -> u64| {
        let (during, before) = (during?, before?);
        Some((bytes(during) as f64 - bytes(before) as f64) / alive as f64)
    };
    json.number("opened", open);
    json.number("failed_handshakes", failed);
    json.number("alive_after_hold", alive);
    json.number("closed_connections", net.closed);
    json.float("connect_seconds", connect_seconds, 3);
    json.float("handshakes_per_second", open as f64 / connect_seconds, 1);
    let spent = relay_up.zip(relay_cpu).map(|(b, a)| (b - a) as f64);
    json.maybe(
        "relay_cpu_us_per_handshake",
        spent.map(|ns| ns / 1e3 / open as f64),
        1,
    );
    json.float(
        "loader_cpu_us_per_handshake",
        own_up as f64 / 1e3 / open as f64,
        1,
    );
    let idle = relay_held.zip(relay_up).map(|(b, a)| (b - a) as f64);
    json.maybe(
        "relay_cores_while_idle",
        idle.map(|ns| ns / 1e9 / o.hold),
        4,
    );
    json.maybe("rss_bytes_per_connection", each(|m| m.rss), 0);
    json.maybe("pss_bytes_per_connection", each(|m| m.pss), 0);
    memory_json(json, "relay_before", before);
    memory_json(json, "relay_idle", during);
    memory_json(json, "relay_after_close", after);
    json.number("keep_alives", keep_alives);
    json.number("unexpected_frames", unexpected);
    json.maybe_text("tls_version", cipher.as_ref().map(|_| "TLSv1.3"));
    json.maybe_text("cipher", cipher.as_deref());
    json.maybe_text("last_error", net.last_error.as_deref());
    Ok(())
}

#[derive(Default)]
struct Tally {
    done: u64,
    failed: u64,
    times: Vec<u64>,
}

pub fn handshakes(o: &Options, target: Arc<Target>, json: &mut Json) -> Result<(), String> {
    let relay = Relay(o.relay_pid);
    sys::raise_file_limit().map_err(|error| format!("file limit: {error}"))?;
    let mut net = Net::new(target, o.seed)?;
    net.reserve(o.concurrency);
    let mut started = vec![0; o.concurrency];
    let mut tally = Tally::default();
    let mut cipher = None;

    let start = sys::now_ns();
    let begin = start + (o.warmup * 1e9) as u64;
    let end = begin + (o.duration * 1e9) as u64;
    let mut measured_from = None;
    loop {
        let now = sys::now_ns();
        if measured_from.is_none() && now >= begin {
            tally = Tally::default();
            measured_from = Some((now, relay.cpu_ns()?, sys::own_cpu_ns()));
        }
        if now >= end {
            break;
        }
        for (index, started) in started.iter_mut().enumerate() {
            if net.conns[index].is_some() {
                if now - *started > HANDSHAKE_NS {
                    net.fail(index, "a handshake took more than 10 s".into());
                    tally.failed += 1;
                }
                continue;
            }
            *started = sys::now_ns();
            if let Err(error) = net.open(index, None) {
                net.last_error = Some(error);
                tally.failed += 1;
            }
        }
        // A relay that refuses at once would otherwise be tried without a pause.
        if tally.failed > 1000 && tally.done == 0 {
            break;
        }
        net.wait(10)?;
        for event in std::mem::take(&mut net.events) {
            let index = event.token;
            if net.conns[index].is_none() {
                continue;
            }
            if !net.handle(event, FULL, &mut |_, _| {}) {
                tally.failed += 1;
            } else if net.conns[index].as_ref().is_some_and(Conn::ready) {
                tally.done += 1;
                tally.times.push(sys::now_ns() - started[index]);
                let conn = net.conns[index].take().expect("it is ready");
                if cipher.is_none() {
                    cipher = conn.cipher();
                }
                conn.close();
            }
        }
    }
    let (time, relay_cpu, own_cpu) =
        measured_from.ok_or("the relay refuses every connection before the measurement")?;
    let seconds = (sys::now_ns() - time) as f64 / 1e9;
    let spent = relay
        .cpu_ns()?
        .zip(relay_cpu)
        .map(|(b, a)| (b - a) as f64 / 1e3);
    let own = (sys::own_cpu_ns() - own_cpu) as f64 / 1e3;
    if tally.done == 0 {
        let error = net.last_error.take().unwrap_or_default();
        return Err(format!("no handshake was completed: {error}"));
    }
    let done = tally.done as f64;
    json.number("handshakes", tally.done);
    json.number("failed_handshakes", tally.failed);
    json.float("seconds", seconds, 3);
    json.float("handshakes_per_second", done / seconds, 1);
    json.maybe("relay_cpu_us_per_handshake", spent.map(|us| us / done), 1);
    json.maybe(
        "handshakes_per_relay_cpu_second",
        spent.map(|us| done * 1e6 / us),
        1,
    );
    json.maybe("relay_cores", spent.map(|us| us / 1e6 / seconds), 3);
    json.float("loader_cpu_us_per_handshake", own / done, 1);
    json.object("handshake_us", percentiles(&mut tally.times));
    json.maybe_text("tls_version", cipher.as_ref().map(|_| "TLSv1.3"));
    json.maybe_text("cipher", cipher.as_deref());
    json.maybe_text("last_error", net.last_error.as_deref());
    Ok(())
}
