//! Counters, percentiles, the state of the relay process, JSON.

use std::fmt::{Display, Write};
use std::fs;

use crate::sys;

#[derive(Clone)]
pub struct Counters {
    pub sent: u64,
    pub delivered: u64,
    pub bytes: u64,
    pub lost: u64,
    /// Delivered after it had been written off; such packets are not lost any more.
    pub late: u64,
    pub reordered: u64,
    pub corrupt: u64,
    pub closed: u64,
    pub keep_alives: u64,
    pub unexpected: [u64; 256],
    pub sends: u64,
    pub receives: u64,
}

impl Counters {
    pub fn new() -> Self {
        Self {
            sent: 0,
            delivered: 0,
            bytes: 0,
            lost: 0,
            late: 0,
            reordered: 0,
            corrupt: 0,
            closed: 0,
            keep_alives: 0,
            unexpected: [0; 256],
            sends: 0,
            receives: 0,
        }
    }

    pub fn unexpected_json(&self) -> Json {
        let mut json = Json::new();
        for (kind, &count) in self.unexpected.iter().enumerate() {
            if count > 0 {
                json.number(&format!("{kind:#04x}"), count);
            }
        }
        json
    }
}

/// Percentiles of durations in nanoseconds, as microseconds.
pub fn percentiles(samples: &mut [u64]) -> Option<Json> {
    samples.sort_unstable();
    let &max = samples.last()?;
    let at = |part: f64| samples[((samples.len() as f64 * part) as usize).min(samples.len() - 1)];
    let mut json = Json::new();
    json.float("p50", at(0.50) as f64 / 1e3, 1);
    json.float("p90", at(0.90) as f64 / 1e3, 1);
    json.float("p99", at(0.99) as f64 / 1e3, 1);
    json.float("max", max as f64 / 1e3, 1);
    json.number("samples", samples.len());
    Some(json)
}

/// The process under test, when its pid was given.
#[derive(Clone, Copy)]
pub struct Relay(pub Option<i32>);

#[derive(Clone, Copy)]
pub struct Memory {
    pub rss: u64,
    pub pss: u64,
    pub fds: u64,
}

impl Relay {
    pub fn cpu_ns(self) -> Result<Option<u64>, String> {
        self.0
            .map(|pid| sys::process_cpu_ns(pid).map_err(|error| format!("relay {pid}: {error}")))
            .transpose()
    }

    /// Memory in bytes and open descriptors.
    pub fn memory(self) -> Result<Option<Memory>, String> {
        let Some(pid) = self.0 else { return Ok(None) };
        let read = |name: &str| {
            let path = format!("/proc/{pid}/{name}");
            fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))
        };
        let fds = fs::read_dir(format!("/proc/{pid}/fd"))
            .map_err(|error| format!("/proc/{pid}/fd: {error}"))?;
        Ok(Some(Memory {
            rss: kib(&read("status")?, "VmRSS:") * 1024,
            pss: kib(&read("smaps_rollup")?, "Pss:") * 1024,
            fds: fds.count() as u64,
        }))
    }
}

fn kib(text: &str, name: &str) -> u64 {
    text.lines()
        .find_map(|line| line.strip_prefix(name))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|number| number.parse().ok())
        .unwrap_or(0)
}

/// A JSON object that is written in order.
#[derive(Clone, Default)]
pub struct Json(String);

impl Json {
    pub fn new() -> Self {
        Self::default()
    }

    fn name(&mut self, name: &str) {
        if !self.0.is_empty() {
            self.0.push_str(", ");
        }
        let _ = write!(self.0, "\"{name}\": ");
    }

    pub fn number(&mut self, name: &str, value: impl Display) {
        self.name(name);
        let _ = write!(self.0, "{value}");
    }

    pub fn float(&mut self, name: &str, value: f64, places: usize) {
        if !value.is_finite() {
            return self.number(name, "null");
        }
        self.name(name);
        let _ = write!(self.0, "{value:.places$}");
    }

    pub fn maybe(&mut self, name: &str, value: Option<f64>, places: usize) {
        self.float(name, value.unwrap_or(f64::NAN), places);
    }

    pub fn text(&mut self, name: &str, value: &str) {
        self.name(name);
        self.0.push('"');
        for letter in value.chars() {
            match letter {
                '"' | '\\' => {
                    self.0.push('\\');
                    self.0.push(letter);
                }
                letter if u32::from(letter) < 32 => {
                    let _ = write!(self.0, "\\u{:04x}", u32::from(letter));
                }
                letter => self.0.push(letter),
            }
        }
        self.0.push('"');
    }

    pub fn maybe_text(&mut self, name: &str, value: Option<&str>) {
        match value {
            Some(value) => self.text(name, value),
            None => self.number(name, "null"),
        }
    }

    pub fn object(&mut self, name: &str, value: Option<Json>) {
        match value {
            Some(value) => self.number(name, value),
            None => self.number(name, "null"),
        }
    }
}

impl Display for Json {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{{{}}}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_json() {
        let mut inner = Json::new();
        inner.text("a", "x\"y\\\n");
        let mut json = Json::new();
        json.number("n", 1);
        json.float("f", 0.12345, 2);
        json.maybe("none", None, 1);
        json.object("o", Some(inner));
        assert_eq!(
            json.to_string(),
            r#"{"n": 1, "f": 0.12, "none": null, "o": {"a": "x\"y\\\u000a"}}"#
        );
    }

    #[test]
    fn percentiles_of_a_ramp() {
        let mut samples: Vec<u64> = (0..1000).rev().map(|us| us * 1000).collect();
        let json = percentiles(&mut samples).unwrap().to_string();
        assert_eq!(
            json,
            r#"{"p50": 500.0, "p90": 900.0, "p99": 990.0, "max": 999.0, "samples": 1000}"#
        );
        assert!(percentiles(&mut []).is_none());
    }

    #[test]
    fn reads_kib() {
        assert_eq!(kib("Name:\tx\nVmRSS:\t  123 kB\n", "VmRSS:"), 123);
        assert_eq!(kib("", "VmRSS:"), 0);
    }
}
