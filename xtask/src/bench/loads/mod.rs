//! What is measured: programs under full load that count what they do.

pub(crate) mod loops;
mod nginx;
mod postgres;
pub(crate) mod redis;

use super::process::{Process, cpu_ns};
use anyhow::Result;
use std::path::Path;

/// A workload and what the agent may cost it.
pub(crate) struct Load {
    /// For `--only` and the table.
    pub(crate) name: &'static str,
    /// What its CPU time is divided by.
    pub(crate) unit: &'static str,
    /// What it does.
    pub(crate) what: &'static str,
    /// Programs without which it is left out.
    pub(crate) needs: &'static [&'static str],
    /// Most that the ratio of CPU per operation with and without the agent may be; `None` where it is only told.
    pub(crate) target: Option<Target>,
    /// Starts it.
    pub(crate) start: fn(&Site<'_>) -> Result<Running>,
}

/// What a ratio may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    /// The ratio itself.
    pub(crate) value: f64,
    /// The upper end of its interval, where that is promised, too.
    pub(crate) high: Option<f64>,
}

/// All of them, cheap requests first.
pub(crate) const ALL: &[Load] = &[
    redis::LOAD,
    nginx::LOAD,
    postgres::LOAD,
    loops::DD,
    loops::PING_PONG,
    loops::CONNECT,
    loops::REQUEST,
    loops::EXEC,
    loops::FAULTS,
];

/// Real servers promise both the ratio and its upper end.
const SERVER: Option<Target> = Some(Target {
    value: 1.01,
    high: Some(1.015),
});

/// A target without a promise for the interval: loops that do nothing but what the hooks hook.
const fn at_most(value: f64) -> Option<Target> {
    Some(Target { value, high: None })
}

/// Where workloads run.
pub(crate) struct Site<'a> {
    /// A folder of their own.
    pub(crate) dir: &'a Path,
    /// `tieback-workload`.
    pub(crate) workload: &'a Path,
}

/// What has been done so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Done {
    /// Operations.
    pub(crate) operations: u64,
    /// CPU time of processes that have ended since.
    pub(crate) ended_ns: u64,
}

/// A workload that runs; it ends when this is dropped.
pub(crate) struct Running {
    /// In the order in which they end: clients before their servers.
    pub(crate) processes: Vec<Process>,
    /// Whose CPU time counts.
    pub(crate) measured: Vec<u32>,
    /// Reads what has been done.
    pub(crate) count: Box<dyn FnMut() -> Result<Done>>,
}

/// Counters at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reading {
    /// Operations.
    pub(crate) operations: u64,
    /// CPU time in nanoseconds.
    pub(crate) cpu_ns: u64,
}

impl Running {
    /// Reads the counters.
    pub(crate) fn read(&mut self) -> Result<Reading> {
        for process in &mut self.processes {
            process.alive()?;
        }
        let done = (self.count)()?;
        let mut cpu = done.ended_ns;
        for &pid in &self.measured {
            cpu += cpu_ns(pid)?;
        }
        Ok(Reading {
            operations: done.operations,
            cpu_ns: cpu,
        })
    }
}
