//! Keeps slot → service while slots come and go.

mod decide;
mod slot;
#[cfg(test)]
mod tests;
mod tree;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use self::slot::AttributeStats;
use self::slot::{Decided, Open, hold};
pub use self::tree::{Only, RECORDED};
use super::release::Releases;
use super::{
    AttributedTick, Direction, Lifecycle, Peer, PoolPeer, Service, ServiceInfo, ServiceRule, SlotId, Tick,
    Totals,
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
    /// Those that went before they were decided, and when.
    brief: Vec<(SlotId, Instant)>,
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
            brief: Vec::new(),
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
                // What there was to see of it was seen. Who is charged is decided with the tick, when its parent is, too.
                if self.waiting.remove(slot) {
                    self.brief.push((*slot, now));
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
        for (slot, gone) in std::mem::take(&mut self.brief) {
            self.decide(slot, gone, true);
        }
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
        for ((direction, peer), mut pool) in std::mem::take(&mut totals.pools) {
            let peer = match peer {
                PoolPeer::Slot(slot, address) => match self.known(slot) {
                    Some(service) => {
                        if direction == Direction::Out && address != Peer::Unix {
                            pool.known_as(address);
                        }
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
            // What a process was before its exec is open until its last numbers were read.
            if self.by_pid.get(&open.pid) != Some(slot) {
                return None;
            }
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
