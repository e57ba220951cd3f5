//! Flags, environment and file → one validated [`Config`].
//!
//! Two steps: the sources are merged (flags and variables over the file over the defaults), then the whole is
//! checked. Every complaint says where the value came from.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, anyhow, bail};

mod fields;
mod file;
mod settings;
#[cfg(test)]
mod tests;
mod values;
mod watched;

pub use file::RuleTable;
pub use settings::{Flags, Settings};
pub use values::{AbsolutePath, Bytes, Percent, Span, SyscallMode, Urls};
pub use watched::{AllocMode, Watched};

use file::File;

/// Everything that the agent can be told, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Address to serve HTTP on.
    pub listen: SocketAddr,
    /// Length of a window.
    pub interval: Duration,
    /// How system calls are counted.
    pub syscall_mode: SyscallMode,
    /// Ceiling of the agent's memory in bytes, BPF maps included.
    pub memory_limit_bytes: u64,
    /// Most kernel memory for unwind tables, in bytes.
    pub unwind_memory_bytes: u64,
    /// Ceiling of the cost as a share of all CPUs, 0 to 1.
    pub cpu_limit_ratio: f64,
    /// File whose presence detaches everything.
    pub kill_switch: PathBuf,
    /// CPU samples per second and CPU.
    pub sample_cpu_hz: u32,
    /// Processes younger than this are not looked up one by one.
    pub min_age: Duration,
    /// Code series per service and signal.
    pub top: usize,
    /// Budget of series of all services.
    pub series_limit: usize,
    /// Bound on services.
    pub services_limit: usize,
    /// Bound on peers per service.
    pub peers_limit: usize,
    /// When a service without processes is forgotten.
    pub service_idle: Duration,
    /// How far back profiles reach.
    pub retention: Duration,
    /// Services whose allocations are watched.
    pub alloc: Watched,
    /// Allocated bytes that a sample stands for, in the mean.
    pub alloc_period: u32,
    /// What watching in windows may cost a program, as a share of its CPU time.
    pub alloc_limit_ratio: f64,
    /// By how much watching all the time may slow a program.
    pub alloc_slowdown: f64,
    /// Servers of debug files.
    pub debuginfod_urls: Vec<String>,
    /// Where fetched debug files are kept.
    pub debuginfod_cache: PathBuf,
    /// Root of the host's file system.
    pub host_root: PathBuf,
    /// Probes that the file switches on or off by name; others keep their default.
    pub probes: BTreeMap<String, bool>,
    /// `[[service]]`: rules that name services, in order.
    pub service_rules: Vec<RuleTable>,
    /// `[[owner]]`: rules that say which frames own a stack, in order.
    pub owner_rules: Vec<RuleTable>,
}

impl Config {
    /// Merges and checks; `probes` are the names that `[probes.NAME]` may have.
    pub fn load(flags: Flags, probes: &[&str]) -> Result<Self> {
        let file = match &flags.config {
            Some(path) => File::read(path, probes)?,
            None => File::default(),
        };
        Self::merge(flags.settings, file)
    }

    fn merge(flags: Settings, file: File) -> Result<Self> {
        // Who is to blame for a bad value: the flag, a line of the file, or neither.
        let given: Vec<&str> = Settings::KEYS
            .iter()
            .copied()
            .filter(|key| flags.has(key))
            .collect();
        let origin = |key: &str| {
            if given.contains(&key) {
                format!("--{}", key.replace('_', "-"))
            } else {
                file.origin(key)
                    .map_or_else(|| key.to_owned(), |line| format!("{line}: {key}"))
            }
        };
        let all = flags
            .complete(file.settings.clone())
            .map_err(|error| anyhow!("{error}"))?;

        let second = Duration::from_secs(1);
        let times = [
            ("interval", all.interval, second, 600 * second),
            ("min_age", all.min_age, Duration::ZERO, 3600 * second),
            (
                "service_idle",
                all.service_idle,
                60 * second,
                7 * 24 * 3600 * second,
            ),
            ("retention", all.retention, all.interval.0, 24 * 3600 * second),
        ];
        for (key, value, least, most) in times {
            if value.0 < least || value.0 > most {
                bail!(
                    "{} must be {} to {}, is {value}",
                    origin(key),
                    Span(least),
                    Span(most)
                );
            }
        }
        let counts = [
            ("sample_cpu_hz", all.sample_cpu_hz as usize, 1, 999),
            ("top", all.top, 1, 1_000),
            ("series_limit", all.series_limit, 1_000, 10_000_000),
            ("services_limit", all.services_limit, 1, 100_000),
            ("peers_limit", all.peers_limit, 1, 10_000),
            ("alloc_slowdown", all.alloc_slowdown, 2, 10_000),
        ];
        for (key, value, least, most) in counts {
            if value < least || value > most {
                bail!("{} must be {least} to {most}, is {value}", origin(key));
            }
        }
        let least = Bytes(64 << 20);
        if all.memory_limit < least {
            bail!(
                "{} must be at least {least}, is {}",
                origin("memory_limit"),
                all.memory_limit
            );
        }
        for (key, share) in [("cpu_limit", all.cpu_limit), ("alloc_limit", all.alloc_limit)] {
            if share.0 <= 0.0 || share.0 > 100.0 {
                bail!(
                    "{} must be more than 0% and at most 100%, is {share}",
                    origin(key)
                );
            }
        }
        let (least, most) = (Bytes(4 << 10), Bytes(64 << 20));
        if all.alloc_period < least || all.alloc_period > most {
            bail!(
                "{} must be {least} to {most}, is {}",
                origin("alloc_period"),
                all.alloc_period
            );
        }
        Ok(Self {
            listen: all.listen,
            interval: all.interval.0,
            syscall_mode: all.syscall_mode,
            memory_limit_bytes: all.memory_limit.0,
            unwind_memory_bytes: all.unwind_memory.0,
            cpu_limit_ratio: all.cpu_limit.ratio(),
            kill_switch: all.kill_switch.0,
            sample_cpu_hz: all.sample_cpu_hz,
            min_age: all.min_age.0,
            top: all.top,
            series_limit: all.series_limit,
            services_limit: all.services_limit,
            peers_limit: all.peers_limit,
            service_idle: all.service_idle.0,
            retention: all.retention.0,
            alloc: all.alloc,
            alloc_period: u32::try_from(all.alloc_period.0)?,
            alloc_limit_ratio: all.alloc_limit.ratio(),
            alloc_slowdown: all.alloc_slowdown as f64,
            debuginfod_urls: all.debuginfod_urls.0,
            debuginfod_cache: all.debuginfod_cache.0,
            host_root: all.host_root.0,
            probes: file.probes,
            service_rules: file.services,
            owner_rules: file.owners,
        })
    }
}
