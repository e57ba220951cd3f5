//! When the next sample is due.

use std::time::{Duration, Instant};

/// The least mean distance of two samples while there is nothing to see.
const RARE: Duration = Duration::from_secs(1);
/// Longest: there is one at the end of each tick whatever it costs, and others between two of these would make it dearer still.
const LONGEST: Duration = Duration::from_secs(60);

/// Spaces samples so that they cost a fixed share of one CPU at most.
pub struct Pace {
    /// Shortest mean distance of two samples.
    shortest: Duration,
    /// Share of one CPU that samples may cost.
    share: f64,
    next: Instant,
    /// Mean cost of a sample in seconds.
    cost: f64,
    seed: u64,
}

impl Pace {
    /// The first sample is due at once.
    #[must_use]
    pub fn new(now: Instant, shortest: Duration, share: f64) -> Self {
        Self {
            shortest,
            share,
            next: now,
            cost: 0.0,
            seed: 0x9e37_79b9_7f4a_7c15,
        }
    }

    /// Whether a sample is due.
    #[must_use]
    pub fn due(&self, now: Instant) -> bool {
        now >= self.next
    }

    /// When the next one is due.
    #[must_use]
    pub fn next(&self) -> Instant {
        self.next
    }

    /// A sample was taken and cost so much CPU time; `none` where there was nothing to see.
    pub fn took(&mut self, now: Instant, cost: Duration, none: bool) {
        // A single cost holds what else the thread was interrupted by.
        self.cost += (cost.as_secs_f64() - self.cost) / 4.0;
        let mut mean =
            Duration::from_secs_f64((self.cost / self.share).min(LONGEST.as_secs_f64())).max(self.shortest);
        if none {
            mean = mean.max(RARE);
        }
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        // Between half and one and a half of the mean: a steady beat would see one phase of a steady program only.
        self.next = now + mean / 2 + mean.mul_f64((self.seed >> 11) as f64 / (1u64 << 53) as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORTEST: Duration = Duration::from_millis(25);
    const SHARE: f64 = 0.002;

    #[test]
    fn samples_cost_their_share_however_dear_they_are() {
        for (cost_us, none) in [(20u64, false), (20, true), (4_000, false), (1_000_000, false)] {
            let begin = Instant::now();
            let (mut pace, mut now, mut samples) = (Pace::new(begin, SHORTEST, SHARE), begin, 0);
            while now < begin + Duration::from_secs(10_000) {
                assert!(pace.due(now));
                pace.took(now, Duration::from_micros(cost_us), none);
                samples += 1;
                now = pace.next();
            }
            let mean = 10_000.0 / f64::from(samples);
            let expected = (cost_us as f64 / 1e6 / SHARE).clamp(if none { 1.0 } else { 0.025 }, 60.0);
            assert!(
                (mean / expected - 1.0).abs() < 0.1,
                "{cost_us} us: one in {mean} s, expected {expected} s"
            );
        }
    }
}
