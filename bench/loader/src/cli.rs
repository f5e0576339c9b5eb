//! The command line.

use std::net::SocketAddr;
use std::str::FromStr;

use crate::pattern::{MAX_PACKET, STAMP};
use crate::tls;

pub const USAGE: &str = "\
usage: derp-loader SCENARIO --addr IP:PORT [options]

  bulk        --pairs 10 --window 32 --frames-per-write 1 --records-per-send 1
  fanout      --receivers 100 --window 32 (and the two of bulk)
  sparse      --rate 1000
  idle        --connections 1000 --hold 2 --concurrency 64
  handshakes  --concurrency 4
  slow        --seconds 5 --senders 8 --window 1 --rcvbuf 4096
              --read-rate 2000000 [--stop] [--flood-rate BYTES_PER_SECOND]
  crowd       --agent-id UUID --agent-token TOKEN --user-token KEY
              --clients 200 --alone 100 --concurrency 16 --hold 2
              --updates 100 --window 8

  --addr IP:PORT     loopback only
  --tls              TLS 1.3, the certificate is not checked
  --server-name N    name for TLS and HTTP (default: the address)
  --fast-start       take the relay's key from its meta certificate (needs --tls)
  --path-websocket   DERP in a WebSocket
  --relay-pid PID    also report CPU, memory and descriptors of this process
  --warmup 0.5  --duration 2.0  --size 64  --timeout 60  --seed N
  --cpu N            keep the loader on this core
  --rekey-records N  TLS key update after so many records (default 8388608)";

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scenario {
    Bulk,
    Fanout,
    Sparse,
    Idle,
    Handshakes,
    Slow,
    Crowd,
}

#[derive(Clone, Debug)]
pub struct Options {
    pub scenario: Scenario,
    pub name: String,
    pub addr: SocketAddr,
    pub tls: bool,
    pub server_name: Option<String>,
    pub websocket: bool,
    pub fast_start: bool,
    pub relay_pid: Option<i32>,
    pub warmup: f64,
    pub duration: f64,
    pub timeout: f64,
    pub size: usize,
    pub seed: u64,
    pub cpu: Option<usize>,
    pub pairs: usize,
    pub receivers: usize,
    pub window: u64,
    pub frames_per_write: usize,
    pub records_per_send: usize,
    pub rate: f64,
    pub connections: usize,
    pub concurrency: usize,
    pub hold: f64,
    pub seconds: f64,
    pub senders: usize,
    pub rcvbuf: u32,
    pub stop: bool,
    pub read_rate: f64,
    pub flood_rate: Option<f64>,
    pub rekey_records: u64,
    pub agent_id: String,
    pub agent_token: String,
    pub user_token: String,
    pub clients: usize,
    pub alone: usize,
    pub updates: usize,
}

fn number<T: FromStr>(name: &str, value: &str) -> Result<T, String> {
    value
        .parse()
        .map_err(|_| format!("{name}: {value:?} is not a number it can take"))
}

fn seconds(name: &str, value: &str) -> Result<f64, String> {
    let seconds: f64 = number(name, value)?;
    if (0.0..=86400.0).contains(&seconds) {
        Ok(seconds)
    } else {
        Err(format!("{name}: {value} is not between 0 and 86400"))
    }
}

