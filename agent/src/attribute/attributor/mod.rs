//! Keeps slot → service while slots come and go.

mod slot;
#[cfg(test)]
mod tests;
mod tree;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use self::slot::AttributeStats;
use self::slot::{Decided, Found, Open, hold};
pub use self::tree::{Only, RECORDED};
use super::identify::bounded;
use super::release::Releases;
use super::{
    AttributedTick, Identity, Lifecycle, Peer, PoolPeer, Service, ServiceInfo, ServiceRule, SlotId, Tick,
    Totals, identify,
};
use crate::host::Host;

/// Closed slots that are remembered: for their children and for late samples.
const TOMBSTONES: usize = 16_384;

/// Slot → service.
pub struct Attributor {
    host: Host,
    min_age: Duration,
    limit: usize,
    rules: Vec<ServiceRule>,
    only: Option<Only>,
    releases: Releases,
    open: BTreeMap<SlotId, Open>,
    /// Those that are not decided and not gone.
    waiting: BTreeSet<SlotId>,
    /// Newest open slot of each process.
    by_pid: HashMap<u32, SlotId>,
    tombs: HashMap<SlotId, Decided>,
    order: VecDeque<SlotId>,
    services: HashMap<Service, (Arc<Service>, ServiceInfo)>,
    released: Vec<(Arc<Service>, Box<Totals>)>,
    /// Whether a slot was finished since room for services was made.
    finished: bool,
    stats: AttributeStats,
}

impl Attributor {
    /// `min_age`: how long a process must live until its program's name alone makes it a service of its own; `limit`:
    /// services at most; `rules` name services before anything else does.
    #[must_use]
    pub fn new(host: Host, min_age: Duration, limit: usize, rules: Vec<ServiceRule>) -> Self {
        Self {
            host,
            min_age,
            limit,
            rules,
            only: None,
            releases: Releases::default(),
            open: BTreeMap::new(),
            by_pid: HashMap::new(),
            tombs: HashMap::new(),
            order: VecDeque::new(),
            services: HashMap::new(),
            released: Vec::new(),
            waiting: BTreeSet::new(),
            finished: false,
            stats: AttributeStats::default(),
        }
    }

    /// Takes an event; events come in their order.
    pub fn apply(&mut self, event: &Lifecycle, now: Instant) {
        match event {
            Lifecycle::Opened {
                slot, pid, parent, ..
            } => {
                let found = self.look(*pid);
                let open = Open {
                    pid: *pid,
                    parent: *parent,
                    since: now,
                    gone: None,
                    found,
                    service: None,
                    held: None,
                };
                self.open.insert(*slot, open);
                self.by_pid.insert(*pid, *slot);
                self.waiting.insert(*slot);
                self.decide(*slot, now, false);
            }
            Lifecycle::Closed { slot } => {
                // What there was to see of it was seen. Who is charged is decided at the end, when its parent is, too.
                self.waiting.remove(slot);
                if let Some(open) = self.open.get_mut(slot) {
                    open.gone = Some(now);
                }
            }
            Lifecycle::Exited { slot, pid } => {
                self.tree_exited(*slot, *pid);
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
        self.waiting.remove(&slot);
        let Some(open) = self.open.remove(&slot) else {
            return;
        };
        let newest = self.by_pid.get(&open.pid).copied();
        if newest == Some(slot) {
            self.by_pid.remove(&open.pid);
        }
        self.finished = true;
        let Some(decided) = open.service else { return };
        // A program that became another one (exec) ends a slot, but its process may still be of the same service.
        let stays = newest
            .filter(|newest| *newest != slot)
            .and_then(|newest| self.decided(newest))
            .is_some_and(|now| now.service == decided.service);
        if !stays && let Some((_, info)) = self.services.get_mut(&*decided.service) {
            info.pids.remove(&open.pid);
        }
        self.tombs.insert(slot, decided);
        self.order.push_back(slot);
        if self.order.len() > TOMBSTONES
            && let Some(oldest) = self.order.pop_front()
        {
            self.tombs.remove(&oldest);
        }
    }

    /// Decides the slots that have become old enough.
    pub fn settle(&mut self, now: Instant) {
        let waiting: Vec<SlotId> = self.waiting.iter().copied().collect();
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
        if let Some(decided) = self.of_tree(slot) {
            if let Some(open) = self.open.get_mut(&slot) {
                open.service = Some(decided);
            }
            return;
        }
        let Some(open) = self.open.get_mut(&slot) else {
            return;
        };
        // Found when the agent started: as old as it gets.
        let age = open.gone.unwrap_or(now).saturating_duration_since(open.since);
        let old = open.parent.is_none() || age >= self.min_age;
        if old
            && !last
            && open.parent.is_some()
            && open.found.as_ref().is_none_or(|found| !found.identity.explicit)
        {
            // Programs set titles and change their cgroup right after they start: what counts is what they are now.
            let pid = open.pid;
            let now = self.look(pid);
            let Some(open) = self.open.get_mut(&slot) else {
                return;
            };
            open.found = now.or(open.found.take());
        }
        let Some(open) = self.open.get(&slot) else { return };
        let ready = open
            .found
            .as_ref()
            .is_some_and(|found| found.identity.explicit || old);
        let (pid, parent) = (open.pid, open.parent);
        let service = if ready {
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
        };
        if let (Some(decided), Some(open)) = (service, self.open.get_mut(&slot)) {
            if let Some(held) = open.held.take() {
                self.released.push((Arc::clone(&decided.service), held));
            }
            open.service = Some(decided);
            self.waiting.remove(&slot);
        }
    }

    fn look(&self, pid: u32) -> Option<Found> {
        let facts = self.host.process(pid).ok()?;
        Some(Found {
            identity: identify(&facts, &self.rules),
            parent: facts.parent,
        })
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

    fn decided(&self, slot: SlotId) -> Option<&Decided> {
        let open = self.open.get(&slot).and_then(|open| open.service.as_ref());
        open.or_else(|| self.tombs.get(&slot))
    }

    fn known(&mut self, slot: SlotId) -> Option<Arc<Service>> {
        if slot == SlotId::KERNEL {
            return Some(self.special("(kernel)"));
        }
        self.decided(slot).map(|decided| Arc::clone(&decided.service))
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
        for (slot, mut totals) in tick.slots {
            self.name_peers(&mut totals);
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

    /// Peers that are programs on this host become services.
    fn name_peers(&mut self, totals: &mut Totals) {
        for ((direction, peer), pool) in std::mem::take(&mut totals.pools) {
            let peer = match peer {
                PoolPeer::Slot(slot, address) => match self.known(slot) {
                    Some(service) => {
                        let name = match service.namespace.as_str() {
                            "" => service.name.clone(),
                            namespace => format!("{namespace}/{}", service.name),
                        };
                        match address {
                            Peer::Unix => PoolPeer::Unix(format!("unix:{name}").into()),
                            _ => PoolPeer::Service(name.into()),
                        }
                    }
                    None => PoolPeer::Address(address),
                },
                named => named,
            };
            totals.pools.entry((direction, peer)).or_default().merge(&pool);
        }
    }

    /// Open slots of services that are wanted, each with the process that began it.
    pub fn processes<'a, T>(
        &'a self,
        wanted: impl Fn(&Service) -> Option<T> + 'a,
    ) -> impl Iterator<Item = (SlotId, u32, T)> + 'a {
        self.open.iter().filter_map(move |(slot, open)| {
            let service = &open.service.as_ref()?.service;
            Some((*slot, open.pid, wanted(service)?))
        })
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
