//! Statistics of paired rounds: interquartile mean and bootstrap interval.

use serde::Serialize;

/// Resamples of a bootstrap; more change the third digit of an interval's ends no more.
const RESAMPLES: usize = 2_000;

/// A value with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Estimate {
    /// The value itself.
    pub(crate) value: f64,
    /// Lower end of the interval.
    pub(crate) low: f64,
    /// Upper end.
    pub(crate) high: f64,
}

impl Estimate {
    /// The interquartile mean of independent rounds; `None` when there are none.
    pub(crate) fn of(rounds: &[f64]) -> Option<Self> {
        Self::bootstrap(rounds, interquartile_mean)
    }

    /// Their mean, for what comes in few large pieces.
    pub(crate) fn of_mean(rounds: &[f64]) -> Option<Self> {
        Self::bootstrap(rounds, |values| {
            (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
        })
    }

    fn bootstrap(rounds: &[f64], statistic: fn(&[f64]) -> Option<f64>) -> Option<Self> {
        let value = statistic(rounds)?;
        // The same rounds always give the same interval.
        let mut random = Random::new(rounds.len() as u64);
        let mut resample = vec![0.0; rounds.len()];
        let mut values: Vec<f64> = (0..RESAMPLES)
            .filter_map(|_| {
                for slot in &mut resample {
                    *slot = rounds[random.below(rounds.len())];
                }
                statistic(&resample)
            })
            .collect();
        values.sort_by(f64::total_cmp);
        let at = |share: f64| values[((values.len() - 1) as f64 * share).round() as usize];
        Some(Self {
            value,
            low: at(0.025),
            high: at(0.975),
        })
    }

    /// Whether the interval holds a value.
    pub(crate) fn holds(&self, value: f64) -> bool {
        (self.low..=self.high).contains(&value)
    }
}

/// Mean of the middle half. A quartile that falls inside an observation takes its share of it, so that every number of
/// rounds is treated alike.
pub(crate) fn interquartile_mean(values: &[f64]) -> Option<f64> {
    if values.is_empty() {
        return None;
    }
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let quarter = sorted.len() as f64 / 4.0;
    let (first, last) = (quarter, sorted.len() as f64 - quarter);
    let mut sum = 0.0;
    for (at, value) in sorted.iter().enumerate() {
        let inside = (last.min(at as f64 + 1.0) - first.max(at as f64)).max(0.0);
        sum += value * inside;
    }
    Some(sum / (last - first))
}

/// SplitMix64: small, and good enough to shuffle and to resample.
pub(crate) struct Random(u64);

impl Random {
    /// Starts a sequence.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which must not be 0. The bias of the remainder is 2⁻⁵⁰ for the bounds used here.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// Puts a slice in random order.
    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Estimate, Random, interquartile_mean};

    #[test]
    fn the_mean_of_the_middle_half() {
        assert_eq!(interquartile_mean(&[]), None);
        assert_eq!(interquartile_mean(&[3.0]), Some(3.0));
        assert_eq!(interquartile_mean(&[1.0, 2.0]), Some(1.5));
        assert_eq!(interquartile_mean(&[100.0, 2.0, 4.0, -50.0]), Some(3.0));
        // Five values: the middle one whole, its neighbours for three quarters each.
        let mean = interquartile_mean(&[0.0, 1.0, 2.0, 5.0, 1000.0]).unwrap();
        assert!((mean - (0.75 + 2.0 + 3.75) / 2.5).abs() < 1e-12, "{mean}");
    }

    /// Sum of uniform numbers: close to a normal distribution of mean 1 and standard deviation 0.05.
    fn noisy(random: &mut Random, count: usize) -> Vec<f64> {
        let mut uniform = || random.below(1 << 30) as f64 / f64::from(1 << 30);
        (0..count)
            .map(|_| 1.0 + 0.05 * ((0..12).map(|_| uniform()).sum::<f64>() - 6.0))
            .collect()
    }

    #[test]
    fn the_interval_covers_the_truth_nineteen_times_in_twenty() {
        let mut random = Random::new(7);
        let covered = (0..200)
            .filter(|_| Estimate::of(&noisy(&mut random, 40)).unwrap().holds(1.0))
            .count();
        // 190 expected; percentile intervals of 40 rounds are a bit narrow.
        assert!((178..=198).contains(&covered), "{covered} of 200");
    }

    #[test]
    fn the_interval_is_as_wide_as_the_noise_says() {
        let estimate = Estimate::of(&noisy(&mut Random::new(1), 400)).unwrap();
        // Standard error of the interquartile mean of normal data: about 1.09 σ / √n.
        let want = 2.0 * 1.96 * 1.09 * 0.05 / 20.0;
        let got = estimate.high - estimate.low;
        assert!((got / want - 1.0).abs() < 0.25, "{got} against {want}");
    }

    #[test]
    fn outliers_do_not_move_it_and_constants_have_no_width() {
        let mut rounds = vec![2.0; 20];
        assert_eq!(
            Estimate::of(&rounds).unwrap(),
            Estimate {
                value: 2.0,
                low: 2.0,
                high: 2.0
            }
        );
        rounds.extend([50.0, 0.001]);
        let estimate = Estimate::of(&rounds).unwrap();
        assert!(
            (estimate.value - 2.0).abs() < 1e-9 && estimate.high < 2.1,
            "{estimate:?}"
        );
        assert!(!estimate.holds(1.0));
    }

    #[test]
    fn a_shuffle_reaches_every_order() {
        let mut random = Random::new(3);
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..200 {
            let mut items = [0, 1, 2];
            random.shuffle(&mut items);
            seen.insert(items);
        }
        assert_eq!(seen.len(), 6);
    }
}
