//! Runs of the program that runs at each context switch: the kernel counts context switches anyway.

use crate::host::Host;

/// Context switches while a program is attached to them.
#[derive(Debug, Default)]
pub(super) struct Switches {
    counted: u64,
    /// The kernel's count up to which they are counted, while it is attached.
    since: Option<u64>,
}

impl Switches {
    pub(super) fn begin(&mut self, host: &Host) {
        self.since = host.context_switches().ok();
    }

    pub(super) fn read(&mut self, host: &Host) -> u64 {
        if let Some((since, now)) = self.since.zip(host.context_switches().ok()) {
            self.counted += now.saturating_sub(since);
            self.since = Some(now);
        }
        self.counted
    }

    pub(super) fn end(&mut self, host: &Host) {
        self.read(host);
        self.since = None;
    }
}
