//! How a process is watched, for people.

use super::WatchedProcess;
use super::process::Process;
use crate::config::AllocMode;

impl Process {
    /// It is watched in windows.
    pub(super) fn windowed(&self) -> bool {
        self.mode == AllocMode::Duty && self.stopped.is_none() && !self.targets.is_empty()
    }

    pub(super) fn status(&self, memory_limit_bytes: Option<u64>) -> WatchedProcess {
        let why = self.looked.values().find(|said| !said.is_empty());
        let refused = match (&self.stopped, self.targets.is_empty(), why) {
            (Some(why), ..) => Some(why.clone()),
            (None, true, Some(why)) => Some(why.clone()),
            (None, true, None) => Some("none of its files defines an allocator that is known".to_owned()),
            (None, false, _) => None,
        };
        WatchedProcess {
            slot: self.slot,
            mode: self.mode,
            allocators: self
                .targets
                .iter()
                .map(|target| (target.allocator.family.as_str(), target.path.clone()))
                .collect(),
            duty: match self.mode {
                _ if refused.is_some() => 0.0,
                AllocMode::Duty => self.duty.share(),
                AllocMode::Full => 1.0,
            },
            slowdown: self.slowdown,
            refused,
            memory_limit_bytes,
        }
    }
}
