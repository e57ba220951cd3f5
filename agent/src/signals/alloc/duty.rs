//! How long probes may stay.
//!
//! A hit costs the same whatever the allocation is for, so the cost of a window is its hits times what one costs.

use std::time::Duration;

use super::scale::Windows;

/// Length of a window at least: a few hundred hits of a busy program.
const SHORTEST: Duration = Duration::from_millis(2);
/// And at most: a program that did nothing until now may do nothing but allocate in the next window, which is then paid for
/// during a hundred times that.
const LONGEST: Duration = Duration::from_millis(40);
/// Mean time from one window to the next that is aimed at.
const CYCLE: Duration = Duration::from_millis(200);
/// Share of a CPU of which all watched programs together may at least have the budget's share. One that hardly runs is not
/// slowed by more than that, and a minute of its windows would say little of it.
const LEAST: f64 = 0.1;
/// Seconds that a sample is taken to cost beside its hit: the walk of its stack, and what becomes of it in the agent, which is more.
/// Assumed, not measured.
const SAMPLE_COST: f64 = 2.5e-6;
/// Samples of a window that are aimed at, at least and at most: with the fewest, a minute of four windows a second tells a share of
/// a half with a standard error of 0.45 points.
const SAMPLES: (f64, f64) = (50.0, 200.0);
/// Hits a sample at least: it costs about as much as so many.
const HITS: f64 = 4.0;
/// Samples at most of a window in which a program does nothing but allocate, whatever it did until then: where samples flood,
/// those that come first have an advantage.
const FLOOD: f64 = 4000.0;
/// Seconds after which it is looked again whether a window is paid for: the program may run more by then.
const SOON: f64 = 0.5;
/// Bytes a hit until more is known. Where they are fewer, the first window has fewer samples than it might; where it is the other
/// way round it has so many that they take more of its time than all else.
const SIZE: f64 = 1024.0;
/// Part of what is known of windows that the next one replaces, but for the first ones, which replace more.
const LEARNED: f64 = 0.125;

/// What windows cost, in seconds, where a hit costs this.
#[must_use]
pub fn windows_cost(windows: Windows, hit_cost: f64) -> f64 {
    (windows.hits + windows.missed) * hit_cost + windows.samples * SAMPLE_COST
}

/// Decides when windows open: what a window has cost is paid for by the time until the next one.
#[derive(Clone, Debug)]
pub struct Duty {
    /// Share of the program's CPU time that probes may cost.
    budget: f64,
    /// Seconds that a hit costs.
    hit_cost: f64,
    /// CPU seconds of the program in a second, as far as they count for the budget.
    cpu: f64,
    /// What was not paid for yet, in seconds.
    owed: f64,
    /// Seconds that a second of windows costs.
    cost: f64,
    /// Hits a second of windows.
    rate: f64,
    /// Bytes a hit.
    size: f64,
    /// Windows so far.
    windows: f64,
    seed: u64,
}

impl Duty {
    /// Knows nothing of the program yet: begins as if it did nothing but allocate.
    #[must_use]
    pub fn new(budget: f64, hit_cost: f64, seed: u64) -> Self {
        Self {
            budget,
            hit_cost,
            cpu: 0.0,
            owed: 0.0,
            cost: 1.0,
            rate: 1.0 / hit_cost.max(1e-9),
            size: SIZE,
            windows: 0.0,
            seed: seed | 1,
        }
    }

    /// Learns from a window.
    pub fn learn(&mut self, window: Windows) {
        let cost = windows_cost(window, self.hit_cost);
        self.owed += cost;
        if window.wall <= 0.0 {
            return;
        }
        // What is assumed at first counts as another window.
        self.windows += 1.0;
        let part = LEARNED.max(1.0 / (self.windows + 1.0));
        self.cost += (cost / window.wall - self.cost) * part;
        self.rate += (window.hits / window.wall - self.rate) * part;
        if window.hits > 0.0 {
            self.size += (window.bytes / window.hits - self.size) * part;
        }
    }

    /// The program had `cpu` seconds in `wall` seconds, and is one of so many that are watched in windows. Returns whether
    /// another window may open: what is not paid for yet is no more than one costs.
    pub fn pay(&mut self, cpu: f64, wall: f64, watched: usize) -> bool {
        if wall > 0.0 {
            let counted = cpu.max(wall * LEAST / watched.max(1) as f64);
            self.owed = (self.owed - self.budget * counted).max(0.0);
            // About a second is remembered: less than a window's time to the next says nothing.
            let part = wall / (wall + 1.0);
            self.cpu += (counted / wall - self.cpu) * part;
        }
        self.owed <= self.budget * self.cpu * CYCLE.as_secs_f64()
    }

    /// Share of time in which probes are attached.
    #[must_use]
    pub fn share(&self) -> f64 {
        let most = LONGEST.as_secs_f64() / CYCLE.as_secs_f64();
        (self.budget * self.cpu / self.cost.max(1e-9)).min(most)
    }

    /// How long the next window is.
    #[must_use]
    pub fn window(&self) -> Duration {
        CYCLE.mul_f64(self.share()).clamp(SHORTEST, LONGEST)
    }

    /// How long to wait before it, or until it is paid for. At random, so that no period of the program hides between windows.
    pub fn pause(&mut self) -> Duration {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        let random = (self.seed >> 11) as f64 / (1u64 << 53) as f64;
        let paid = Duration::from_secs_f64((self.owed / (self.budget * self.cpu).max(1e-9)).min(SOON));
        let mean = paid.max(CYCLE.saturating_sub(self.window()));
        mean.mul_f64(0.5 + random)
    }

