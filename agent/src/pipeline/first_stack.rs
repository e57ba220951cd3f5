//! How long a program runs before its stacks are whole: they are broken off until its unwind tables are loaded.

use std::collections::HashMap;
use std::time::Instant;

use crate::attribute::{SlotId, UnwindResult};
use crate::telemetry::FirstStacks;

/// Program images that began under the agent's eyes and have not had a whole stack yet: at most one a slot.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    began: HashMap<SlotId, Instant>,
    done: FirstStacks,
}

impl Waiting {
    /// A program image began.
    pub(super) fn opened(&mut self, slot: SlotId, now: Instant) {
        self.began.insert(slot, now);
    }

    /// A stack of it was walked.
    pub(super) fn sampled(&mut self, slot: SlotId, result: UnwindResult, now: Instant) {
        if result.whole()
            && let Some(began) = self.began.remove(&slot)
        {
            self.done.add(now.saturating_duration_since(began).as_secs_f64());
        }
    }

    /// It ended, perhaps without a whole stack.
    pub(super) fn closed(&mut self, slot: SlotId) {
        self.began.remove(&slot);
    }

    pub(super) fn telemetry(&self) -> FirstStacks {
        self.done.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn only_the_first_whole_stack_counts() {
        let start = Instant::now();
        let after = |ms| start + Duration::from_millis(ms);
        let (one, two, three) = (SlotId(7), SlotId(8), SlotId(9));
        let mut waiting = Waiting::default();
        waiting.opened(one, start);
        waiting.opened(two, after(100));
        waiting.sampled(one, UnwindResult::FramePointers, after(100));
        waiting.sampled(one, UnwindResult::Complete, after(300));
        waiting.sampled(one, UnwindResult::Complete, after(5000));
        waiting.closed(two);
        waiting.sampled(two, UnwindResult::Complete, after(5000));
        // It was there before the agent.
        waiting.sampled(three, UnwindResult::Complete, after(400));
        let done = waiting.telemetry();
        assert_eq!(done.count, 1);
        assert!((done.sum - 0.3).abs() < 1e-9);
        let up_to: Vec<u64> = done.cumulated().map(|(_, count)| count).collect();
        assert_eq!(up_to, [0, 0, 1, 1, 1, 1, 1, 1]);
    }
}
