//! From the calls that were counted in windows to all calls.

use crate::decode::model::{Cause, Totals};

/// Most of a program's CPU time in a window that its probes are taken to have cost. What this makes up for is one over what is
/// left, and the calibrated cost is that of another loop: 186 ns a call where a loop of `getppid` was slowed by about 158
/// (its rate inside of windows against that of the whole run). Up to 0.8 such a loop read 1.7 to 1.8 times its calls.
const MOST: f64 = 0.6;

/// How system calls were counted in a tick.
#[derive(Clone, Copy, Debug)]
pub struct Windows {
    /// Share of the tick during which calls were counted; 1 is all of it.
    pub ratio: f64,
    /// Calibrated nanoseconds that counting adds to a call.
    pub ns_per_call: f64,
}

impl Windows {
    /// Everything was counted.
    pub const ALL: Self = Self {
        ratio: 1.0,
        ns_per_call: 0.0,
    };

    /// What each call counted in the windows stands for, in a program with these `totals` of a tick of which `calls` were counted.
    ///
    /// A program that waits for nobody makes fewer calls in a window than outside, because counting takes its time: by the
    /// share of its CPU time that went to the probes. One with time to spare makes as many. Between the two, the share of its
    /// threads' time in which they had something to do decides.
    pub(super) fn factor(self, totals: &Totals, calls: u64) -> f64 {
        if self.ratio >= 1.0 {
            return 1.0;
        }
        let ratio = self.ratio.max(1e-6);
        let cpu = (totals.cpu_user_ns + totals.cpu_system_ns) as f64;
        let ready = cpu + totals.wait_ns[Cause::Runqueue.index()] as f64;
        let all = cpu + totals.wait_ns.iter().sum::<u64>() as f64;
        let probes = calls as f64 * self.ns_per_call / (cpu * ratio).max(1.0);
        let slowed = (probes * ready / all.max(1.0)).min(MOST);
        1.0 + (1.0 - ratio) / ratio / (1.0 - slowed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tick of a second, a tenth of it counted, at 200 ns a call.
    const TENTH: Windows = Windows {
        ratio: 0.1,
        ns_per_call: 200.0,
    };

    fn totals(cpu_ms: u64, idle_ms: u64) -> Totals {
        let mut totals = Totals {
            cpu_system_ns: cpu_ms * 1_000_000,
            ..Totals::default()
        };
        totals.wait_ns[Cause::Network.index()] = idle_ms * 1_000_000;
        totals
    }

    fn all_calls(windows: Windows, totals: &Totals, counted: u64) -> f64 {
        windows.factor(totals, counted) * counted as f64
    }

    #[test]
    fn what_was_counted_whole_is_not_scaled() {
        assert!((Windows::ALL.factor(&totals(1000, 0), 5_000_000) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn a_loop_is_faster_outside_of_windows() {
        // Calls of 800 ns: a million a second in windows, 1.25 million outside.
        let read = all_calls(TENTH, &totals(1000, 0), 100_000);
        assert!((read - (100_000.0 + 0.9 * 1_250_000.0)).abs() < 1.0, "{read}");
    }

    #[test]
    fn a_program_with_time_to_spare_is_not() {
        // Busy for a hundredth of the time.
        let read = all_calls(TENTH, &totals(10, 990), 1_000);
        assert!((read / 10_000.0 - 1.0).abs() < 0.01, "{read}");
    }

    #[test]
    fn a_cost_that_cannot_be_true_has_a_bound() {
        let read = all_calls(TENTH, &totals(1000, 0), 10_000_000);
        assert!((read - (1e7 + 0.9 * 2.5e8)).abs() < 1.0, "{read}");
        let none = all_calls(TENTH, &totals(0, 0), 7);
        assert!(none.is_finite() && none >= 70.0, "{none}");
    }
}
