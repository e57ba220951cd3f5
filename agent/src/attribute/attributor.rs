//! Keeps slot → service while slots come and go.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{AttributedTick, Identity, Lifecycle, Service, ServiceInfo, SlotId, Tick, Totals, identify};
use crate::host::Host;

/// Closed slots that are remembered: for their children and for late samples.
const TOMBSTONES: usize = 16_384;

/// Ways in which attribution failed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AttributeStats {
    /// Ended before anything could be read; charged to the parent's service.
    pub vanished: u64,
    /// Past the bound on services; charged to `(other)`.
    pub capped: u64,
}

struct Open {
    pid: u32,
    parent: Option<SlotId>,
    since: Instant,
    /// What `/proc` said, not final while a program has only its file's name and is younger than the minimum age.
    found: Option<Identity>,
    service: Option<Arc<Service>>,
    /// Totals that wait for the decision.
    held: Totals,
}

/// Slot → service.
pub struct Attributor {
    host: Host,
    min_age: Duration,
    limit: usize,
    open: BTreeMap<SlotId, Open>,
    tombs: HashMap<SlotId, Arc<Service>>,
    order: VecDeque<SlotId>,
    services: HashMap<Service, (Arc<Service>, ServiceInfo)>,
    released: Vec<(Arc<Service>, Totals)>,
    stats: AttributeStats,
}

impl Attributor {
    /// `min_age`: how long a process must live until its program's name alone makes it a service of its own; `limit`:
    /// services at most.
    #[must_use]
    pub fn new(host: Host, min_age: Duration, limit: usize) -> Self {
        Self {
            host,
            min_age,
            limit,
            open: BTreeMap::new(),
            tombs: HashMap::new(),
            order: VecDeque::new(),
            services: HashMap::new(),
            released: Vec::new(),
            stats: AttributeStats::default(),
        }
    }

    /// Takes an event; events come in their order.
    pub fn apply(&mut self, event: &Lifecycle, now: Instant) {
        match event {
            Lifecycle::Opened {
                slot, pid, parent, ..
            } => {
                let found = self.host.process(*pid).ok().map(|facts| identify(&facts));
                let open = Open {
                    pid: *pid,
                    parent: *parent,
                    since: now,
                    found,
                    service: None,
                    held: Totals::default(),
                };
                self.open.insert(*slot, open);
                self.decide(*slot, now, false);
            }
            Lifecycle::Closed { .. } => {}
            Lifecycle::Exited { slot, pid } => {
                if let Some(service) = self.known(*slot)
                    && let Some((_, info)) = self.services.get_mut(&*service)
                {
                    info.pids.remove(pid);
                }
            }
        }
    }

    /// Forgets a slot whose last totals were attributed.
    pub fn finish(&mut self, slot: SlotId, now: Instant) {
        self.decide(slot, now, true);
        let Some(open) = self.open.remove(&slot) else {
            return;
        };
        let Some(service) = open.service else { return };
        if let Some((_, info)) = self.services.get_mut(&*service) {
            info.pids.remove(&open.pid);
        }
        self.tombs.insert(slot, service);
        self.order.push_back(slot);
        if self.order.len() > TOMBSTONES
            && let Some(oldest) = self.order.pop_front()
        {
            self.tombs.remove(&oldest);
        }
    }

    /// Decides the slots that have become old enough.
    pub fn settle(&mut self, now: Instant) {
        let waiting: Vec<SlotId> = self
            .open
            .iter()
            .filter(|(_, open)| open.service.is_none())
            .map(|(slot, _)| *slot)
            .collect();
        for slot in waiting {
            self.decide(slot, now, false);
        }
    }

    fn decide(&mut self, slot: SlotId, now: Instant, last: bool) {
        let Some(open) = self.open.get_mut(&slot) else {
            return;
        };
        if open.service.is_some() {
            return;
        }
        // Found when the agent started: as old as it gets.
        let old = open.parent.is_none() || now.duration_since(open.since) >= self.min_age;
        if old && !last && open.parent.is_some() && open.found.as_ref().is_none_or(|found| !found.explicit) {
            // Programs set titles and change their cgroup right after they start: what counts is what they are now.
            open.found = self
                .host
                .process(open.pid)
                .ok()
                .map(|facts| identify(&facts))
                .or(open.found.take());
        }
        let ready = open.found.as_ref().is_some_and(|found| found.explicit || old);
        let (pid, parent) = (open.pid, open.parent);
        let service = if ready {
            let found = open.found.clone();
            found.map(|found| self.intern(found, pid))
        } else if last || old {
            self.stats.vanished += 1;
            Some(self.parent_service(parent))
        } else {
            None
        };
        if let (Some(service), Some(open)) = (service, self.open.get_mut(&slot)) {
            let held = std::mem::take(&mut open.held);
            open.service = Some(Arc::clone(&service));
            self.released.push((service, held));
        }
    }

