//! How long probes may stay, and what windows say about the whole.
//!
//! A hit costs the same whatever the allocation is for, so the cost of a window is its hits times what one costs. Totals need
//! what the program did for itself in windows, beside the hits. A program that has pauses left in windows does the same there as
//! elsewhere in the same time. One that is busy all the time does less: what is left of its CPU time without the hits, which for
//! one that hardly does anything but allocate is a few per cent, known no better than the cost of a hit.

use std::time::Duration;

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
/// Seconds that a sample is taken to cost beside its hit: the walk of its stack, and its way to the agent. Assumed, not measured.
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
/// Part of what is known of windows that the next one replaces, but for the first ones, which replace more.
const LEARNED: f64 = 0.125;
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
    /// Hits that came too early or too late to count: it takes milliseconds to make all breakpoints.
    pub missed: f64,
    /// Samples.
    pub samples: f64,
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
        self.missed += other.missed;
        self.samples += other.samples;
        self.cpu += other.cpu;
        self.wall += other.wall;
        self.bytes += other.bytes;
    }

    /// What they cost the program, in seconds, where a hit costs this.
    #[must_use]
    pub fn cost(self, hit_cost: f64) -> f64 {
        (self.hits + self.missed) * hit_cost + self.samples * SAMPLE_COST
    }

    /// CPU seconds without the time of hits and samples.
    fn own(self, hit_cost: f64) -> f64 {
        let taken = self.hits * hit_cost + self.samples * SAMPLE_COST;
        (self.cpu - taken).max(OWN_LEAST * self.cpu)
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
        (all.hits, all.samples) = (all.hits * KEPT, all.samples * KEPT);
        (all.cpu, all.wall) = (all.cpu * KEPT, all.wall * KEPT);
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
            size: 64.0,
            windows: 0.0,
            seed: seed | 1,
        }
    }

    /// Learns from a window.
    pub fn learn(&mut self, window: Windows) {
        let cost = window.cost(self.hit_cost);
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
    use super::*;

    /// Watches a program for so long, which runs for `busy` of its time (or all of it, where probes make it late) and allocates 64
    /// bytes `rate` times a second of that. Returns the share of its CPU time that was lost, what windows said of its bytes by what
    /// they were, the share of time in windows, and the samples.
    fn run(rate: f64, busy: f64, length: f64) -> (f64, f64, f64, f64) {
        let hit_cost = 750e-9;
        let mut scale = Scale::default();
        let mut duty = Duty::new(0.01, hit_cost, 7);
        let (mut lost, mut time) = (0.0, 0.0);
        let mut seen = Windows::default();
        while time < length {
            let window = duty.window().as_secs_f64();
            let mean = f64::from(duty.mean(512 << 10));
            let each = 1.0 / rate + hit_cost + 64.0 / mean * SAMPLE_COST;
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
            lost += now.cost(hit_cost);
            time += window;
            let mut passed = now.cpu;
            let mut wall = window;
            while !duty.pay(passed, wall, 1) || wall == window {
                let pause = duty.pause().as_secs_f64();
                (passed, wall) = (pause * busy, pause);
                time += pause;
            }
        }
        let own = (time - seen.wall) * busy + (seen.cpu - lost);
        let estimate = seen.hits * scale.tick(seen, (time - seen.wall) * busy + seen.cpu, time, hit_cost);
        (
            lost / (own + lost),
            estimate / (own * rate),
            seen.wall / time,
            seen.samples,
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

    /// A program that pauses does as much in windows as elsewhere, however wrong the cost of a hit is.
    #[test]
    fn pauses_make_up_for_the_hits() {
        for hit_cost in [500e-9, 1500e-9] {
            let mut scale = Scale::default();
            let windows = Windows {
                hits: 10_000.0,
                missed: 0.0,
                samples: 0.0,
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
