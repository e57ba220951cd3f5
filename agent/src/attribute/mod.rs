//! pid → process → container → service and release.

mod attributor;
mod cgroup;
mod elf;
mod identify;
mod program;
mod release;
mod rules;
mod runtime;
pub mod service;
mod sum;

use std::sync::Arc;

pub use attributor::{AttributeStats, Attributor, Only, RECORDED};
pub use cgroup::{Container, container_of, unit_of};
pub use identify::{Identity, identify};
pub use program::program_name;
pub use rules::ServiceRule;
pub use service::{Service, ServiceInfo};

/// What later stages need of `decode`: stages import only their neighbour.
pub use crate::decode::model::{
    AGES, CapturedCode, CapturedFile, CapturedModule, Cause, ConnEnd, ConnFailure, ConnTotals, Direction,
    DiskOp, DiskTotals, FdForecast, FdKind, HISTOGRAM_BUCKETS, Histogram, Lifecycle, ListenTotals, Living,
    MOST_ADDRESSES, MemoryKind, OomVictim, Peer, PoolPeer, PoolTotals, PythonFrame, PythonStack, SlotId,
    StackDetail, StackKind, StackSample, Stall, SyscallTotals, Tick, Totals, UnwindResult,
};

/// One tick, summed to services.
#[derive(Clone, Debug, Default)]
pub struct AttributedTick {
    /// Unix time of the tick's end, in nanoseconds.
    pub at_unix_ns: u64,
    /// Length of the tick in nanoseconds.
    pub length_ns: u64,
    /// Differences of counters, gauges as they are, by service.
    pub services: Vec<(Arc<Service>, Totals)>,
}