pub fn parse(arguments: impl Iterator<Item = String>, seed: u64) -> Result<Options, String> {
    let mut arguments = arguments;
    let name = arguments.next().ok_or("no scenario (--help lists them)")?;
    let scenario = match name.as_str() {
        "bulk" => Scenario::Bulk,
        "fanout" => Scenario::Fanout,
        "sparse" => Scenario::Sparse,
        "idle" => Scenario::Idle,
        "handshakes" => Scenario::Handshakes,
        "slow" => Scenario::Slow,
        "crowd" => Scenario::Crowd,
        _ => return Err(format!("unknown scenario {name:?}")),
    };
    let mut addr = None;
    let mut concurrency = None;
    let mut window = None;
    let mut o = Options {
        scenario,
        name,
        addr: SocketAddr::from(([127, 0, 0, 1], 0)),
        tls: false,
        server_name: None,
        websocket: false,
        fast_start: false,
        relay_pid: None,
        warmup: 0.5,
        duration: 2.0,
        timeout: 60.0,
        size: 64,
        seed,
        cpu: None,
        pairs: 10,
        receivers: 100,
        window: 32,
        frames_per_write: 1,
        records_per_send: 1,
        rate: 1000.0,
        connections: 1000,
        concurrency: 64,
        hold: 2.0,
        seconds: 5.0,
        senders: 8,
        rcvbuf: 4096,
        stop: false,
        read_rate: 2e6,
        flood_rate: None,
        rekey_records: tls::REKEY_RECORDS,
        agent_id: String::new(),
        agent_token: String::new(),
        user_token: String::new(),
        clients: 200,
        alone: 100,
        updates: 100,
    };
    while let Some(flag) = arguments.next() {
        let (flag, inline) = match flag.split_once('=') {
            Some((flag, value)) => (flag.to_owned(), Some(value.to_owned())),
            None => (flag, None),
        };
        let switch = match flag.as_str() {
            "--tls" => Some(&mut o.tls),
            "--fast-start" => Some(&mut o.fast_start),
            "--path-websocket" => Some(&mut o.websocket),
            "--stop" => Some(&mut o.stop),
            _ => None,
        };
        if let Some(switch) = switch {
            if inline.is_some() {
                return Err(format!("{flag} takes no value"));
            }
            *switch = true;
            continue;
        }
        let mut value = || {
            inline
                .clone()
                .or_else(|| arguments.next())
                .ok_or(format!("{flag} needs a value"))
        };
        match flag.as_str() {
            "--addr" => {
                let text = value()?;
                let parsed: SocketAddr = text
                    .parse()
                    .map_err(|_| format!("--addr: {text:?} is not IP:PORT"))?;
                if !parsed.ip().is_loopback() {
                    return Err(format!("--addr: {text} is not a loopback address"));
                }
                addr = Some(parsed);
            }
            "--server-name" => o.server_name = Some(value()?),
            "--relay-pid" => o.relay_pid = Some(number(&flag, &value()?)?),
            "--warmup" => o.warmup = seconds(&flag, &value()?)?,
            "--duration" => o.duration = seconds(&flag, &value()?)?,
            "--timeout" => o.timeout = seconds(&flag, &value()?)?,
            "--hold" => o.hold = seconds(&flag, &value()?)?,
            "--seconds" => o.seconds = seconds(&flag, &value()?)?,
            "--size" => o.size = number(&flag, &value()?)?,
            "--seed" => o.seed = number(&flag, &value()?)?,
            "--cpu" => o.cpu = Some(number(&flag, &value()?)?),
            "--pairs" => o.pairs = number(&flag, &value()?)?,
            "--receivers" => o.receivers = number(&flag, &value()?)?,
            "--window" => window = Some(number(&flag, &value()?)?),
            "--frames-per-write" => o.frames_per_write = number(&flag, &value()?)?,
            "--records-per-send" => o.records_per_send = number(&flag, &value()?)?,
            "--rate" => o.rate = number(&flag, &value()?)?,
            "--connections" => o.connections = number(&flag, &value()?)?,
            "--concurrency" => concurrency = Some(number(&flag, &value()?)?),
            "--senders" => o.senders = number(&flag, &value()?)?,
            "--rcvbuf" => o.rcvbuf = number(&flag, &value()?)?,
            "--read-rate" => o.read_rate = number(&flag, &value()?)?,
            "--flood-rate" => o.flood_rate = Some(number(&flag, &value()?)?),
            "--rekey-records" => o.rekey_records = number(&flag, &value()?)?,
            "--agent-id" => o.agent_id = value()?,
            "--agent-token" => o.agent_token = value()?,
            "--user-token" => o.user_token = value()?,
            "--clients" => o.clients = number(&flag, &value()?)?,
            "--alone" => o.alone = number(&flag, &value()?)?,
            "--updates" => o.updates = number(&flag, &value()?)?,
            _ => return Err(format!("unknown option {flag}")),
        }
    }
    o.addr = addr.ok_or("--addr is needed")?;
    o.concurrency = concurrency.unwrap_or(match scenario {
        Scenario::Handshakes => 4,
        Scenario::Crowd => 16,
        _ => 64,
    });
    o.window = window.unwrap_or(match scenario {
        Scenario::Slow => 1,
        Scenario::Crowd => 8,
        _ => 32,
    });
    check(&o)?;
    Ok(o)
}

