//! Pools of a service over time: totals, and the recent past by which people judge them.

use std::collections::{BTreeMap, HashMap, VecDeque};

use crate::symbolize::{Direction, PoolPeer, PoolTotals};

/// Key of a pool within a service.
type PoolKey = (Direction, PoolPeer);

/// Parts of the recent past; the oldest goes when a new one begins.
const PARTS: u64 = 5;
/// Ticks without a change after which a pool with nothing open makes room for a new one.
const QUIET_TICKS: u64 = 60;

/// The recent past of a pool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecentPool {
    /// Sums and peaks of the recent past, gauges as of the last tick.
    pub totals: PoolTotals,
    /// How long the recent past is, in nanoseconds.
    pub length_ns: u64,
}

/// The recent past of every pool of a service.
pub type RecentPools = BTreeMap<PoolKey, RecentPool>;

/// How many there are of which more is known than how many connections they have.
pub(super) fn used(pools: &BTreeMap<PoolKey, PoolTotals>) -> usize {
    pools.keys().filter(|(_, peer)| !peer.counted_only()).count()
}

/// How many there are whose connections' ages are known: some are open.
pub(super) fn aged(pools: &BTreeMap<PoolKey, PoolTotals>) -> usize {
    pools.values().filter(|pool| pool.mean_age_ns().is_some()).count()
}

/// Keeps the pools of one service under a bound.
#[derive(Clone, Debug, Default)]
pub(super) struct PoolBound {
    limit: usize,
    /// Length of a part in nanoseconds.
    part_ns: u64,
    pools: HashMap<PoolKey, Past>,
}

#[derive(Clone, Debug, Default)]
struct Past {
    last_news: u64,
    /// By the number of the part, newest last: sums, and how much of the part was seen.
    parts: VecDeque<(u64, PoolTotals, u64)>,
}

impl PoolBound {
    /// At most `limit` pools, both directions together, `(other)` aside; `retention_ns` is the recent past.
    pub(super) fn new(limit: usize, retention_ns: u64) -> Self {
        Self {
            limit,
            part_ns: (retention_ns / PARTS).max(1),
            pools: HashMap::new(),
        }
    }

    /// Adds a tick to cumulative totals, whose gauges become the tick's; peaks are those of the recent past. `now` counts
    /// ticks, `clock_ns` their lengths.
    pub(super) fn add(
        &mut self,
        total: &mut BTreeMap<PoolKey, PoolTotals>,
        tick: &BTreeMap<PoolKey, PoolTotals>,
        now: u64,
        clock_ns: u64,
        length_ns: u64,
    ) -> RecentPools {
        let mut admitted: BTreeMap<PoolKey, PoolTotals> = BTreeMap::new();
        for (key, more) in tick {
            let key = self.admit(total, key, now);
            admitted.entry(key).or_default().merge(more);
        }
        let part = clock_ns / self.part_ns;
        let mut recent = BTreeMap::new();
        for (key, past) in &mut self.pools {
            let more = admitted.remove(key).unwrap_or_default();
            let sum = total.entry(key.clone()).or_default();
            past.add(&more, part, length_ns);
            let of_past = past.recent();
            let peaks = (of_past.totals.open_peak, of_past.totals.busy_peak);
            let samples = sum.samples;
            sum.clear_gauges();
            sum.merge(&more);
            sum.samples = samples.saturating_add(more.samples);
            (sum.open_peak, sum.busy_peak) = peaks;
            recent.insert(key.clone(), of_past);
        }
        recent
    }

    fn admit(&mut self, total: &mut BTreeMap<PoolKey, PoolTotals>, key: &PoolKey, now: u64) -> PoolKey {
        if !self.pools.contains_key(key) && key.1 != PoolPeer::OTHER && self.pools.len() >= self.limit {
            let quietest = self
                .pools
                .iter()
                .filter(|(known, _)| total.get(known).is_none_or(|pool| pool.open == 0))
                .filter(|(known, past)| {
                    known.1 != PoolPeer::OTHER && now.saturating_sub(past.last_news) >= QUIET_TICKS
                })
                .min_by(|a, b| (a.1.last_news, a.0).cmp(&(b.1.last_news, b.0)))
                .map(|(known, _)| known.clone());
            let Some(gone) = quietest else {
                let other = (key.0, PoolPeer::OTHER);
                self.pools.entry(other.clone()).or_default().last_news = now;
                return other;
            };
            self.pools.remove(&gone);
            total.remove(&gone);
        }
        self.pools.entry(key.clone()).or_default().last_news = now;
        key.clone()
    }
}

