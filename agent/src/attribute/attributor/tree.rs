//! One process and what it starts, as a service of their own whatever they are.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Attributor;
use super::slot::Decided;
use crate::attribute::{Service, ServiceInfo, SlotId};

/// Namespace of such a service: no real one has it, so that nothing else counts as part of it.
pub const RECORDED: &str = "(recorded)";

/// The one thing that is looked at.
#[derive(Clone, Debug)]
pub struct Only {
    /// The process that everything else comes from; `None` where it is a service as it is, or once the process has ended.
    pub pid: Option<u32>,
    /// The process counts from the program on that it will become: what it is now is no part of it.
    pub to_come: bool,
    /// `service_namespace`, [`RECORDED`] where it is a process.
    pub namespace: String,
    /// `service_name`.
    pub name: String,
}

impl Attributor {
    /// From now on, only this counts; its process (if it is not known yet) and what it starts are one service.
    pub fn record(&mut self, only: Only) {
        self.only = Some(only);
    }

    /// Whether samples of a slot are of any use, as far as is known.
    #[must_use]
    pub fn wants(&self, slot: SlotId) -> bool {
        let Some(only) = &self.only else { return true };
        self.decided(slot).is_none_or(|decided| {
            decided.service.namespace == only.namespace && decided.service.name == only.name
        })
    }

    /// Programs of the tree that began less than `age` ago.
    #[must_use]
    pub fn young(&self, now: Instant, age: Duration) -> Vec<(SlotId, u32)> {
        // Asked twenty times a second, of thousands of programs that begin on a busy host: without a tree it costs nothing.
        if self.only.as_ref().is_none_or(|only| only.namespace != RECORDED) {
            return Vec::new();
        }
        let young = self.open.iter().filter(|(_, open)| {
            let recorded = |decided: &Decided| decided.service.namespace == RECORDED;
            open.service.as_ref().is_some_and(recorded) && now.duration_since(open.since) < age
        });
        young.map(|(slot, open)| (*slot, open.pid)).collect()
    }

    /// Whether a slot is of the tree, and as what: its process is the first one, or its parent is of it.
    pub(super) fn of_tree(&mut self, slot: SlotId) -> Option<Decided> {
        let only = self.only.as_ref().filter(|only| only.namespace == RECORDED)?;
        let open = self.open.get(&slot)?;
        // A program that was found, not begun, has no parent.
        let root = only.pid == Some(open.pid) && (open.parent.is_some() || !only.to_come);
        let parent = open.parent.and_then(|parent| self.decided(parent));
        if !root && parent.is_none_or(|parent| parent.service.namespace != RECORDED) {
            return None;
        }
        let service = Service {
            name: only.name.clone(),
            namespace: RECORDED.to_owned(),
            version: String::new(),
        };
        let pid = open.pid;
        let found = open.found.as_ref();
        let executable = found.map_or_else(String::new, |found| found.identity.info.executable.clone());
        let info = ServiceInfo {
            source: "record".to_owned(),
            executable: executable.clone(),
            pids: BTreeSet::new(),
            ..ServiceInfo::default()
        };
        let entry = self
            .services
            .entry(service.clone())
            .or_insert_with(|| (Arc::new(service), info));
        entry.1.pids.insert(pid);
        Some(Decided {
            service: Arc::clone(&entry.0),
            executable,
            settled: true,
        })
    }

    /// A process ended: another one may get its number.
    pub(super) fn tree_exited(&mut self, slot: SlotId, pid: u32) {
        let recorded = self
            .decided(slot)
            .is_some_and(|decided| decided.service.namespace == RECORDED);
        if let Some(only) = &mut self.only
            && recorded
            && only.pid == Some(pid)
        {
            only.pid = None;
        }
    }
}
