//! The agent's own numbers, as plain values that the pipeline fills once a tick and `export` serves.

use std::collections::{BTreeMap, BTreeSet};

/// Numbers of one probe.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ProbeTelemetry {
    /// Times its programs ran since the agent started.
    pub runs: u64,
    /// Estimated CPU seconds of these runs: runs times the cost calibrated at start.
    pub cost_seconds: f64,
    /// Share of the time or of the events that it looks at: 1 when nothing is left out.
    pub sampling_ratio: f64,
}

/// What the governor decides by and what it decided.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GovernorTelemetry {
    /// Steps it has gone down; 0 is full detail.
    pub level: u32,
    /// Name of the level, for people.
    pub level_name: String,
    /// Why it stands there; empty at full detail.
    pub reason: String,
    /// Share of time in which the system call hooks are attached.
    pub syscall_duty: f64,
    /// Cost now as a share of the host's CPUs (calibrated hooks plus the agent's own CPU).
    pub cost_ratio: f64,
    /// Ceiling of that share.
    pub cost_limit_ratio: f64,
    /// The kill switch is on: everything is detached.
    pub killed: bool,
}

/// Unwind tables of the executables that run here.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct UnwindTelemetry {
    /// Tables made.
    pub built: u64,
    /// Executables without a table, by reason; and what found no room.
    pub refused: BTreeMap<String, u64>,
    /// Functions whose call frame information could not be read.
    pub broken_functions: u64,
    /// Rows with a rule that the walk does not know, by reason.
    pub unsupported_rows: BTreeMap<String, u64>,
    /// Seconds spent on making tables.
    pub build_seconds: f64,
    /// Bytes of kernel memory for rows.
    pub row_bytes: u64,
    /// Programs with a CPython interpreter by result.
    pub interpreters: BTreeMap<String, u64>,
}

/// Seconds from the start of a program to its first whole stack, as a histogram.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FirstStacks {
    /// Observations by bucket, each in the first that holds it; those over the last bound are in none.
    buckets: [u64; Self::BOUNDS.len()],
    /// All observations.
    pub count: u64,
    /// Their sum.
    pub sum: f64,
}

impl FirstStacks {
    /// Upper bounds of the buckets, in seconds.
    pub const BOUNDS: [f64; 8] = [0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 60.0];

    /// Adds an observation.
    pub fn add(&mut self, seconds: f64) {
        self.count += 1;
        self.sum += seconds;
        if let Some(at) = Self::BOUNDS.iter().position(|bound| seconds <= *bound) {
            self.buckets[at] += 1;
        }
    }

    /// Each bound with how many observations are not above it.
    pub fn cumulated(&self) -> impl Iterator<Item = (f64, u64)> {
        Self::BOUNDS.iter().enumerate().map(|(at, bound)| {
            let count = self.buckets[..=at].iter().sum();
            (*bound, count)
        })
    }
}

/// Where figures of allocations are from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AllocSource {
    /// Probes in an allocator.
    Probes,
    /// The profile that a runtime keeps of itself.
    Runtime,
}

impl AllocSource {
    /// Its name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Probes => "probes",
            Self::Runtime => "runtime profile",
        }
    }
}

/// A service whose allocations are watched.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AllocTelemetry {
    /// `service_name`.
    pub service: String,
    /// `service_namespace`.
    pub namespace: String,
    /// `duty` or `full`.
    pub mode: String,
    /// Processes that are watched.
    pub processes: usize,
    /// Allocators with the paths of their files, and runtimes that keep a profile of themselves.
    pub allocators: Vec<String>,
    /// Where its figures are from.
    pub from: BTreeSet<AllocSource>,
    /// Why some process is not watched.
    pub refused: Vec<String>,
    /// Functions of the allocators of which nothing is seen, and why.
    pub not_understood: Vec<String>,
    /// Share of the time that is watched, the mean of the processes.
    pub duty: f64,
    /// How many times slower the slowest of the processes runs; estimated, in mode `full` by samples of the CPU clock.
    pub slowdown: f64,
    /// Lowest memory limit of the processes.
    pub memory_limit_bytes: Option<u64>,
}

/// Everything that the agent says about itself. All counters count since the agent started.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Telemetry {
    /// Version of the agent.
    pub version: String,
    /// Git revision it was built from, empty when unknown.
    pub revision: String,
    /// Unix time of the agent's start in seconds.
    pub start_unix_seconds: f64,
    /// Release of the running kernel.
    pub kernel: String,
    /// The kernel hides its symbols from the agent, so that its functions have no names.
    pub kernel_symbols_hidden: bool,
    /// By probe.
    pub probes: BTreeMap<String, ProbeTelemetry>,
    /// What was lost, by (probe, reason).
    pub lost: BTreeMap<(String, String), u64>,
    /// Stack walks by result (`ok`, or why they ended early).
    pub unwind: BTreeMap<String, u64>,
    /// How soon walks reach the end.
    pub first_stacks: FirstStacks,
    /// Tables for walks.
    pub unwind_tables: UnwindTelemetry,
    /// Look-ups of addresses by result.
    pub symbolize: BTreeMap<String, u64>,
    /// Stacks by how their owner was found, or why it is unknown.
    pub owners: BTreeMap<String, u64>,
    /// Searches for debug files by result.
    pub debug_files: BTreeMap<String, u64>,
    /// Requests to debuginfod servers by result; empty where none is named.
    pub debug_file_requests: BTreeMap<String, u64>,
    /// CPU seconds of the agent's process.
    pub cpu_seconds: f64,
    /// Resident bytes of the agent's process.
    pub resident_bytes: u64,
    /// Memory of its BPF maps in bytes, as the kernel accounts it.
    pub bpf_map_bytes: u64,
    /// Ceiling of resident and map bytes together.
    pub memory_limit_bytes: u64,
    /// Times that cached symbols were let go because of that ceiling.
    pub memory_sheds: u64,
    /// Finished ticks.
    pub ticks: u64,
    /// Seconds of work of the last tick, reading to publishing.
    pub tick_seconds: f64,
    /// The same, summed over all ticks.
    pub tick_seconds_total: f64,
    /// Waits of which a stack was taken.
    pub wait_samples: u64,
    /// Waits a second of which the agent steers to take a stack.
    pub wait_sample_budget: f64,
    /// Bytes of symbol tables and debug sections kept in memory.
    pub symbol_bytes: u64,
    /// Services whose allocations are watched.
    pub alloc: Vec<AllocTelemetry>,
    /// The governor.
    pub governor: GovernorTelemetry,
}
