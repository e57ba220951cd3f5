//! What `export` reads: an immutable picture of everything after the last finished tick.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::group::CodeScope;
use super::live::{LiveCode, LiveView};
use super::metric::{Metric, MetricSet};
use super::net::NetGrowth;
use super::oom::OomKill;
use super::openers::Opener;
use super::pools::RecentPools;
use super::profile::{self, ProfileQuery, WindowProfile};
use super::window::{StackValue, Window};
use crate::symbolize::{Owner, Service, ServiceInfo, StackDetail, StackKind, Totals};

/// One code series.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CodeSeries {
    /// What tells it apart besides the code.
    pub scope: CodeScope,
    /// The owning frame; `None` for `(other)`.
    pub owner: Option<Owner>,
    /// Cumulative value in the unit of the signal (nanoseconds, calls, bytes, connections).
    pub value: u64,
}

/// The code series of one service by signal, each list in a stable order.
pub type ServiceCode = BTreeMap<StackKind, Vec<CodeSeries>>;

/// One service.
#[derive(Clone, Debug)]
pub struct ServiceSnapshot {
    /// Its identity.
    pub service: Arc<Service>,
    /// What else is known of it.
    pub info: Arc<ServiceInfo>,
    /// Counted since the agent first saw it; gauges of the last tick.
    pub totals: Arc<Totals>,
    /// Counted in the last tick alone.
    pub last: Arc<Totals>,
    /// Its code series.
    pub code: Arc<ServiceCode>,
    /// Its growth of memory that is still there.
    pub net: Arc<NetGrowth>,
    /// Its pools in the recent past.
    pub recent_pools: Arc<RecentPools>,
    /// Its live allocations, where they are watched all the time.
    pub live: Arc<LiveView>,
    /// The code that opened those descriptors which stay open, as far as it was sampled.
    pub openers: Arc<Vec<Opener>>,
    /// Metrics that the series budget has room for.
    pub admitted: MetricSet,
}

/// How often a bound of the aggregation was met; all counters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// Series left out by the budget, by metric, summed over the windows in which they were left out.
    pub series_capped: BTreeMap<Metric, u64>,
    /// Services forgotten after their idle time.
    pub services_expired: u64,
    /// Reports of services merged into `(other)` because there were too many, one a tick and service.
    pub services_merged: u64,
    /// Stacks of windows that were given up for memory.
    pub window_entries_dropped: u64,
    /// Samples that found no exact total to be part of.
    pub samples_unmatched: u64,
}

/// Everything that is exported. Cheap to clone parts of, never changed.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Unix time of the end of the last window in nanoseconds, 0 before the first.
    pub at_unix_ns: u64,
    /// Length of the last window in nanoseconds.
    pub length_ns: u64,
    /// Finished windows since the agent started.
    pub ticks: u64,
    /// In the order of their identities.
    pub services: Vec<ServiceSnapshot>,
    /// Service series admitted by the budget.
    pub series: usize,
    /// The budget.
    pub series_limit: usize,
    /// What did not fit somewhere.
    pub bounds: Bounds,
    /// The last processes that were killed for memory, the newest last.
    pub oom_kills: Arc<[OomKill]>,
    pub(super) windows: Vec<Arc<Window>>,
}

impl Snapshot {
    /// The merged profile of a service, `None` before the first window and for services that are not known.
    #[must_use]
    pub fn profile(&self, query: &ProfileQuery<'_>) -> Option<WindowProfile> {
        self.find(query.namespace, query.name).next()?;
        let mut profile = profile::profile(&self.windows, query)?;
        if query.kind == StackKind::AllocLive {
            // A gauge: as it is now, whatever was then.
            profile.samples.clear();
            let of_version =
                |service: &&ServiceSnapshot| query.version.is_none_or(|v| service.service.version == v);
            let services = self.find(query.namespace, query.name).filter(of_version);
            let value = |live: &LiveCode, value| StackValue {
                detail: StackDetail::None,
                stack: Arc::clone(&live.stack),
                value,
            };
            // Whole numbers whose sums are right, too.
            let (mut seen, mut given) = (0.0, 0);
            for live in services.flat_map(|service| &service.live.stacks) {
                profile.samples.push(value(live, live.bytes));
                seen += live.ages.objects;
                let objects = (seen.round() as u64).saturating_sub(given);
                profile.objects.push(value(live, objects));
                given += objects;
            }
        }
        Some(profile)
    }

    /// All versions of a service.
    pub fn find<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
    ) -> impl Iterator<Item = &'a ServiceSnapshot> {
        self.services
            .iter()
            .filter(move |s| s.service.namespace == namespace && s.service.name == name)
    }

    /// Length of the last window in seconds; never 0, so that rates can divide by it.
    #[must_use]
    pub fn length_seconds(&self) -> f64 {
        self.length_ns.max(1) as f64 / 1e9
    }
}
