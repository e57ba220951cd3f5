//! How much time a file may cost.

use std::time::{Duration, Instant};

/// Time spent on a file, paid back by the passing of time: one part in [`Budget::SHARE`]. So a file is never given up for
/// being read again now and then, and one that is slow at every address soon is.
#[derive(Debug)]
pub(in super::super) struct Budget {
    debt: Duration,
    at: Instant,
}

impl Budget {
    const SHARE: u32 = 100;

    pub(in super::super) fn new() -> Self {
        Self {
            debt: Duration::ZERO,
            at: Instant::now(),
        }
    }

    /// Adds what was spent; true when that is over the limit.
    pub(in super::super) fn spend(&mut self, spent: Duration, limit: Duration) -> bool {
        let passed = self.at.elapsed();
        self.at = Instant::now();
        self.debt = self
            .debt
            .saturating_sub(passed / Self::SHARE)
            .saturating_add(spent);
        let over = self.debt > limit;
        if over {
            // What is done next has a new budget.
            self.debt = Duration::ZERO;
        }
        over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_slow_answers_add_up() {
        let mut budget = Budget::new();
        let (each, limit) = (Duration::from_millis(900), Duration::from_secs(5));
        let over: Vec<bool> = (0..7).map(|_| budget.spend(each, limit)).collect();
        assert_eq!(over, [false, false, false, false, false, true, false]);
        // Hours later nothing of it is left.
        budget.debt = limit;
        budget.at = Instant::now()
            .checked_sub(Duration::from_secs(3600))
            .unwrap_or(budget.at);
        assert!(!budget.spend(each, limit) || budget.at.elapsed() < each);
    }
}
