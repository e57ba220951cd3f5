//! Many short waits in one function and few long ones in another: the input of the sampling-bias test.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;

use super::{gate, raw};

#[inline(never)]
fn short_wait(length: Duration) {
    raw::nanosleep(length);
}

#[inline(never)]
fn long_wait(length: Duration) {
    raw::nanosleep(length);
}

/// How often the process left the CPU by itself, as the kernel counts.
fn switches() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let mut lines = status.lines();
    let count = lines.find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    Ok(count.context("no count of switches")?.trim().parse()?)
}

/// In each of `turns` turns, waits `shorts` × 20 µs and once 50 ms; prints the measured sum per function and how often
/// the kernel says that it waited.
pub fn run(turns: u32, shorts: u32) -> Result<()> {
    gate::step("ready", &json!({}))?;
    let (mut short, mut long) = (Duration::ZERO, Duration::ZERO);
    let switches = switches()?;
    for _ in 0..turns {
        let start = Instant::now();
        for _ in 0..shorts {
            short_wait(Duration::from_micros(20));
        }
        short += start.elapsed();
        let start = Instant::now();
        long_wait(Duration::from_millis(50));
        long += start.elapsed();
    }
    let switches = self::switches()? - switches;
    gate::truth(
        &json!({ "switches": switches, "short_seconds": short.as_secs_f64(), "long_seconds": long.as_secs_f64(),
        "short_waits": turns * shorts, "long_waits": turns }),
    )
}
