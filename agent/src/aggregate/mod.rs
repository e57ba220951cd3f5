//! Ticks of services and resolved stacks → cumulative counters, top-K code series and windows of stacks, all
//! published as one immutable [`Snapshot`] a tick.
//!
//! What holds of the numbers:
//! - Counters of a service are sums of exact differences; they never go down. A service that has had no process and
//!   no news for an hour is forgotten, with its series.
//! - `lock` and `idle`: a tick's exact futex time is divided by the shares of its sampled stacks (see `group`). The
//!   sum of both is exact, both only grow; the histogram of durations stays under `lock`.
//! - Samples are scaled to exact totals before anything else sees them (see `ledger`): the code series of a signal,
//!   `(other)` included, add up to its exact total, a few ticks late where waits still last.
//! - The stages before may report a process's time under a service one tick and under another the next; nothing here
//!   moves what was counted.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

mod counters;
#[cfg(test)]
pub(crate) mod fixture;
mod group;
mod ledger;
mod listeners;
mod live;
pub mod metric;
pub mod names;
mod net;
mod oom;
mod openers;
mod pools;
mod profile;
mod ranking;
mod snapshot;
mod state;
mod window;

pub use group::CodeScope;
pub use live::{Leak, LiveAges, LiveCode, LiveView};
pub use metric::Metric;
pub use net::{GrownBytes, NetGrowth};
pub use oom::OomKill;
pub use openers::{OpenFd, Opener};
pub use pools::{RecentPool, RecentPools};
pub use profile::{ProfileQuery, WindowProfile};
pub use snapshot::{Bounds, CodeSeries, ServiceCode, ServiceSnapshot, Snapshot};
pub use window::StackValue;

use state::{Now, ServiceState};
use window::{WindowBuilder, Windows};

/// What later stages need of earlier ones: stages import only their neighbour.
pub use crate::symbolize::{
    AGES, AttributedTick, Cause, ConnEnd, ConnFailure, ConnTotals, Direction, DiskOp, FdForecast, FdKind,
    Frame, Histogram, ListenTotals, MemoryKind, OomVictim, Owner, Peer, PoolPeer, PoolTotals, Service,
    ServiceInfo, SharedStack, Stack, StackDetail, StackKind, Stall, SymbolizedSample, SyscallTotals, Totals,
};

/// Name of the service that stands for those past the bound.
pub const OTHER_SERVICE: &str = "(other)";

/// A service without a process makes room for a new one after this time, if there is no room.
const MAKE_ROOM_AFTER_NS: u64 = 60_000_000_000;

/// Every bound of this stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Code series per service and signal.
    pub top: usize,
    /// Services; what comes later is [`OTHER_SERVICE`].
    pub services: usize,
    /// Peers of connections per service.
    pub peers: usize,
    /// Series of all services together.
    pub series: usize,
    /// How far back profiles reach.
    pub retention: Duration,
    /// Entries of all windows together, a stack of a service each (60 bytes), and a quarter of the frames that all
    /// different stacks together may have (80 bytes): the default bounds windows to some 75 MB.
    pub window_entries: usize,
    /// Bytes that a sample of an allocation stands for.
    pub alloc_period: u32,
    /// For how many ticks the time of waits is held for samples, which come when the waits end.
    pub wait_hold: usize,
    /// After how long without a process and without news a service is forgotten.
    pub service_idle: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            top: 20,
            services: 1000,
            peers: 50,
            series: 50_000,
            retention: Duration::from_secs(15 * 60),
            window_entries: 200_000,
            alloc_period: 512 << 10,
            wait_hold: 6,
            service_idle: Duration::from_secs(3600),
        }
    }
}

/// The state of this stage; the pipeline owns it, and nobody else sees more of it than snapshots.
pub struct Aggregator {
    limits: Limits,
    services: BTreeMap<Arc<Service>, ServiceState>,
    windows: Windows,
    bounds: Bounds,
    other: Arc<Service>,
    ticks: u64,
    /// Sum of the lengths of all ticks: a clock that nobody sets.
    clock_ns: u64,
    sequence: u64,
    oom_kills: Arc<[OomKill]>,
    snapshot: Arc<Snapshot>,
}

