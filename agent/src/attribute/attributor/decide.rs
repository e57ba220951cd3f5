//! Whose a slot is: what its process is, or its parent's where it lived too briefly.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use super::super::identify::bounded;
use super::super::{Identity, Service, ServiceInfo, SlotId, identify};
use super::Attributor;
use super::slot::{Decided, Found};

impl Attributor {
    /// Decides the slots that have become old enough.
    pub fn settle(&mut self, now: Instant) {
        let waiting: Vec<SlotId> = self.waiting.iter().copied().collect();
        for slot in waiting {
            self.decide(slot, now, false);
        }
    }

    /// Decides whose a slot is, as far as that can be said; `last`: now or never.
    pub(super) fn decide(&mut self, slot: SlotId, now: Instant, last: bool) {
        if self.open.get(&slot).is_none_or(|open| open.service.is_some()) {
            return;
        }
        let decided = self.of_tree(slot).or_else(|| self.of_itself(slot, now, last));
        if let (Some(decided), Some(open)) = (decided, self.open.get_mut(&slot)) {
            if let Some(held) = open.held.take() {
                self.released.push((Arc::clone(&decided.service), held));
            }
            open.service = Some(decided);
            self.waiting.remove(&slot);
        }
    }

    /// Whose it is by what it is, or, where it had no time to be something, by its parent.
    fn of_itself(&mut self, slot: SlotId, now: Instant, last: bool) -> Option<Decided> {
        let open = self.open.get_mut(&slot)?;
        // Found when the agent started: as old as it gets.
        let age = now.saturating_duration_since(open.since);
        let old = open.parent.is_none() || age >= self.min_age;
        if old
            && !last
            && open.parent.is_some()
            && open.found.as_ref().is_none_or(|found| !found.identity.explicit)
        {
            // Programs set titles and change their cgroup right after they start: what counts is what they are now.
            let pid = open.pid;
            let now = self.look(pid);
            let open = self.open.get_mut(&slot)?;
            open.found = now.or(open.found.take());
        }
        let open = self.open.get(&slot)?;
        let ready = open
            .found
            .as_ref()
            .is_some_and(|found| found.identity.explicit || old);
        let (pid, parent) = (open.pid, open.parent);
        if ready {
            let found = open.found.clone();
            found.map(|found| self.intern(found, pid, parent))
        } else if last || old {
            self.stats.vanished += 1;
            let service = self.parent_service(parent);
            Some(Decided {
                service,
                executable: String::new(),
                settled: true,
            })
        } else {
            None
        }
    }

    pub(super) fn look(&self, pid: u32) -> Option<Found> {
        let facts = self.host.process(pid).ok()?;
        Some(Found {
            identity: identify(&facts, &self.rules),
            parent: facts.parent,
        })
    }

    pub(super) fn parent_service(&mut self, parent: Option<SlotId>) -> Arc<Service> {
        let mut at = parent;
        for _ in 0..64 {
            let Some(slot) = at else { break };
            if let Some(service) = self.known(slot) {
                return service;
            }
            at = self.open.get(&slot).and_then(|open| open.parent);
        }
        self.special("(unknown)")
    }

    pub(super) fn special(&mut self, name: &str) -> Arc<Service> {
        let service = Service {
            name: name.to_owned(),
            namespace: String::new(),
            version: String::new(),
        };
        let info = ServiceInfo {
            source: "kernel".to_owned(),
            ..ServiceInfo::default()
        };
        let entry = self
            .services
            .entry(service.clone())
            .or_insert_with(|| (Arc::new(service), info));
        Arc::clone(&entry.0)
    }

    fn intern(&mut self, found: Found, pid: u32, parent: Option<SlotId>) -> Decided {
        let Identity {
            mut service, info, ..
        } = found.identity;
        let executable = info.executable.clone();
        let parent = parent
            .or_else(|| self.by_pid.get(&found.parent).copied())
            .and_then(|slot| self.decided(slot));
        // A helper (another program that the service starts) is of the service's release, not of its own.
        let heir = parent.cloned().filter(|parent| {
            parent.settled
                && parent.executable != info.executable
                && (&parent.service.name, &parent.service.namespace) == (&service.name, &service.namespace)
        });
        let origin = self.releases.origin(&self.host, pid, &info.executable);
        self.stats.malformed = self.releases.malformed();
        let mut settled = true;
        if service.version.is_empty() {
            match (&heir, origin.release) {
                (Some(parent), _) => service.version.clone_from(&parent.service.version),
                (None, Some(release)) => service.version = bounded(&release),
                (None, None) => settled = false,
            }
        }
        if !self.services.contains_key(&service) && !self.has_room() {
            self.stats.capped += 1;
            return Decided {
                service: self.special("(other)"),
                executable,
                settled,
            };
        }
        let entry = self
            .services
            .entry(service.clone())
            .or_insert_with(|| (Arc::new(service), ServiceInfo::default()));
        let known = &mut entry.1;
        if heir.is_none() || known.source.is_empty() {
            let pids = std::mem::take(&mut known.pids);
            *known = ServiceInfo {
                pids,
                runtime: origin.runtime.to_owned(),
                ..info
            };
        }
        known.pids.insert(pid);
        Decided {
            service: Arc::clone(&entry.0),
            executable,
            settled,
        }
    }

    /// Whether one more service fits, once those without a process are forgotten: releases come and go.
    fn has_room(&mut self) -> bool {
        if self.services.len() >= self.limit && std::mem::take(&mut self.finished) {
            let live: HashSet<&Service> = self
                .open
                .values()
                .filter_map(|open| open.service.as_ref())
                .map(|decided| &*decided.service)
                .collect();
            self.services.retain(|service, _| live.contains(service));
        }
        self.services.len() < self.limit
    }
}
