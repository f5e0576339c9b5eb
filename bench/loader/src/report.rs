//! The fields that all traffic scenarios have in common.

use crate::stats::{Json, percentiles};
use crate::traffic::Measured;

pub fn measured(json: &mut Json, mut m: Measured) {
    let counters = &m.counters;
    let delivered = counters.delivered as f64;
    json.number("sent", counters.sent);
    json.number("delivered", counters.delivered);
    json.number("lost", counters.lost);
    json.number("late", counters.late);
    json.number("corrupt", counters.corrupt);
    json.number("reordered", counters.reordered);
    json.number("unaccounted", m.unaccounted);
    json.number("never_arrived", m.never_arrived);
    json.number("closed_connections", counters.closed);
    json.number("keep_alives", counters.keep_alives);
    json.object("unexpected_frames", Some(counters.unexpected_json()));
    json.float("seconds", m.seconds, 4);
    json.float("packets_per_second", delivered / m.seconds, 1);
    json.float("bytes_per_second", counters.bytes as f64 / m.seconds, 1);
    let relay_us = m.relay_cpu_ns.map(|ns| ns as f64 / 1e3);
    json.maybe(
        "relay_cpu_us_per_packet",
        relay_us.map(|us| us / delivered),
        3,
    );
    json.maybe("relay_cores", relay_us.map(|us| us / 1e6 / m.seconds), 3);
    let own_us = m.own_cpu_ns as f64 / 1e3;
    json.float("loader_cpu_us_per_packet", own_us / delivered, 3);
    json.float(
        "loader_user_cpu_us_per_packet",
        m.own_user_ns as f64 / 1e3 / delivered,
        3,
    );
    json.float("loader_cores", own_us / 1e6 / m.seconds, 3);
    json.float(
        "loader_sends_per_packet",
        counters.sends as f64 / delivered,
        3,
    );
    json.float(
        "loader_receives_per_packet",
        counters.receives as f64 / delivered,
        3,
    );
    json.object("latency_us", percentiles(&mut m.latencies));
    if !m.lateness.is_empty() {
        json.object("schedule_lateness_us", percentiles(&mut m.lateness));
    }
    json.maybe_text("tls_version", m.cipher.as_ref().map(|_| "TLSv1.3"));
    json.maybe_text("cipher", m.cipher.as_deref());
    json.maybe_text("last_error", m.last_error.as_deref());
}
