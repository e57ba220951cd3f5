//! What is known of the host before anything is loaded.

use std::collections::BTreeSet;

use crate::{host::Host, kernel::Layout};

/// Largest `pid_max` for which threads are kept in an array by their id (8.4 MB at 32,768).
const DIRECT_PID_MAX: u32 = 65_536;

/// What the loader must know of the host.
#[derive(Clone, Debug)]
pub struct Environment {
    /// Where the kernel counts context switches.
    pub host: Host,
    /// `/proc/sys/kernel/pid_max`.
    pub pid_max: u32,
    /// Online CPUs.
    pub cpus: Vec<u32>,
    /// Offsets.
    pub layout: Layout,
    /// Names of system calls by number.
    pub syscalls: Vec<(u16, &'static str)>,
    /// Probes that the configuration switches off.
    pub disabled: BTreeSet<String>,
    /// CPU samples a second.
    pub cpu_hz: u32,
    /// Allocations of some service are wanted.
    pub alloc: bool,
    /// For tests: maps that have room for no more than this.
    pub room: Vec<(String, u32)>,
}

impl Environment {
    /// Whether threads are in an array by their id.
    pub(super) fn direct(&self) -> bool {
        self.pid_max <= DIRECT_PID_MAX
    }
}
