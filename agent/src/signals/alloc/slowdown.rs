//! How many times slower a program runs with probes at every allocation.
//!
//! What probes cost is known by calibration to some ten per cent, and so is what they leave of the program's CPU time, which is no
//! answer where they take nearly all of it. So the CPU clock is asked: the share of its samples that met the program outside of
//! probes is the share of time that it would need without them.

/// Samples by calibration alone, which the clock's own add to.
const ASSUMED: f64 = 2.0;
/// Samples after which older ones count half: the program may do something else by then.
const MOST: f64 = 4000.0;

/// CPU seconds after which a clock that has not met the program is taken for one that does not run.
const NO_CLOCK: f64 = 2.0;

/// What the clock has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Slowdown {
    /// CPU seconds of the program.
    cpu: f64,
    samples: f64,
    /// Those outside of probes.
    own: f64,
}

impl Slowdown {
    /// Adds samples, those of them that met a probe, and the CPU seconds in which they came.
    pub fn add(&mut self, samples: u64, probes: u64, cpu: f64) {
        self.cpu += cpu;
        self.samples += samples as f64;
        self.own += samples.saturating_sub(probes) as f64;
        if self.samples > MOST {
            self.samples /= 2.0;
            self.own /= 2.0;
        }
    }

    /// How many times slower it runs, as far as is known; `calibrated` is what calibration says.
    #[must_use]
    pub fn told(self, calibrated: f64) -> f64 {
        (self.samples + ASSUMED) / (self.own + ASSUMED / calibrated.max(1.0))
    }

    /// How many times slower it runs at least, which is wrong once in twenty times; what calibration says where there is no clock.
    #[must_use]
    pub fn at_least(self, calibrated: f64) -> f64 {
        if self.samples == 0.0 {
            return if self.cpu > NO_CLOCK { calibrated } else { 1.0 };
        }
        let own = self.own + 1.0 + 2.0 * (self.own + 1.0).sqrt();
        (self.samples / own).max(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_outside_of_probes_tell_the_slowdown() {
        let mut slowdown = Slowdown::default();
        assert_eq!(slowdown.told(3.0), 3.0);
        assert_eq!(slowdown.at_least(3.0), 1.0);
        slowdown.add(1000, 980, 50.0);
        assert!((slowdown.told(3.0) - 48.5).abs() < 0.1, "{}", slowdown.told(3.0));
        let least = slowdown.at_least(3.0);
        assert!((33.0..34.0).contains(&least), "{least}");
    }

    #[test]
    fn few_samples_prove_little() {
        let mut slowdown = Slowdown::default();
        slowdown.add(29, 29, 1.5);
        assert!(slowdown.at_least(99.0) < 10.0);
        slowdown.add(2, 2, 0.1);
        assert!(slowdown.at_least(99.0) > 10.0);
    }

    #[test]
    fn without_a_clock_calibration_is_believed() {
        let mut slowdown = Slowdown::default();
        slowdown.add(0, 0, 1.9);
        assert_eq!(slowdown.at_least(7.0), 1.0);
        slowdown.add(0, 0, 1.0);
        assert_eq!(slowdown.at_least(7.0), 7.0);
    }

    #[test]
    fn what_was_long_ago_counts_less() {
        let mut slowdown = Slowdown::default();
        for _ in 0..100 {
            slowdown.add(100, 0, 1.0);
        }
        for _ in 0..200 {
            slowdown.add(100, 90, 1.0);
        }
        let told = slowdown.told(1.0);
        assert!((9.5..10.0).contains(&told), "{told}");
    }
}
