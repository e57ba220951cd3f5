//! Ratios with their uncertainty: interquartile mean and bootstrap interval.

/// Mean of the middle half: outliers of a shared machine count for nothing.
pub(crate) fn interquartile_mean(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let quarter = sorted.len() / 4;
    let middle = &sorted[quarter..sorted.len() - quarter];
    middle.iter().sum::<f64>() / middle.len().max(1) as f64
}

/// A figure and its 95 % interval.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub(crate) struct Estimate {
    pub(crate) value: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

impl Estimate {
    /// The interquartile mean of the values with the interval of 2,000 resamplings (percentile bootstrap).
    pub(crate) fn of(values: &[f64]) -> Self {
        let mut random = Random(0x9E37_79B9_7F4A_7C15);
        let mut means: Vec<f64> = (0..2000)
            .map(|_| {
                let drawn: Vec<f64> = values
                    .iter()
                    .map(|_| values[random.below(values.len())])
                    .collect();
                interquartile_mean(&drawn)
            })
            .collect();
        means.sort_by(f64::total_cmp);
        Self {
            value: interquartile_mean(values),
            low: means[means.len() / 40],
            high: means[means.len() - 1 - means.len() / 40],
        }
    }

    /// Whether the interval holds a value.
    pub(crate) fn holds(self, value: f64) -> bool {
        (self.low..=self.high).contains(&value)
    }
}

/// xorshift64*, good enough to shuffle and to resample; fixed seeds make a run's intervals repeatable.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32;
        (high as usize * bound) >> 32
    }

    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outliers_do_not_move_the_middle() {
        assert_eq!(interquartile_mean(&[1.0, 2.0, 3.0, 1000.0]), 2.5);
        assert_eq!(interquartile_mean(&[5.0]), 5.0);
    }

    #[test]
    fn the_interval_covers_the_truth_as_often_as_it_says() {
        let mut random = Random(7);
        let covered = (0..200)
            .filter(|_| {
                // Sums of twelve uniform numbers: nearly normal around 6.
                let values: Vec<f64> = (0..40)
                    .map(|_| (0..12).map(|_| random.below(1000) as f64 / 999.0).sum())
                    .collect();
                Estimate::of(&values).holds(6.0)
            })
            .count();
        // 95 % of 200, four standard errors wide (the percentile bootstrap is a little narrow at 40 values).
        assert!((175..=200).contains(&covered), "{covered} of 200");
    }
}
