//! Programs whose tables are brought before they are sampled, so that also what they wait for from then on has whole stacks.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::super::SlotId;

/// Age from which on a new program counts as one that stays, and has loaded its libraries: most do not reach it.
const AGE: Duration = Duration::from_millis(100);
/// Between two of them, in the long run: one takes about a millisecond where its tables are there already.
const APART: Duration = Duration::from_millis(100);
/// How many may follow each other at once.
const BURST: u32 = 20;
/// Programs that wait; of more, the tables are brought when they are sampled.
const MAX: usize = 4096;

/// Programs that wait for their tables, the longest first.
#[derive(Debug)]
pub(super) struct Ahead {
    order: VecDeque<(Instant, SlotId)>,
    pids: HashMap<SlotId, u32>,
    /// From when on the next one is allowed: as far in the past as a burst allows.
    allowed: Instant,
}

impl Ahead {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            order: VecDeque::new(),
            pids: HashMap::new(),
            allowed: now,
        }
    }

    /// A program image began.
    pub(super) fn opened(&mut self, slot: SlotId, pid: u32, now: Instant) {
        if self.order.len() < MAX && self.pids.insert(slot, pid).is_none() {
            self.order.push_back((now + AGE, slot));
        }
    }

    /// It ended, or its tables are there.
    pub(super) fn done(&mut self, slot: SlotId) {
        self.pids.remove(&slot);
    }

    /// The next one, once it is old enough.
    pub(super) fn next(&mut self, now: Instant) -> Option<(SlotId, u32)> {
        while self.due()? <= now {
            let (_, slot) = self.order.pop_front()?;
            if let Some(pid) = self.pids.remove(&slot) {
                let burst = now.checked_sub(APART * BURST).unwrap_or(self.allowed);
                self.allowed = self.allowed.max(burst) + APART;
                return Some((slot, pid));
            }
        }
        None
    }

    /// When the next one is to be asked for.
    pub(super) fn due(&self) -> Option<Instant> {
        let (due, _) = self.order.front()?;
        Some((*due).max(self.allowed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_programs_are_left_out_and_many_come_one_by_one() {
        let start = Instant::now();
        let after = |ms| start + Duration::from_millis(ms);
        let mut ahead = Ahead::new(start);
        assert_eq!(ahead.due(), None);
        ahead.opened(SlotId(1), 10, start);
        ahead.opened(SlotId(2), 20, after(1));
        ahead.done(SlotId(1));
        assert_eq!((ahead.next(after(50)), ahead.due()), (None, Some(after(100))));
        assert_eq!(ahead.next(after(101)), Some((SlotId(2), 20)));
        assert_eq!((ahead.next(after(101)), ahead.due()), (None, None));
        for slot in 0..100 {
            ahead.opened(SlotId(slot), slot, after(1000));
        }
        let mut count = |ms| std::iter::from_fn(|| ahead.next(after(ms))).count() as u32;
        // As many as there was time for since the one before, and at most a burst.
        assert_eq!(count(1100), 11);
        assert_eq!((count(1150), count(1400), count(60_000)), (0, 3, BURST + 1));
    }
}
