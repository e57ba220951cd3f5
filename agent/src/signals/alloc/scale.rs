//! What windows say about the whole.
//!
//! Totals need what the program did for itself in windows, beside the hits: its CPU time there without what hits and samples
//! cost. For a program that hardly does anything but allocate that is a fifth of it, known five times worse than the cost of a
//! hit. It did no more than in as much time elsewhere, which is all of it where its pauses have room for the hits.

/// Seconds that a sample takes from the program beside its hit, the walk of its stack above all: 0.24 and 0.46 us for stacks of six
/// frames (regressions over the windows of two runs of a program that does nothing but allocate, 2026-11-29, whose first windows had a
/// sample for two of three hits; where all windows have about as few, regressions tell nothing).
pub(super) const SAMPLE_COST: f64 = 0.35e-6;
/// How far the cost of a hit may be from what was calibrated: caches and branches are another program's.
const UNSURE: f64 = 0.1;
/// Smallest share of a window's CPU time that a program is taken to have had for itself: below it, what a hit costs would have
/// to be known better than it is.
const OWN_LEAST: f64 = 0.02;
/// Share of a window's time from which on the program is busy in it, so that what hits take is missing there.
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
    fn add(&mut self, other: Self) {
        self.hits += other.hits;
        self.missed += other.missed;
        self.samples += other.samples;
        self.cpu += other.cpu;
        self.wall += other.wall;
        self.bytes += other.bytes;
    }

    /// Less is known of what is longer ago.
    fn fade(&mut self) {
        (self.hits, self.samples) = (self.hits * KEPT, self.samples * KEPT);
        (self.cpu, self.wall) = (self.cpu * KEPT, self.wall * KEPT);
    }

    /// CPU seconds without the time of hits and samples.
    fn own(self, hit_cost: f64) -> f64 {
        let taken = self.hits * hit_cost + self.samples * SAMPLE_COST;
        (self.cpu - taken).max(OWN_LEAST * self.cpu)
    }
}

/// Windows of a process, those in which it was busy apart: of a program that is so at times, the others say nothing of these.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Seen {
    busy: Windows,
    others: Windows,
}

impl Seen {
    /// Adds a window.
    pub fn add(&mut self, window: Windows) {
        if window.cpu < BUSY * window.wall {
            self.others.add(window);
        } else {
            self.busy.add(window);
        }
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> Windows {
        let mut all = self.busy;
        all.add(self.others);
        all
    }
}

/// How windows relate to the whole.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scale {
    seen: Seen,
    /// CPU seconds and seconds outside of windows.
    outside: (f64, f64),
}

impl Scale {
    /// A tick of `wall` seconds ended, in which the process had `cpu` seconds, with these windows: how much of the whole there is
    /// for each part that was seen in them.
    pub fn tick(&mut self, seen: Seen, cpu: f64, wall: f64, hit_cost: f64) -> f64 {
        self.seen.busy.fade();
        self.seen.others.fade();
        self.seen.busy.add(seen.busy);
        self.seen.others.add(seen.others);
        let windows = seen.all();
        let rest = ((cpu - windows.cpu).max(0.0), (wall - windows.wall).max(0.0));
        self.outside = (self.outside.0 * KEPT + rest.0, self.outside.1 * KEPT + rest.1);
        let share = |own: f64, of: Windows| (own / of.cpu.max(1e-9)).clamp(OWN_LEAST, 1.0);
        let busy = share(self.seen.busy.own(hit_cost), self.seen.busy);
        let others = share(self.own_of_others(hit_cost), self.seen.others);
        let own = seen.busy.cpu * busy + seen.others.cpu * others;
        if own > 0.0 { (rest.0 + own) / own } else { 0.0 }
    }

    /// CPU seconds that the program had for itself where it was not busy: as many as in the same time elsewhere, as far as the
    /// cost of a hit may be that wrong.
    fn own_of_others(&self, hit_cost: f64) -> f64 {
        let (others, (cpu, wall)) = (self.seen.others, self.outside);
        let least = others.own(hit_cost * (1.0 + UNSURE));
        let most = others.own(hit_cost * (1.0 - UNSURE));
        if wall > 0.0 {
            (cpu / wall * others.wall).clamp(least, most)
        } else {
            others.own(hit_cost)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(windows: &[Windows]) -> Seen {
        let mut seen = Seen::default();
        windows.iter().for_each(|window| seen.add(*window));
        seen
    }

    /// A program that pauses does as much in windows as elsewhere, even if the cost of a hit is wrong.
    #[test]
    fn pauses_make_up_for_the_hits() {
        for hit_cost in [690e-9, 750e-9, 825e-9] {
            let mut scale = Scale::default();
            let window = Windows {
                hits: 10_000.0,
                // 1 ms of its own in a tenth of a second, and 7.5 ms for hits.
                cpu: 0.0085,
                wall: 0.1,
                bytes: 1e6,
                ..Windows::default()
            };
            let found = scale.tick(seen(&[window]), 0.0085 + 0.009, 1.0, hit_cost);
            assert!((found - 10.0).abs() < 1e-9, "{found}");
        }
    }

    /// A second thread does a third of the work, in turns with the first: there are pauses, but no room for hits in them.
    #[test]
    fn a_program_that_waits_for_itself_does_less_in_windows() {
        let mut scale = Scale::default();
        let window = Windows {
            hits: 1000.0,
            // A thousand times 0.2 us and a hit, and waits.
            cpu: 0.00095,
            wall: 0.00130,
            ..Windows::default()
        };
        // Elsewhere three quarters of the time are on the CPU.
        let found = scale.tick(seen(&[window]), 0.00095 + 0.75, 1.0013, 750e-9);
        let truth = (0.75 + 0.0002) / 0.0002;
        // A tenth of the cost of hits may be taken for its own.
        assert!((0.7..=1.01).contains(&(found / truth)), "{found} of {truth}");
    }

    /// Four seconds of nothing but allocations after a while of nothing: windows of the while say nothing of them.
    #[test]
    fn a_program_that_begins_to_be_busy_is_not_one_that_pauses() {
        let mut scale = Scale::default();
        let idle = Windows {
            wall: 0.04,
            ..Windows::default()
        };
        scale.tick(seen(&[idle; 40]), 0.0, 10.0, 450e-9);
        let busy = Windows {
            hits: 4000.0,
            // A quarter of it is its own.
            cpu: 0.0024,
            wall: 0.0025,
            ..Windows::default()
        };
        let (windows, own) = (seen(&[[idle; 20], [busy; 20]].concat()), 20.0 * 0.0006);
        let found = scale.tick(windows, 20.0 * 0.0024 + 4.0, 10.0, 450e-9);
        let truth = (own + 4.0) / own;
        assert!((found / truth - 1.0).abs() < 0.01, "{found} of {truth}");
    }
}
