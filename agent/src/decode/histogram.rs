//! Histograms of durations.

/// Upper bounds in nanoseconds of the duration histograms' buckets: powers of two from 2^10 (1.02 µs) to 2^36
/// (68.7 s); the last bucket has no bound.
pub const HISTOGRAM_BUCKETS: usize = 28;

type Buckets = [u64; HISTOGRAM_BUCKETS];

/// A histogram of durations. Without observations it takes no room: a program has a dozen of them, brief ones use few, and
/// of those there can be thousands in a tick.
#[derive(Clone, Debug, Default)]
pub struct Histogram {
    buckets: Option<Box<Buckets>>,
    /// Sum of all observed durations in nanoseconds.
    pub sum_ns: u64,
}

impl Histogram {
    /// With these observations.
    #[must_use]
    pub fn new(buckets: Buckets, sum_ns: u64) -> Self {
        let any = buckets.iter().any(|&count| count > 0);
        Self {
            buckets: any.then(|| Box::new(buckets)),
            sum_ns,
        }
    }

    /// Observations per bucket, not cumulated; bucket `i` holds durations up to `2^(10+i)` ns.
    #[must_use]
    pub fn buckets(&self) -> &Buckets {
        const NONE: &Buckets = &[0; HISTOGRAM_BUCKETS];
        self.buckets.as_deref().unwrap_or(NONE)
    }

    /// The same, to be changed.
    pub fn buckets_mut(&mut self) -> &mut Buckets {
        self.buckets.get_or_insert_default()
    }

    /// Something was observed.
    #[must_use]
    pub fn any(&self) -> bool {
        self.buckets().iter().any(|&count| count > 0)
    }

    /// Adds another's observations.
    pub fn add(&mut self, other: &Self) {
        if let Some(buckets) = &other.buckets {
            for (sum, more) in self.buckets_mut().iter_mut().zip(&**buckets) {
                *sum = sum.saturating_add(*more);
            }
        }
        self.sum_ns = self.sum_ns.saturating_add(other.sum_ns);
    }
}

impl PartialEq for Histogram {
    fn eq(&self, other: &Self) -> bool {
        self.sum_ns == other.sum_ns && self.buckets() == other.buckets()
    }
}

impl Eq for Histogram {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_observed_takes_no_room_and_is_equal_to_zeros() {
        let mut sum = Histogram::default();
        sum.add(&Histogram::new([0; HISTOGRAM_BUCKETS], 5));
        assert!(sum.buckets.is_none() && !sum.any() && sum.sum_ns == 5);
        let mut zeros = sum.clone();
        zeros.buckets_mut()[3] = 0;
        assert_eq!(zeros, sum);
        zeros.buckets_mut()[3] = u64::MAX - 1;
        assert_ne!(zeros, sum);
        sum.add(&zeros);
        sum.add(&zeros);
        assert_eq!((sum.buckets()[3], sum.sum_ns, sum.any()), (u64::MAX, 15, true));
    }
}
