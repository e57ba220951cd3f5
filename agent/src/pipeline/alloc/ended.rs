//! What processes did between the last tick and their end.

use std::collections::HashMap;

use super::go::GoNews;
use super::process::{Costs, Counted, Process};
use super::{WatchedProcess, Watcher};
use crate::attribute::SlotId;
use crate::load::AllocSide;

/// Ended processes of which is said how they were watched.
const MOST: usize = 64;

/// Processes that ended.
#[derive(Default)]
pub(super) struct Ended {
    /// What they have not freed stays in the table of what lives, and it is said how they were watched.
    pub(super) keep: bool,
    /// Allocations that the next tick gets.
    pub(super) counted: HashMap<SlotId, Counted>,
    /// What Go programs said.
    pub(super) go: GoNews,
    /// How those were watched that are kept.
    pub(super) watched: Vec<WatchedProcess>,
}

impl Ended {
    /// A process ended, `cpu` being its CPU time.
    pub(super) fn add(&mut self, process: &mut Process, side: &AllocSide, pid: u32, costs: Costs, cpu: f64) {
        let counted = process.take(side, pid, costs, cpu).unwrap_or_default();
        let sum = self.counted.entry(process.slot).or_default();
        sum.bytes += counted.bytes;
        sum.objects += counted.objects;
        if self.keep && self.watched.len() < MOST {
            self.watched.push(process.status(None));
        }
    }
}

impl Watcher {
    /// Reads the allocators in the libraries of a process ahead of time.
    pub(super) fn warm(&mut self, pid: u32) {
        let program = self.host.program_path(pid).unwrap_or_default();
        for file in self.host.mapped_files(pid).unwrap_or_default() {
            if program.as_os_str() != file.path.as_str()
                && let Ok(Some(target)) = self.find(pid, &file)
            {
                self.free.push(target.index);
            }
        }
    }
}
