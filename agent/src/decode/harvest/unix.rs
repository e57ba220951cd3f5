//! Connections over Unix sockets that were accepted while system calls were counted, and that no visit found.

use std::collections::{HashMap, HashSet};

use agent_ebpf::wire::{SLOT_NONE, UnixAccepted, UnixPair};
use anyhow::Result;

use crate::decode::model::{SlotId, UnixBrief};
use crate::load::Loaded;

/// What was counted until now.
pub(super) fn accepted(loaded: &Loaded) -> Result<HashMap<UnixPair, UnixAccepted>> {
    let mut accepted = HashMap::new();
    loaded.each("UNIX_ACCEPTED", |pair, counts| {
        accepted.insert(pair, counts);
    })?;
    Ok(accepted)
}

/// Connections that no visit found: as many as were so at most at the end of some tick.
#[derive(Default)]
pub(super) struct Brief {
    told: HashMap<UnixPair, u64>,
}

impl Brief {
    /// Those that came in a tick, by the server's slot: accepted `before` its visit, and not visited `after` it.
    pub(super) fn step(
        &mut self,
        before: &HashMap<UnixPair, UnixAccepted>,
        after: &HashMap<UnixPair, UnixAccepted>,
    ) -> HashMap<u32, Vec<UnixBrief>> {
        let mut brief: HashMap<u32, Vec<UnixBrief>> = HashMap::new();
        for (pair, counts) in before {
            let visited = after.get(pair).map_or(counts.visited, |after| after.visited);
            // One that is accepted during the visit may be found by it: it is missing here until the next tick.
            let unseen = counts.accepted.saturating_sub(visited);
            let told = self.told.entry(*pair).or_default();
            let count = unseen.saturating_sub(*told);
            *told = unseen.max(*told);
            if count > 0 {
                brief.entry(pair.server).or_default().push(UnixBrief {
                    server: SlotId(pair.server),
                    client: (pair.client != SLOT_NONE).then_some(SlotId(pair.client)),
                    count,
                });
            }
        }
        brief
    }

    /// These slots are given back.
    pub(super) fn forget(&mut self, closed: &HashSet<u32>) {
        self.told.retain(|pair, _| !of(closed, pair));
    }
}

/// Whether one of the ends is closed.
pub(super) fn of(closed: &HashSet<u32>, pair: &UnixPair) -> bool {
    closed.contains(&pair.server) || closed.contains(&pair.client)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAIR: UnixPair = UnixPair { server: 9, client: 2 };

    fn at(accepted: u64, visited: u64) -> HashMap<UnixPair, UnixAccepted> {
        HashMap::from([(PAIR, UnixAccepted { accepted, visited })])
    }

    fn count(brief: &HashMap<u32, Vec<UnixBrief>>) -> u64 {
        brief.values().flatten().map(|brief| brief.count).sum()
    }

    #[test]
    fn those_that_a_visit_found_are_not_brief() {
        let mut brief = Brief::default();
        assert_eq!(count(&brief.step(&at(100, 0), &at(101, 30))), 70);
        assert_eq!(count(&brief.step(&at(110, 30), &at(110, 40))), 0);
        // One was accepted after the first look and found by the visit; it ends before the next.
        assert_eq!(count(&brief.step(&at(120, 40), &at(121, 51))), 0);
        assert_eq!(count(&brief.step(&at(131, 51), &at(131, 51))), 10);
        brief.forget(&HashSet::from([2]));
        assert_eq!(
            count(&brief.step(&at(7, 0), &at(7, 0))),
            7,
            "another pair under the ids"
        );
    }
}
