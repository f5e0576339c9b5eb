//! Load generator for DERP relays and for Coder's coordinator. See README.md.
#![deny(unsafe_code)]

mod cli;
mod coder;
mod conn;
mod crowd;
mod flow;
mod frame;
mod idle;
mod net;
mod pattern;
mod report;
mod rng;
mod slow;
mod stats;
mod sys;
mod tailnet;
mod tls;
mod traffic;
mod ws;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rustls::pki_types::ServerName;

use crate::cli::{Options, Scenario};
use crate::conn::Target;
use crate::pattern::Pattern;
use crate::stats::{Json, Relay};
use crate::traffic::{Shape, Traffic};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments
        .iter()
        .any(|word| word == "--help" || word == "-h")
    {
        println!("{}", cli::USAGE);
        return ExitCode::SUCCESS;
    }
    // Keys come from the seed: two runs at once must not share it by accident.
    let clock = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos() as u64);
    let seed = rng::mix(clock ^ u64::from(std::process::id()) << 40) >> 11;
    let options = match cli::parse(arguments.into_iter(), seed) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("derp-loader: {error}");
            return ExitCode::from(2);
        }
    };
    match run(&options) {
        Ok(json) => {
            println!("{json}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("derp-loader: {error}");
            ExitCode::from(1)
        }
    }
}

fn run(o: &Options) -> Result<Json, String> {
    if let Some(cpu) = o.cpu {
        sys::pin(cpu).map_err(|error| format!("--cpu {cpu}: {error}"))?;
    }
    sys::no_timer_slack();
    let name = match &o.server_name {
        Some(name) => name.clone(),
        None => o.addr.ip().to_string(),
    };
    let target = Arc::new(Target {
        addr: o.addr,
        tls: o.tls.then(tls::client_config),
        server_name: ServerName::try_from(name.clone())
            .map_err(|_| format!("--server-name: {name:?} is not a host name"))?,
        host: match &o.server_name {
            Some(name) => format!("{name}:{}", o.addr.port()),
            None => o.addr.to_string(),
        },
        websocket: o.websocket,
        fast_start: o.fast_start,
        rekey_records: o.rekey_records,
    });
    let mut json = Json::new();
    json.text("scenario", &o.name);
    json.object("parameters", Some(parameters(o)));
    match o.scenario {
        Scenario::Bulk | Scenario::Fanout | Scenario::Sparse => traffic(o, target, &mut json)?,
        Scenario::Idle => idle::idle(o, target, &mut json)?,
        Scenario::Handshakes => idle::handshakes(o, target, &mut json)?,
        Scenario::Slow => slow::slow(o, target, &mut json)?,
        Scenario::Crowd => crowd::crowd(o, &mut json)?,
    }
    Ok(json)
}

fn traffic(o: &Options, target: Arc<Target>, json: &mut Json) -> Result<(), String> {
    sys::raise_file_limit().map_err(|error| format!("file limit: {error}"))?;
    let sparse = o.scenario == Scenario::Sparse;
    let shape = Shape {
        pairs: if sparse { 1 } else { o.pairs },
        receivers: (o.scenario == Scenario::Fanout).then_some(o.receivers),
        window: o.window,
        frames_per_write: o.frames_per_write,
        records_per_send: o.records_per_send,
        size: o.size,
        sample_every: if sparse { 1 } else { 64 },
        rate: sparse.then_some(o.rate),
    };
    let deadline = sys::now_ns() + (o.timeout * 1e9) as u64;
    let pattern = Arc::new(Pattern::new(o.seed));
    let traffic = Traffic::new(target, o.seed, pattern, shape, deadline)?;
    let measured = traffic.run(o.warmup, o.duration, Relay(o.relay_pid))?;
    if measured.counters.delivered == 0 {
        return Err("nothing was delivered in the measured time".into());
    }
    report::measured(json, measured);
    Ok(())
}

fn parameters(o: &Options) -> Json {
    let mut json = Json::new();
    json.text("addr", &o.addr.to_string());
    json.number("tls", o.tls);
    json.number("fast_start", o.fast_start);
    json.number("websocket", o.websocket);
    json.number("seed", o.seed);
    let traffic = matches!(
        o.scenario,
        Scenario::Bulk | Scenario::Fanout | Scenario::Sparse
    );
    if traffic || o.scenario == Scenario::Slow {
        json.number("size", o.size);
    }
    match o.scenario {
        Scenario::Bulk => json.number("pairs", o.pairs),
        Scenario::Fanout => json.number("receivers", o.receivers),
        Scenario::Sparse => json.float("rate", o.rate, 3),
        Scenario::Idle => {
            json.number("connections", o.connections);
            json.number("concurrency", o.concurrency);
            json.float("hold", o.hold, 3);
        }
        Scenario::Handshakes => json.number("concurrency", o.concurrency),
        Scenario::Slow => {
            json.number("senders", o.senders);
            json.number("window", o.window);
            json.number("rcvbuf", o.rcvbuf);
            json.number("stop", o.stop);
            json.float("read_rate", o.read_rate, 0);
            json.maybe("flood_rate", o.flood_rate, 0);
            json.float("seconds", o.seconds, 3);
        }
        Scenario::Crowd => {
            json.number("clients", o.clients);
            json.number("alone", o.alone);
            json.number("concurrency", o.concurrency);
            json.float("hold", o.hold, 3);
            json.number("updates", o.updates);
            json.number("window", o.window);
        }
    }
    if matches!(o.scenario, Scenario::Bulk | Scenario::Fanout) {
        json.number("window", o.window);
        json.number("frames_per_write", o.frames_per_write);
        json.number("records_per_send", o.records_per_send);
    }
    if traffic || o.scenario == Scenario::Handshakes {
        json.float("warmup", o.warmup, 3);
        json.float("duration", o.duration, 3);
    }
    json
}
