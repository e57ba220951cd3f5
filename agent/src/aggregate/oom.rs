//! Processes that the kernel killed for memory, with the code that had grown their service's memory until then.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::{Aggregator, ProfileQuery};
use crate::symbolize::{OomVictim, Owner, Service, StackKind};

/// Kills that are kept.
const KEPT: usize = 100;
/// How far back growth is looked at.
const RECENT: Duration = Duration::from_secs(300);
/// Functions that are named.
const TOP: usize = 5;

/// A process was killed for memory.
#[derive(Clone, Debug)]
pub struct OomKill {
    /// Whose process it was.
    pub service: Arc<Service>,
    /// The process.
    pub victim: OomVictim,
    /// Code that grew anonymous memory of the service before, in bytes (scaled from samples), the most first.
    pub growth: Vec<(Owner, u64)>,
    /// How far back `growth` reaches: as far as there are windows, and five minutes at most.
    pub growth_ns: u64,
}

impl Aggregator {
    /// Takes a kill that came during the last tick.
    pub fn oom_kill(&mut self, service: Arc<Service>, victim: OomVictim) -> OomKill {
        let recent = self.snapshot.profile(&ProfileQuery {
            namespace: &service.namespace,
            name: &service.name,
            version: Some(&service.version),
            kind: StackKind::Memory,
            since: RECENT,
            idle: false,
        });
        let growth_ns = recent.as_ref().map_or(0, |profile| profile.duration_ns);
        let mut by_owner: BTreeMap<Owner, u64> = BTreeMap::new();
        for sample in recent.into_iter().flat_map(|profile| profile.samples) {
            let sum = by_owner.entry(sample.stack.owner.clone()).or_default();
            *sum = sum.saturating_add(sample.value);
        }
        let mut growth: Vec<(Owner, u64)> = by_owner.into_iter().collect();
        growth.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        growth.truncate(TOP);
        let kill = OomKill {
            service,
            victim,
            growth,
            growth_ns,
        };
        let before = self.oom_kills.iter().rev().take(KEPT - 1).rev();
        self.oom_kills = before.chain([&kill]).cloned().collect();
        Arc::make_mut(&mut self.snapshot).oom_kills = Arc::clone(&self.oom_kills);
        kill
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{SECOND, limits, sample, service, stack};
    use super::*;
    use crate::symbolize::{AttributedTick, StackDetail, Totals};

    #[test]
    fn a_kill_names_the_code_that_grew_and_the_last_ones_are_kept() {
        let (shop, other) = (service("shop"), service("other"));
        let mut aggregator = Aggregator::new(limits());
        let grown = |whom, function: &str, weight| {
            let stack = stack(function, false);
            sample(whom, StackKind::Memory, StackDetail::None, weight, stack)
        };
        let totals = |bytes| Totals {
            memory_growth_bytes: bytes,
            ..Totals::default()
        };
        let tick = AttributedTick {
            at_unix_ns: SECOND,
            length_ns: SECOND,
            services: vec![
                (Arc::clone(&shop), totals(4000)),
                (Arc::clone(&other), totals(9000)),
            ],
        };
        let samples = vec![
            grown(&shop, "small", 1.0),
            grown(&shop, "large", 3.0),
            grown(&other, "else", 1.0),
        ];
        aggregator.tick(tick, samples, &[]);
        let victim = |pid| OomVictim {
            pid,
            ..OomVictim::default()
        };
        let kill = aggregator.oom_kill(Arc::clone(&shop), victim(7));
        let named: Vec<(&str, u64)> = kill
            .growth
            .iter()
            .map(|(owner, bytes)| (&*owner.function, *bytes))
            .collect();
        assert_eq!(named, [("large", 3000), ("small", 1000)]);
        assert_eq!(kill.growth_ns, SECOND);
        for pid in 8..200 {
            aggregator.oom_kill(Arc::clone(&shop), victim(pid));
        }
        let pids: Vec<u32> = aggregator
            .snapshot()
            .oom_kills
            .iter()
            .map(|kill| kill.victim.pid)
            .collect();
        assert_eq!(pids, (100..200).collect::<Vec<_>>());
    }
}
