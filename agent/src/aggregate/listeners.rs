//! Addresses that a service listens on, under a bound.

use std::collections::{BTreeMap, HashMap};

use crate::symbolize::{ListenTotals, Peer};

/// Ticks after which an address that nobody listens on makes room for a new one.
const QUIET_TICKS: u64 = 60;

/// Keeps the addresses of one service under a bound; those beyond it are `Peer::Other`.
#[derive(Clone, Debug, Default)]
pub(super) struct ListenerBound {
    limit: usize,
    last_seen: HashMap<Peer, u64>,
}

impl ListenerBound {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            last_seen: HashMap::new(),
        }
    }

    /// Adds a tick to cumulative totals, whose gauges become the tick's.
    pub(super) fn add(
        &mut self,
        total: &mut BTreeMap<Peer, ListenTotals>,
        tick: &BTreeMap<Peer, ListenTotals>,
        now: u64,
    ) {
        for sum in total.values_mut() {
            sum.clear_gauges();
        }
        for (at, more) in tick {
            let at = self.admit(total, *at, now);
            total.entry(at).or_default().merge(more);
        }
    }

    fn admit(&mut self, total: &mut BTreeMap<Peer, ListenTotals>, at: Peer, now: u64) -> Peer {
        if !self.last_seen.contains_key(&at) && self.last_seen.len() >= self.limit {
            let oldest = self.last_seen.iter().min_by_key(|(at, seen)| (**seen, **at));
            let gone = oldest.filter(|(_, seen)| now.saturating_sub(**seen) >= QUIET_TICKS);
            let Some(gone) = gone.map(|(at, _)| *at) else {
                return Peer::Other;
            };
            self.last_seen.remove(&gone);
            total.remove(&gone);
        }
        self.last_seen.insert(at, now);
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_past_the_bound_are_other_until_one_is_left() {
        let at = |port| Peer::Server("10.0.0.1".parse().unwrap(), port);
        let tick = |port| {
            let counted = ListenTotals {
                limit: 5,
                accepted: 2,
                ..ListenTotals::default()
            };
            BTreeMap::from([(at(port), counted)])
        };
        let mut bound = ListenerBound::new(1);
        let mut total = BTreeMap::new();
        bound.add(&mut total, &tick(1), 0);
        bound.add(&mut total, &tick(2), 1);
        assert_eq!((total[&at(1)].accepted, total[&at(1)].limit), (2, 0));
        assert_eq!(total[&Peer::Other].accepted, 2);
        bound.add(&mut total, &tick(2), QUIET_TICKS);
        assert_eq!(total.keys().copied().collect::<Vec<_>>(), [at(2), Peer::Other]);
    }
}