impl Aggregator {
    /// Nothing counted yet.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        let other = Service {
            name: OTHER_SERVICE.into(),
            namespace: String::new(),
            version: String::new(),
        };
        Self {
            services: BTreeMap::new(),
            windows: Windows::new(limits.retention, limits.window_entries),
            bounds: Bounds::default(),
            other: Arc::new(other),
            ticks: 0,
            clock_ns: 0,
            sequence: 0,
            oom_kills: Arc::default(),
            snapshot: Arc::new(Snapshot {
                series_limit: limits.series,
                ..Snapshot::default()
            }),
            limits,
        }
    }

    /// Takes everything of one tick and makes the next snapshot. `infos` may name only those services of which
    /// something is new; gauges of services that the tick does not mention are 0.
    pub fn tick(
        &mut self,
        tick: AttributedTick,
        samples: Vec<SymbolizedSample>,
        infos: &[(Arc<Service>, ServiceInfo)],
    ) {
        self.ticks += 1;
        self.clock_ns = self.clock_ns.saturating_add(tick.length_ns);
        let mut totals = self.totals(tick.services);
        let mut samples = self.samples(samples);
        for (service, info) in infos {
            if let Some(state) = self.services.get_mut(service)
                && *state.info != *info
            {
                state.info = Arc::new(info.clone());
            }
        }

        let mut window = WindowBuilder::default();
        for (service, state) in &mut self.services {
            let totals = totals.remove(service).unwrap_or_default();
            let samples = samples.remove(service).unwrap_or_default();
            if totals != Totals::default() || !samples.is_empty() {
                state.last_news_ns = self.clock_ns;
            }
            self.bounds.samples_unmatched += state.tick(
                service,
                totals,
                samples,
                Now {
                    tick: self.ticks,
                    clock_ns: self.clock_ns,
                    length_ns: tick.length_ns,
                },
                &mut window,
            );
        }
        self.windows.finish(window, tick.at_unix_ns, tick.length_ns);
        self.expire();
        self.publish(tick.at_unix_ns, tick.length_ns);
    }

    /// Takes the descriptors that are open now, of those whose opening was sampled; to be called before [`Self::tick`].
    pub fn open_fds(&mut self, open: Vec<OpenFd>) {
        let mut found = openers::by_service(open, self.limits.top);
        for (service, state) in &mut self.services {
            let now = found.remove(service).unwrap_or_default();
            if *state.openers != now {
                state.openers = Arc::new(now);
            }
        }
    }

    /// The picture after the last tick.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshot)
    }

    fn totals(&mut self, services: Vec<(Arc<Service>, Totals)>) -> BTreeMap<Arc<Service>, Totals> {
        let mut totals: BTreeMap<Arc<Service>, Totals> = BTreeMap::new();
        for (service, more) in services {
            let admitted = self.admit(&service);
            if *admitted == *self.other && *service != *admitted {
                self.bounds.services_merged += 1;
            }
            counters::join(totals.entry(admitted).or_default(), &more);
        }
        totals
    }

    /// Samples by service, equal stacks made one allocation. The map by address spares hashing a stack again that
    /// the symbolizer already shares; the samples keep the addresses valid meanwhile.
    fn samples(&mut self, samples: Vec<SymbolizedSample>) -> HashMap<Arc<Service>, Vec<SymbolizedSample>> {
        let mut shared: HashMap<usize, (SharedStack, SharedStack)> = HashMap::new();
        let mut by_service: HashMap<Arc<Service>, Vec<SymbolizedSample>> = HashMap::new();
        for mut sample in samples {
            let service = self.admit(&sample.service);
            let (_, interned) = shared
                .entry(Arc::as_ptr(&sample.stack) as usize)
                .or_insert_with(|| (Arc::clone(&sample.stack), self.windows.intern(&sample.stack)));
            sample.stack = Arc::clone(interned);
            by_service.entry(service).or_default().push(sample);
        }
        by_service
    }

    /// The service itself, known from now on, or [`OTHER_SERVICE`] when there are too many.
    fn admit(&mut self, service: &Arc<Service>) -> Arc<Service> {
        if let Some((known, _)) = self.services.get_key_value(service) {
            return Arc::clone(known);
        }
        let mut service = Arc::clone(service);
        if self.services.len() >= self.limits.services && *service != *self.other && !self.make_room() {
            service = Arc::clone(&self.other);
        }
        let now = self.clock_ns;
        let limits = &self.limits;
        self.services.entry(Arc::clone(&service)).or_insert_with(|| {
            self.sequence += 1;
            ServiceState::new(self.sequence, now, limits)
        });
        service
    }

    /// Forgets the service that has been quiet for longest, if any may go.
    fn make_room(&mut self) -> bool {
        let quietest = self
            .services
            .iter()
            .filter(|(_, state)| state.totals.processes == 0)
            .min_by_key(|(_, state)| (state.last_news_ns, state.sequence))
            .filter(|(_, state)| self.clock_ns.saturating_sub(state.last_news_ns) >= MAKE_ROOM_AFTER_NS)
            .map(|(service, _)| Arc::clone(service));
        let Some(service) = quietest else { return false };
        self.services.remove(&service);
        self.bounds.services_expired += 1;
        true
    }

    fn expire(&mut self) {
        let before = self.services.len();
        let idle_ns = u64::try_from(self.limits.service_idle.as_nanos()).unwrap_or(u64::MAX);
        let now = self.clock_ns;
        self.services.retain(|_, state| {
            state.totals.processes > 0 || now.saturating_sub(state.last_news_ns) < idle_ns
        });
        self.bounds.services_expired += (before - self.services.len()) as u64;
    }

    fn publish(&mut self, at_unix_ns: u64, length_ns: u64) {
        let mut services: Vec<ServiceSnapshot> = self
            .services
            .iter()
            .map(|(service, state)| state.snapshot(service))
            .collect();
        let sequence: Vec<u64> = self.services.values().map(|state| state.sequence).collect();
        let mut order: Vec<usize> = (0..services.len()).collect();
        order.sort_by_key(|&at| sequence[at]);
        let (series, capped) = metric::admit(&mut services, &order, self.limits.series);
        for (metric, left_out) in capped {
            *self.bounds.series_capped.entry(metric).or_default() += left_out as u64;
        }
        self.bounds.window_entries_dropped = self.windows.dropped;
        self.snapshot = Arc::new(Snapshot {
            at_unix_ns,
            length_ns,
            ticks: self.ticks,
            services,
            series,
            series_limit: self.limits.series,
            bounds: self.bounds.clone(),
            oom_kills: Arc::clone(&self.oom_kills),
            windows: self.windows.list(),
        });
    }
}

#[cfg(test)]
mod tests;
