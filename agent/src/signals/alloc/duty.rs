//! How long probes may stay, and what windows say about the whole.
//!
//! A hit costs the same whatever the allocation is for, so the cost of a window is its hits times what one costs. Totals need
//! what the program did for itself in windows, beside the hits. A program that has pauses left in windows does the same there as
//! elsewhere in the same time. One that is busy all the time does less: what is left of its CPU time without the hits, which for
//! one that hardly does anything but allocate is a few per cent, known no better than the cost of a hit.

use std::time::Duration;

/// Length of a window at least: a few hundred hits of a busy program.
const SHORTEST: Duration = Duration::from_millis(2);
/// And at most: as long as the pipeline waits for nothing else.
const LONGEST: Duration = Duration::from_millis(100);
/// Mean time from one window to the next that is aimed at.
const CYCLE: Duration = Duration::from_millis(200);
/// Largest share of time: nothing is gained by more.
const MOST: f64 = 0.5;
/// Samples of a window that are aimed at, at least and at most: with the fewest, a minute of five windows a second tells a share of a
/// half with a standard error of 0.65 points.
const SAMPLES: (f64, f64) = (20.0, 100.0);
/// How many more samples there are for that at most: a program that was seen to do little may do more in the next window, and where
/// samples flood those that come first have an advantage.
const DENSER: f64 = 8.0;
/// Smallest share of a window's CPU time that a program is taken to have had for itself: below it, what a hit costs would have
/// to be known better than it is.
const OWN_LEAST: f64 = 0.02;

/// Share of windows' time from which on a program is busy in them.
const BUSY: f64 = 0.8;
/// Part of what is known that the next tick leaves of it: a single tick has too few windows to tell.
const KEPT: f64 = 0.9;

/// What happened in windows.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Windows {
    /// Hits.
    pub hits: f64,
    /// CPU seconds of the process.
    pub cpu: f64,
    /// Seconds.
    pub wall: f64,
    /// Allocated bytes.
    pub bytes: f64,
}

impl Windows {
    /// Adds another's.
    pub fn add(&mut self, other: Self) {
        self.hits += other.hits;
        self.cpu += other.cpu;
        self.wall += other.wall;
        self.bytes += other.bytes;
    }

    /// CPU seconds without the time of the hits.
    fn own(self, hit_cost: f64) -> f64 {
        (self.cpu - self.hits * hit_cost).max(OWN_LEAST * self.cpu)
    }
}

/// How windows relate to the whole.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scale {
    windows: Windows,
    /// CPU seconds and seconds outside of windows.
    outside: (f64, f64),
}

impl Scale {
    /// A tick of `wall` seconds ended, in which the process had `cpu` seconds, with these windows: how much of the whole there is
    /// for each part that was seen in them.
    pub fn tick(&mut self, windows: Windows, cpu: f64, wall: f64, hit_cost: f64) -> f64 {
        let all = &mut self.windows;
        (all.hits, all.cpu, all.wall) = (all.hits * KEPT, all.cpu * KEPT, all.wall * KEPT);
        all.add(windows);
        let rest = ((cpu - windows.cpu).max(0.0), (wall - windows.wall).max(0.0));
        self.outside = (self.outside.0 * KEPT + rest.0, self.outside.1 * KEPT + rest.1);
        let own = windows.cpu * self.own_share(hit_cost);
        if own > 0.0 { (rest.0 + own) / own } else { 0.0 }
    }

    /// Share of the CPU time in windows that the program had for itself.
    fn own_share(&self, hit_cost: f64) -> f64 {
        let (windows, (cpu, wall)) = (self.windows, self.outside);
        let own = if windows.cpu < BUSY * windows.wall && wall > 0.0 {
            cpu / wall * windows.wall
        } else {
            windows.own(hit_cost)
        };
        (own / windows.cpu.max(1e-9)).clamp(OWN_LEAST, 1.0)
    }
}

/// Decides when windows open.
#[derive(Clone, Debug)]
pub struct Duty {
    /// Share of the program's CPU time that probes may cost.
    budget: f64,
    /// Seconds that a hit costs.
    hit_cost: f64,
    /// Hits a second of the program's own CPU time.
    rate: f64,
    /// Bytes a hit.
    size: f64,
    seed: u64,
}

impl Duty {
    /// Knows nothing of the program yet: begins as if it did nothing but allocate.
    #[must_use]
    pub fn new(budget: f64, hit_cost: f64, seed: u64) -> Self {
        Self {
            budget,
            hit_cost,
            rate: f64::INFINITY,
            size: 64.0,
            seed: seed | 1,
        }
    }

    /// Learns from a window.
    pub fn learn(&mut self, window: Windows) {
        let own = window.own(self.hit_cost);
        if own <= 0.0 {
            return;
        }
        let rate = window.hits / own;
        self.rate = if self.rate.is_finite() {
            self.rate + (rate - self.rate) / 8.0
        } else {
            rate
        };
        if window.hits > 0.0 {
            self.size += (window.bytes / window.hits - self.size) / 8.0;
        }
    }

