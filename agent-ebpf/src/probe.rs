//! Const data that describes a probe: what it attaches to and what it needs. Configuration keys, `/status` rows and the
//! README's table derive from it.

use crate::offsets::Field;

/// Where a program attaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attach {
    /// A BTF tracepoint, the first of these that the kernel has.
    TpBtf(&'static [&'static str]),
    /// A raw tracepoint.
    RawTp(&'static str),
    /// The CPU clock, on every CPU.
    CpuClock,
    /// A BPF iterator that the agent reads on each tick.
    Iter(&'static str),
    /// Nowhere: the agent runs the program whenever it wants a sample, which it writes to this array.
    Run(&'static str),
    /// Many places of a user program at once, of chosen processes only (Linux 6.6).
    UprobeMulti,
}

/// One program of a probe.
#[derive(Clone, Copy, Debug)]
pub struct Hook {
    /// Name of the function in the object; starts with the probe's name.
    pub program: &'static str,
    /// Where it attaches.
    pub attach: Attach,
}

/// A probe.
#[derive(Clone, Copy, Debug)]
pub struct Probe {
    /// Name in configuration, metrics and `/status`.
    pub name: &'static str,
    /// What it measures, one sentence.
    pub help: &'static str,
    /// Its programs.
    pub hooks: &'static [Hook],
    /// Kernel fields that it reads.
    pub fields: &'static [Field],
    /// Metrics that it feeds.
    pub metrics: &'static [&'static str],
}