impl Past {
    fn add(&mut self, more: &PoolTotals, part: u64, length_ns: u64) {
        if self.parts.back().is_none_or(|(last, ..)| *last != part) {
            self.parts.push_back((part, PoolTotals::default(), 0));
        }
        if let Some((_, sum, seen)) = self.parts.back_mut() {
            let samples = sum.samples.saturating_add(more.samples);
            let peaks = (
                sum.open_peak.max(more.open_peak),
                sum.busy_peak.max(more.busy_peak),
            );
            sum.clear_gauges();
            sum.merge(more);
            sum.samples = samples;
            (sum.open_peak, sum.busy_peak) = peaks;
            *seen += length_ns;
        }
        self.parts.retain(|(at, ..)| at + PARTS > part);
    }

    fn recent(&self) -> RecentPool {
        let mut recent = RecentPool::default();
        for (_, part, seen) in &self.parts {
            let sum = &mut recent.totals;
            let samples = sum.samples.saturating_add(part.samples);
            let peaks = (
                sum.open_peak.max(part.open_peak),
                sum.busy_peak.max(part.busy_peak),
            );
            sum.clear_gauges();
            sum.merge(part);
            sum.samples = samples;
            (sum.open_peak, sum.busy_peak) = peaks;
            recent.length_ns += seen;
        }
        recent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(name: &str) -> PoolKey {
        (Direction::Out, PoolPeer::Service(name.into()))
    }

    fn pool(open: u64, peak: u64, opened: u64) -> PoolTotals {
        PoolTotals {
            open,
            open_peak: peak,
            opened,
            samples: 10,
            ..PoolTotals::default()
        }
    }

    #[test]
    fn counters_add_up_and_peaks_are_those_of_the_recent_past() {
        let mut bound = PoolBound::new(10, 50);
        let mut total = BTreeMap::new();
        let mut recent = RecentPools::default();
        for (clock, peak) in [(0, 9), (10, 4), (20, 5), (30, 3), (40, 3)] {
            let tick = BTreeMap::from([(peer("db"), pool(3, peak, 2))]);
            recent = bound.add(&mut total, &tick, clock / 10, clock, 10);
        }
        let sum = &total[&peer("db")];
        assert_eq!((sum.open, sum.open_peak, sum.opened, sum.samples), (3, 9, 10, 50));
        assert_eq!(recent[&peer("db")].length_ns, 50);
        let recent = bound.add(&mut total, &BTreeMap::new(), 5, 50, 10);
        let sum = &total[&peer("db")];
        assert_eq!(
            (sum.open, sum.open_peak, sum.opened),
            (0, 5, 10),
            "the first part is past"
        );
        assert_eq!(recent[&peer("db")].totals.opened, 8);
    }

    #[test]
    fn pools_past_the_bound_are_other_until_a_quiet_one_makes_room() {
        let mut bound = PoolBound::new(1, 50);
        let mut total = BTreeMap::new();
        let one = |name: &str, open| BTreeMap::from([(peer(name), pool(open, 1, 1))]);
        bound.add(&mut total, &one("a", 0), 0, 0, 1);
        bound.add(&mut total, &one("b", 1), 1, 1, 1);
        let other = (Direction::Out, PoolPeer::OTHER);
        assert_eq!((total[&other].opened, total[&other].open), (1, 1));
        assert!(!total.contains_key(&peer("b")));
        bound.add(&mut total, &one("b", 1), QUIET_TICKS, QUIET_TICKS, 1);
        assert_eq!(total[&peer("b")].opened, 1);
        assert!(!total.contains_key(&peer("a")));
    }
}