    /// Share of time in which probes are attached.
    #[must_use]
    pub fn share(&self) -> f64 {
        // The part of a window that hits take.
        let taken = if self.rate.is_finite() {
            let cost = self.rate * self.hit_cost;
            cost / (1.0 + cost)
        } else {
            1.0
        };
        (self.budget / taken.max(1e-9)).min(MOST)
    }

    /// How long the next window is.
    #[must_use]
    pub fn window(&self) -> Duration {
        CYCLE.mul_f64(self.share()).clamp(SHORTEST, LONGEST)
    }

    /// How long to wait before it. At random, so that no period of the program hides between windows.
    pub fn pause(&mut self) -> Duration {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        let random = (self.seed >> 11) as f64 / (1u64 << 53) as f64;
        let mean = self.window().mul_f64(1.0 / self.share().max(1e-6) - 1.0);
        mean.mul_f64(0.5 + random)
    }

    /// Mean distance of samples in a window, so that one stands for `period` bytes of the whole, as far as a window has neither too
    /// few samples to tell something nor too many.
    #[must_use]
    pub fn mean(&self, period: u32) -> u32 {
        let whole = f64::from(period) * self.share();
        let hits = self.window().as_secs_f64() / (self.hit_cost + 1.0 / self.rate.max(1.0));
        let bytes = hits * self.size;
        let few = (bytes / SAMPLES.0).max(whole / DENSER);
        whole
            .min(few)
            .max(bytes / SAMPLES.1)
            .clamp(64.0, f64::from(u32::MAX)) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program that allocates `rate` times a second of its own time, watched for a minute.
    fn run(rate: f64) -> (f64, f64, f64) {
        let (hit_cost, true_bytes) = (750e-9, 64.0);
        let mut scale = Scale::default();
        let mut duty = Duty::new(0.01, hit_cost, 7);
        let (mut lost, mut time) = (0.0, 0.0);
        let mut seen = Windows::default();
        while time < 60.0 {
            let pause = duty.pause().as_secs_f64();
            let window = duty.window().as_secs_f64();
            let own = window / (1.0 + rate * hit_cost);
            let hits = own * rate;
            let now = Windows {
                hits,
                cpu: window,
                wall: window,
                bytes: hits * true_bytes,
            };
            duty.learn(now);
            seen.add(now);
            lost += hits * hit_cost;
            time += pause + window;
        }
        let whole = (time - lost) * rate;
        (
            lost / time,
            seen.hits * scale.tick(seen, time, time, hit_cost) / whole,
            seen.cpu / time,
        )
    }

    #[test]
    fn the_cost_stays_within_the_budget_and_windows_say_the_whole() {
        for rate in [1.0, 20e3, 1e6, 10e6] {
            let (lost, estimate, share) = run(rate);
            assert!(lost <= 0.0105, "{rate}: {lost}");
            assert!((estimate - 1.0).abs() < 0.01, "{rate}: {estimate}");
            assert!((0.009..=0.51).contains(&share), "{rate}: {share}");
        }
    }

    /// A program that pauses does as much in windows as elsewhere, however wrong the cost of a hit is.
    #[test]
    fn pauses_make_up_for_the_hits() {
        for hit_cost in [500e-9, 1500e-9] {
            let mut scale = Scale::default();
            let windows = Windows {
                hits: 10_000.0,
                // 1 ms of its own in a tenth of a second, and 7.5 ms for hits.
                cpu: 0.0085,
                wall: 0.1,
                bytes: 1e6,
            };
            let found = scale.tick(windows, 0.0085 + 0.009, 1.0, hit_cost);
            assert!((found - 10.0).abs() < 1e-9, "{found}");
        }
    }

    #[test]
    fn a_window_has_neither_few_samples_nor_many() {
        let mut duty = Duty::new(0.01, 750e-9, 7);
        for _ in 0..100 {
            duty.learn(Windows {
                hits: 10.0,
                cpu: 0.01,
                wall: 0.01,
                bytes: 1000.0,
            });
        }
        // 1,000 hits of 100 bytes a second may be watched half of the time, a tenth of a second at once: 10 kB. One for each 500 bytes
        // would be twenty of them, but that is too many should it do more.
        assert_eq!(duty.mean(512 << 10), 32 << 10);
        let some = duty.mean(4 << 10);
        assert!((490..=500).contains(&some), "{some}");
        // One for each period where that is neither too few nor too many: 1,500 of 3,000 bytes are two of 50 samples.
        assert_eq!(duty.mean(400), 200);
        for _ in 0..100 {
            duty.learn(Windows {
                hits: 2500.0,
                cpu: 0.002,
                wall: 0.002,
                bytes: 2.5e6,
            });
        }
        let mean = f64::from(duty.mean(512 << 10));
        let hits = duty.window().as_secs_f64() / 800e-9;
        let samples = hits * 1000.0 / mean;
        assert!((50.0..=110.0).contains(&samples), "{samples} samples a window");
    }
}