    /// Mean distance of samples in a window, so that one stands for `period` bytes of the whole, as far as a window has neither too
    /// few samples to tell something nor too many.
    #[must_use]
    pub fn mean(&self, period: u32) -> u32 {
        let window = self.window().as_secs_f64();
        let bytes = window * self.rate * self.size;
        let flood = window / self.hit_cost.max(1e-9) / FLOOD;
        let few = (bytes / SAMPLES.0).max(self.size * flood.max(HITS));
        let whole = f64::from(period) * self.share();
        whole
            .min(few)
            .max(bytes / SAMPLES.1)
            .clamp(64.0, f64::from(u32::MAX)) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::super::scale::{SAMPLE_COST as OWN_SAMPLE_COST, Scale, Seen};
    use super::*;

    /// Watches a program for so long, which runs for `busy` of its time (or all of it, where probes make it late) and allocates 64
    /// bytes `rate` times a second of that. Returns the share of its CPU time that was lost, what windows said of its bytes by what
    /// they were, the share of time in windows, and the samples.
    fn run(rate: f64, busy: f64, length: f64) -> (f64, f64, f64, f64) {
        let hit_cost = 750e-9;
        let mut scale = Scale::default();
        let mut duty = Duty::new(0.01, hit_cost, 7);
        let (mut lost, mut time) = (0.0, 0.0);
        let (mut seen, mut own) = (Seen::default(), 0.0);
        while time < length {
            let window = duty.window().as_secs_f64();
            let mean = f64::from(duty.mean(512 << 10));
            let each = 1.0 / rate + hit_cost + 64.0 / mean * OWN_SAMPLE_COST;
            let hits = (window / each).min(busy * window * rate);
            let now = Windows {
                hits,
                missed: 0.0,
                samples: hits * 64.0 / mean,
                cpu: hits * each,
                wall: window,
                bytes: hits * 64.0,
            };
            duty.learn(now);
            seen.add(now);
            lost += windows_cost(now, hit_cost);
            own += hits / rate;
            time += window;
            let mut passed = now.cpu;
            let mut wall = window;
            while !duty.pay(passed, wall, 1) || wall == window {
                let pause = duty.pause().as_secs_f64();
                (passed, wall) = (pause * busy, pause);
                time += pause;
            }
        }
        let all = seen.all();
        let rest = (time - all.wall) * busy;
        let estimate = all.hits * scale.tick(seen, rest + all.cpu, time, hit_cost);
        own += rest;
        (
            lost / (own + lost),
            estimate / (own * rate),
            all.wall / time,
            all.samples,
        )
    }

    #[test]
    fn the_cost_stays_within_the_budget_and_windows_say_the_whole() {
        for rate in [1.0, 20e3, 1e6, 10e6] {
            let (lost, estimate, share, _) = run(rate, 1.0, 300.0);
            assert!(lost <= 0.0105, "{rate}: {lost}");
            assert!((estimate - 1.0).abs() < 0.01, "{rate}: {estimate}");
            assert!((0.009..=0.21).contains(&share), "{rate}: {share}");
        }
    }

    /// Most of the budget is used where the program allocates as much as that.
    #[test]
    fn one_that_hardly_runs_has_the_budget_of_a_tenth_of_a_cpu() {
        // 20 thousand a second in a hundredth of a CPU.
        let (lost, _, share, samples) = run(2e6, 0.01, 60.0);
        assert!((0.055..=0.1).contains(&lost), "{lost}");
        assert!((0.02..=0.1).contains(&share), "{share}");
        assert!((8e3..=30e3).contains(&samples), "{samples}");
    }

    #[test]
    fn a_window_has_neither_few_samples_nor_many() {
        let watch = |rate: f64, size: f64| {
            let mut duty = Duty::new(0.01, 750e-9, 7);
            for _ in 0..200 {
                let wall = duty.window().as_secs_f64();
                duty.learn(Windows {
                    hits: rate * wall,
                    cpu: wall,
                    wall,
                    bytes: rate * wall * size,
                    ..Windows::default()
                });
                duty.pay(0.2, 0.2, 1);
            }
            let window = duty.window().as_secs_f64();
            (duty.clone(), window, window * rate * size)
        };
        // So little may be watched for as long as a window can be; should it do more, that is no flood.
        let (duty, window, _) = watch(1000.0, 100.0);
        assert_eq!(window, 0.04);
        let mean = f64::from(duty.mean(512 << 10));
        assert!(window / 750e-9 * 100.0 / mean <= 1.01 * FLOOD, "{mean}");
        // One for each period where that is neither too few nor too many.
        let some = duty.mean(4 << 10);
        assert!((810..=820).contains(&some), "{some}");
        let (duty, _, bytes) = watch(1e6, 1000.0);
        let samples = bytes / f64::from(duty.mean(512 << 10));
        assert!((190.0..=201.0).contains(&samples), "{samples} samples a window");
    }

    /// One window of a program that began to allocate all the time is paid for before the next.
    #[test]
    fn what_a_window_cost_is_paid_for() {
        let mut duty = Duty::new(0.01, 750e-9, 7);
        for _ in 0..200 {
            duty.learn(Windows {
                wall: 0.04,
                ..Windows::default()
            });
            assert!(duty.pay(0.0, 0.2, 1));
        }
        assert_eq!(duty.window(), LONGEST);
        duty.learn(Windows {
            hits: 50_000.0,
            cpu: 0.04,
            wall: 0.04,
            ..Windows::default()
        });
        let mut time = 0.0;
        while !duty.pay(0.1, 0.1, 1) {
            time += 0.1;
        }
        // 37.5 ms by a hundredth of a CPU, but for what one window may cost.
        assert!((3.2..=3.75).contains(&time), "{time}");
    }
}