    fn parent_service(&mut self, parent: Option<SlotId>) -> Arc<Service> {
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

    fn special(&mut self, name: &str) -> Arc<Service> {
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

    fn intern(&mut self, identity: Identity, pid: u32) -> Arc<Service> {
        if !self.services.contains_key(&identity.service) && self.services.len() >= self.limit {
            self.stats.capped += 1;
            return self.special("(other)");
        }
        let service = identity.service.clone();
        let entry = self
            .services
            .entry(service.clone())
            .or_insert_with(|| (Arc::new(service), ServiceInfo::default()));
        let pids = std::mem::take(&mut entry.1.pids);
        entry.1 = ServiceInfo {
            pids,
            ..identity.info
        };
        entry.1.pids.insert(pid);
        Arc::clone(&entry.0)
    }

    fn known(&mut self, slot: SlotId) -> Option<Arc<Service>> {
        if slot == SlotId::KERNEL {
            return Some(self.special("(kernel)"));
        }
        self.open
            .get(&slot)
            .and_then(|open| open.service.clone())
            .or_else(|| self.tombs.get(&slot).cloned())
    }

    /// Service of a slot now: of one that is not decided, its parent's.
    pub fn service_of(&mut self, slot: SlotId) -> Arc<Service> {
        if let Some(service) = self.known(slot) {
            return service;
        }
        let explicit = self.open.get(&slot).and_then(|open| open.parent);
        self.parent_service(explicit)
    }

    /// Sums a tick to services. Totals of slots that are not decided yet are held back, gauges excepted.
    pub fn attribute(&mut self, tick: Tick) -> AttributedTick {
        let mut sums: BTreeMap<Arc<Service>, Totals> = BTreeMap::new();
        for (slot, totals) in tick.slots {
            match self.known(slot) {
                Some(service) => sums.entry(service).or_default().merge(&totals),
                None => {
                    if let Some(open) = self.open.get_mut(&slot) {
                        hold(&mut open.held, &totals);
                    }
                }
            }
        }
        for (service, held) in std::mem::take(&mut self.released) {
            sums.entry(service).or_default().merge(&held);
        }
        AttributedTick {
            at_unix_ns: tick.at_unix_ns,
            length_ns: tick.length_ns,
            services: sums.into_iter().collect(),
        }
    }

    /// What is known of every service.
    #[must_use]
    pub fn infos(&self) -> Vec<(Arc<Service>, ServiceInfo)> {
        self.services.values().cloned().collect()
    }

    /// Failures so far.
    #[must_use]
    pub fn stats(&self) -> &AttributeStats {
        &self.stats
    }
}

/// Keeps counters; gauges belong to one tick only.
fn hold(held: &mut Totals, totals: &Totals) {
    let mut counters = totals.clone();
    counters.resident_bytes = Default::default();
    counters.fds = Default::default();
    counters.fd_limit = 0;
    counters.processes = 0;
    counters.threads = 0;
    for conn in counters.conns.values_mut() {
        conn.open = 0;
    }
    held.merge(&counters);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(slot: u32, pid: u32, parent: Option<u32>) -> Lifecycle {
        Lifecycle::Opened {
            slot: SlotId(slot),
            pid,
            parent: parent.map(SlotId),
            comm: "x".into(),
        }
    }

    fn tick(slots: &[(u32, u64)]) -> Tick {
        let totals = |faults| Totals {
            faults_minor: faults,
            ..Totals::default()
        };
        Tick {
            slots: slots
                .iter()
                .map(|(slot, n)| (SlotId(*slot), totals(*n)))
                .collect(),
            ..Tick::default()
        }
    }

    fn faults(attributed: &AttributedTick, name: &str) -> u64 {
        attributed
            .services
            .iter()
            .filter(|(service, _)| service.name == name)
            .map(|(_, t)| t.faults_minor)
            .sum()
    }

    /// Nothing is lost or counted twice while a slot is undecided, and a short life is its parent's.
    #[test]
    fn short_lives_are_charged_to_the_parent() {
        let start = Instant::now();
        let mut attributor = Attributor::new(Host::new("/"), Duration::from_secs(1), 10);
        attributor.apply(&opened(2, std::process::id(), None), start);
        let own = attributor.service_of(SlotId(2)).name.clone();
        attributor.apply(&opened(3, u32::MAX, Some(2)), start);
        let first = attributor.attribute(tick(&[(2, 5), (3, 7)]));
        assert_eq!(faults(&first, &own), 5);
        attributor.finish(SlotId(3), start);
        let second = attributor.attribute(tick(&[(2, 1)]));
        assert_eq!(faults(&second, &own), 8);
        assert_eq!(attributor.stats().vanished, 1);
        assert_eq!(attributor.service_of(SlotId(3)).name, own);
    }

    #[test]
    fn services_are_bounded() {
        let start = Instant::now();
        let mut attributor = Attributor::new(Host::new("/"), Duration::ZERO, 0);
        attributor.apply(&opened(2, std::process::id(), None), start);
        assert_eq!(attributor.service_of(SlotId(2)).name, "(other)");
        assert_eq!(attributor.stats().capped, 1);
        assert_eq!(attributor.service_of(SlotId::KERNEL).name, "(kernel)");
        assert_eq!(attributor.service_of(SlotId(99)).name, "(unknown)");
    }
}
