//! What is kept of a slot.

use std::sync::Arc;
use std::time::Instant;

use crate::attribute::{Identity, Service, SlotId, Totals};

/// Ways in which attribution failed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AttributeStats {
    /// Ended before anything could be read; charged to the parent's service.
    pub vanished: u64,
    /// Past the bound on services; charged to `(other)`.
    pub capped: u64,
    /// Executables that contradict themselves; their releases may be missing.
    pub malformed: u64,
}

impl AttributeStats {
    /// What was lost, by reason; a process that vanished is charged to its parent and no loss.
    #[must_use]
    pub fn lost(&self) -> [(&'static str, u64); 2] {
        [
            ("too_many_services", self.capped),
            ("malformed_executable", self.malformed),
        ]
    }
}

/// A service and what of it a child of the process takes over.
#[derive(Clone)]
pub(super) struct Decided {
    pub(super) service: Arc<Service>,
    /// Path of the program.
    pub(super) executable: String,
    /// The release is the service's: programs that it starts are helpers and have none of their own.
    pub(super) settled: bool,
}

/// What `/proc` says of a process.
#[derive(Clone)]
pub(super) struct Found {
    pub(super) identity: Identity,
    /// Process that started it.
    pub(super) parent: u32,
}

/// A slot whose threads are not all gone.
pub(super) struct Open {
    pub(super) pid: u32,
    pub(super) parent: Option<SlotId>,
    pub(super) since: Instant,
    /// What `/proc` said, not final while a program has only its file's name and is younger than the minimum age.
    pub(super) found: Option<Found>,
    pub(super) service: Option<Decided>,
    /// Totals that wait for the decision. Few slots have any, and they are large.
    pub(super) held: Option<Box<Totals>>,
}

/// Keeps counters; gauges belong to one tick only.
pub(super) fn hold(held: &mut Option<Box<Totals>>, totals: &Totals) {
    let mut counters = totals.clone();
    counters.resident_bytes = Default::default();
    counters.fds = Default::default();
    counters.fd_limit = 0;
    counters.processes = 0;
    counters.threads = 0;
    for conn in counters.conns.values_mut() {
        conn.open = 0;
        conn.peak = 0;
    }
    for pool in counters.pools.values_mut() {
        pool.clear_gauges();
    }
    for listener in counters.listeners.values_mut() {
        listener.clear_gauges();
    }
    held.get_or_insert_default().merge(&counters);
}
