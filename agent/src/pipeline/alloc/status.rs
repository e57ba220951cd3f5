//! How a process is watched, for people.

use super::WatchedProcess;
use super::process::Process;
use crate::config::AllocMode;
use crate::telemetry::AllocSource;

impl Process {
    /// It is watched in windows.
    pub(super) fn windowed(&self) -> bool {
        self.mode == AllocMode::Duty && self.stopped.is_none() && !self.targets.is_empty()
    }

    pub(super) fn status(&self, memory_limit_bytes: Option<u64>) -> WatchedProcess {
        let why = self.looked.values().find(|said| !said.is_empty());
        let (said, unread) = match &self.go {
            Some(go) => (Some(&go.said).filter(|said| !said.is_empty()), go.refused.clone()),
            None => (None, None),
        };
        let refused = match (&self.stopped, self.targets.is_empty(), why) {
            (Some(why), ..) => Some(why.clone()),
            // A program in Go has no other allocator.
            (None, true, _) if self.go.is_some() => unread.clone(),
            (None, true, Some(why)) => Some(why.clone()),
            (None, true, None) => Some("none of its files defines an allocator that is known".to_owned()),
            (None, false, _) => None,
        };
        let probed = !self.targets.is_empty() && refused.is_none();
        let runtime = said.is_some() && unread.is_none();
        let from = [(probed, AllocSource::Probes), (runtime, AllocSource::Runtime)];
        let in_allocators = self
            .targets
            .iter()
            .map(|target| format!("{} ({})", target.allocator.family.as_str(), target.path));
        WatchedProcess {
            slot: self.slot,
            mode: self.mode,
            allocators: in_allocators.chain(said.cloned()).collect(),
            from: from
                .into_iter()
                .filter_map(|(is, from)| is.then_some(from))
                .collect(),
            duty: match self.mode {
                // Go's own profile is of all the time.
                _ if runtime && self.targets.is_empty() => 1.0,
                _ if refused.is_some() => 0.0,
                AllocMode::Duty => self.duty.share(),
                AllocMode::Full => 1.0,
            },
            slowdown: self.slowdown,
            refused: refused.or(unread),
            not_understood: self
                .targets
                .iter()
                .flat_map(|target| target.allocator.not_understood())
                .collect(),
            memory_limit_bytes,
        }
    }
}