fn check(o: &Options) -> Result<(), String> {
    let range = |name: &str, value: u64, low: u64, high: u64| {
        if (low..=high).contains(&value) {
            Ok(())
        } else {
            Err(format!("{name}: {value} is not between {low} and {high}"))
        }
    };
    range("--size", o.size as u64, STAMP as u64, MAX_PACKET as u64)?;
    range("--pairs", o.pairs as u64, 1, 10_000)?;
    range("--receivers", o.receivers as u64, 1, 20_000)?;
    range("--window", o.window, 1, 1 << 20)?;
    range("--frames-per-write", o.frames_per_write as u64, 1, 4096)?;
    range("--records-per-send", o.records_per_send as u64, 1, 4096)?;
    range("--connections", o.connections as u64, 1, 1_000_000)?;
    range("--concurrency", o.concurrency as u64, 1, 4096)?;
    range("--senders", o.senders as u64, 1, 1000)?;
    range("--rcvbuf", u64::from(o.rcvbuf), 256, 1 << 30)?;
    range("--rekey-records", o.rekey_records, 2, tls::REKEY_RECORDS)?;
    range("--clients", o.clients as u64, 1, 100_000)?;
    range("--updates", o.updates as u64, 1, 1_000_000)?;
    if !(o.rate > 0.0 && o.rate <= 1e6) {
        return Err(format!("--rate: {} is not in 0 to 1000000", o.rate));
    }
    if o.flood_rate
        .is_some_and(|rate| rate.is_nan() || rate <= 0.0)
    {
        return Err("--flood-rate must be above 0".into());
    }
    if !(o.read_rate > 0.0 && o.read_rate <= 1e12) {
        return Err("--read-rate must be above 0".into());
    }
    let unit = (o.frames_per_write * o.records_per_send) as u64;
    let room = match o.scenario {
        Scenario::Bulk => o.window,
        Scenario::Fanout => o.window * o.receivers as u64,
        _ => unit,
    };
    if unit > room {
        return Err(format!(
            "one send holds {unit} packets, which the window of {room} never allows"
        ));
    }
    let crowd = [&o.agent_id, &o.agent_token, &o.user_token];
    if o.scenario == Scenario::Crowd && (o.tls || crowd.iter().any(|text| text.is_empty())) {
        return Err("crowd needs --agent-id, --agent-token, --user-token and no --tls".into());
    }
    if o.fast_start && (!o.tls || o.websocket) {
        return Err("--fast-start needs --tls and no --path-websocket".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(line: &str) -> Result<Options, String> {
        parse(line.split_whitespace().map(str::to_owned), 1)
    }

    #[test]
    fn takes_both_forms_of_values() {
        let o = run("bulk --addr 127.0.0.1:3340 --window=64 --size 1400 --tls").unwrap();
        assert_eq!((o.window, o.size, o.tls), (64, 1400, true));
        assert!(run("slow --addr [::1]:3340 --stop").unwrap().stop);
    }

    #[test]
    fn refuses_what_is_not_loopback() {
        for addr in ["10.0.0.1:1", "192.0.2.1:1", "[2001:db8::1]:1", "0.0.0.0:1"] {
            let error = run(&format!("bulk --addr {addr}")).unwrap_err();
            assert!(error.contains("not a loopback address"), "{error}");
        }
        assert!(run("bulk --addr localhost:1").is_err());
        assert!(run("bulk --addr 127.9.8.7:1").is_ok());
    }

    #[test]
    fn refuses_what_cannot_work() {
        for line in [
            "",
            "nonsense --addr 127.0.0.1:1",
            "bulk",
            "bulk --addr 127.0.0.1:1 --size 15",
            "bulk --addr 127.0.0.1:1 --size 65537",
            "bulk --addr 127.0.0.1:1 --window 8 --frames-per-write 16",
            "bulk --addr 127.0.0.1:1 --fast-start",
            "bulk --addr 127.0.0.1:1 --duration nan",
            "bulk --addr 127.0.0.1:1 --duration",
            "bulk --addr 127.0.0.1:1 --tls=1",
            "sparse --addr 127.0.0.1:1 --rate 0",
            "crowd --addr 127.0.0.1:1 --agent-id a --agent-token b",
            "crowd --addr 127.0.0.1:1 --agent-id a --agent-token b --user-token c --tls",
        ] {
            assert!(run(line).is_err(), "{line}");
        }
    }
}
