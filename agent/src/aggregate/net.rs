//! Anonymous memory that code grew and that is still there: a picture of the moment, made anew with each tick.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use super::{Aggregator, ProfileQuery, Snapshot, StackValue, WindowProfile};
use crate::symbolize::{Owner, Service, SharedStack, StackDetail, StackKind};

/// Times of growth are told apart by this.
const SECOND: u64 = 1_000_000_000;

/// A part of the growth that is still there.
#[derive(Clone, Debug)]
pub struct GrownBytes {
    /// Whose.
    pub service: Arc<Service>,
    /// The code that touched it first.
    pub stack: SharedStack,
    /// How much.
    pub bytes: f64,
    /// Unix time in nanoseconds at which it came.
    pub at_unix_ns: u64,
}

/// What is there of one service's growth.
#[derive(Clone, Debug, Default)]
pub struct NetGrowth {
    /// By code, the most first: as many as have series.
    pub code: Vec<(Owner, u64)>,
    /// Of all other code.
    pub other: u64,
    /// By stack, and by the second in which it came.
    stacks: Vec<(SharedStack, u64, u64)>,
}

impl NetGrowth {
    fn new(stacks: HashMap<(SharedStack, u64), f64>, top: usize) -> Self {
        let stacks: Vec<(SharedStack, u64, u64)> = stacks
            .into_iter()
            .map(|((stack, second), bytes)| (stack, second, bytes.round() as u64))
            .collect();
        let mut by_owner: BTreeMap<&Owner, u64> = BTreeMap::new();
        for (stack, _, bytes) in &stacks {
            *by_owner.entry(&stack.owner).or_default() += bytes;
        }
        let mut code: Vec<(Owner, u64)> = by_owner
            .into_iter()
            .map(|(owner, bytes)| (owner.clone(), bytes))
            .collect();
        // By name where equal: the map is in the order of names, and the sort is stable.
        code.sort_by_key(|(_, bytes)| Reverse(*bytes));
        let other = code.iter().skip(top).map(|(_, bytes)| bytes).sum();
        code.truncate(top);
        Self { code, other, stacks }
    }

    /// How many series it has.
    #[must_use]
    pub fn series(&self) -> usize {
        self.code.len() + usize::from(self.other > 0)
    }
}

impl Aggregator {
    /// What is there now; the next tick's snapshot shows it.
    pub fn set_net_growth(&mut self, all: Vec<GrownBytes>) {
        let mut by_service: HashMap<Arc<Service>, HashMap<(SharedStack, u64), f64>> = HashMap::new();
        for grown in all {
            let stacks = by_service.entry(self.admit(&grown.service)).or_default();
            let second = grown.at_unix_ns / SECOND;
            *stacks.entry((grown.stack, second)).or_default() += grown.bytes;
        }
        for (service, state) in &mut self.services {
            let stacks = by_service.remove(service).unwrap_or_default();
            state.net = Arc::new(NetGrowth::new(stacks, self.limits.top));
        }
    }
}

impl Snapshot {
    /// The growth of a service that is still there, by stack: all of it, or what came in the last `since`, to the second; `None`
    /// for services that are not known.
    #[must_use]
    pub fn net_profile(&self, query: &ProfileQuery<'_>, since: Option<Duration>) -> Option<WindowProfile> {
        self.find(query.namespace, query.name).next()?;
        let versions = self
            .find(query.namespace, query.name)
            .filter(|s| query.version.is_none_or(|version| s.service.version == version));
        let duration_ns = since.map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX));
        let start_unix_ns = self.at_unix_ns.saturating_sub(duration_ns);
        let first = since.map_or(0, |_| start_unix_ns.div_ceil(SECOND));
        let mut by_stack: HashMap<&SharedStack, u64> = HashMap::new();
        for (stack, second, bytes) in versions.flat_map(|service| &service.net.stacks) {
            if *second >= first {
                *by_stack.entry(stack).or_default() += bytes;
            }
        }
        let mut samples: Vec<StackValue> = by_stack
            .into_iter()
            .map(|(stack, value)| StackValue {
                detail: StackDetail::None,
                stack: Arc::clone(stack),
                value,
            })
            .collect();
        samples.sort_by(|a, b| (Reverse(a.value), &a.stack.owner).cmp(&(Reverse(b.value), &b.stack.owner)));
        Some(WindowProfile {
            name: query.name.to_owned(),
            namespace: query.namespace.to_owned(),
            kind: StackKind::Memory,
            start_unix_ns,
            duration_ns,
            samples,
            objects: Vec::new(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{AttributedTick, Totals, fixture};
    use super::*;

    #[test]
    fn what_came_in_a_window_is_told_to_the_second() {
        const AT: u64 = 1_700_000_000;
        let shop = fixture::service("shop");
        let mut aggregator = Aggregator::new(fixture::limits());
        let tick = || AttributedTick {
            at_unix_ns: AT * SECOND,
            length_ns: SECOND,
            services: vec![(
                Arc::clone(&shop),
                Totals {
                    processes: 1,
                    ..Totals::default()
                },
            )],
        };
        aggregator.tick(tick(), Vec::new(), &[]);
        let grown = |bytes, seconds: u64| GrownBytes {
            service: Arc::clone(&shop),
            stack: fixture::stack("shop::grow", false),
            bytes,
            at_unix_ns: (AT - seconds) * SECOND,
        };
        let all = [(1.0, 2), (10.0, 30), (100.0, 31), (1000.0, 600)];
        aggregator.set_net_growth(all.map(|(bytes, seconds)| grown(bytes, seconds)).into());
        aggregator.tick(tick(), Vec::new(), &[]);
        let query = ProfileQuery {
            namespace: &shop.namespace,
            name: &shop.name,
            version: None,
            kind: StackKind::Memory,
            since: Duration::ZERO,
            idle: false,
        };
        let snapshot = aggregator.snapshot();
        for (seconds, expected) in [(Some(1), 0), (Some(30), 11), (Some(31), 111), (None, 1111)] {
            let since = seconds.map(Duration::from_secs);
            let profile = snapshot.net_profile(&query, since).unwrap();
            let told: u64 = profile.samples.iter().map(|sample| sample.value).sum();
            assert_eq!(told, expected, "{since:?}");
        }
    }
}
