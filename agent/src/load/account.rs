//! What the kernel says of the agent's own maps and programs.

use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use agent_ebpf::{probe::Hook, probes};

use super::{Loaded, maps};
use crate::host::Host;

/// What sees the events that `conn_state` does not see because it runs already.
const STAND_IN: &str = "conn_nested";

impl Loaded {
    /// Memory of all maps in bytes, as the kernel accounts it; that of the segments of unwind tables is not part of it.
    pub fn map_bytes(&self, host: &Host) -> u64 {
        let held = self.ebpf.maps().filter_map(|(_, map)| maps::data(map));
        held.map(|data| data.fd().as_fd())
            .chain(self.taken.iter().map(OwnedFd::as_fd))
            .filter_map(|fd| host.map_memory(fd.as_raw_fd()).ok())
            .sum()
    }

    /// Events that a probe did not see: the kernel does not run a program on a CPU on which it is running already, and counts that. Those
    /// of the stand-in for such a program are none: it was asked in vain.
    pub fn missed(&self, host: &Host) -> Vec<(&'static str, u64)> {
        let of_hook = |hook: &Hook| {
            (hook.program != STAND_IN).then_some(())?;
            let program = self.ebpf.program(hook.program)?;
            let fd = program.fd().ok()?.as_fd().as_raw_fd();
            host.program_misses(fd).ok()
        };
        probes::ALL
            .iter()
            .map(|probe| (probe.name, probe.hooks.iter().filter_map(of_hook).sum()))
            .filter(|(_, count)| *count > 0)
            .collect()
    }
}
