//! How much of a stack lives, in how many objects, and for how long.

use crate::decode::model::{Living, StackDetail};

/// A sum of live allocations, all of them estimates: each sample counts as what it stands for.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Lives {
    /// Bytes.
    pub bytes: f64,
    /// Objects.
    pub objects: f64,
    youngest_ns: Option<u64>,
    oldest_ns: u64,
    /// Ages, each as often as it has bytes.
    byte_seconds: f64,
}

/// Age of an allocation as a class: class `n` is younger than `2^n` seconds and not of a lower class.
#[must_use]
pub fn age_class(age_ns: u64) -> u8 {
    let seconds = age_ns / 1_000_000_000;
    (u64::BITS - seconds.leading_zeros()) as u8
}

impl Lives {
    /// Adds what has an age.
    pub fn add(&mut self, bytes: f64, objects: f64, age_ns: u64) {
        self.bytes += bytes;
        self.objects += objects;
        self.youngest_ns = Some(self.youngest_ns.map_or(age_ns, |youngest| youngest.min(age_ns)));
        self.oldest_ns = self.oldest_ns.max(age_ns);
        self.byte_seconds += bytes * age_ns as f64 / 1e9;
    }

    /// What a sample of this class says beside its bytes.
    #[must_use]
    pub fn detail(&self, class: u8) -> StackDetail {
        let hundredths = |ns: u64| u32::try_from(ns / 10_000_000).unwrap_or(u32::MAX);
        let mean = 100.0 * self.byte_seconds / self.bytes.max(1e-9);
        StackDetail::Live(Living {
            class,
            objects: (100.0 * self.objects).round() as u64,
            youngest: hundredths(self.youngest_ns.unwrap_or(0)),
            mean: mean.round() as u32,
            // Not younger than it is.
            oldest: hundredths(self.oldest_ns.saturating_add(9_999_999)),
        })
    }
}

/// What a sample says of so many hundredths of objects and these ages: youngest, mean, oldest.
#[cfg(test)]
pub(crate) fn living(class: u8, objects: u64, [youngest, mean, oldest]: [u32; 3]) -> StackDetail {
    StackDetail::Live(Living {
        class,
        objects,
        youngest,
        mean,
        oldest,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn ages_are_classes() {
        assert_eq!([0, 1, 3, 4, 900].map(|s| age_class(s * SECOND)), [0, 1, 2, 3, 10]);
    }

    #[test]
    fn the_mean_age_is_that_of_bytes() {
        let mut lives = Lives::default();
        lives.add(300.0, 3.0, 5 * SECOND + 1);
        lives.add(100.0, 10.4, 7 * SECOND);
        assert_eq!(lives.detail(3), living(3, 1_340, [500, 550, 700]));
        let mut one = Lives::default();
        one.add(1.0, 1.0, 5 * SECOND + 1);
        let StackDetail::Live(living) = one.detail(3) else {
            unreachable!()
        };
        assert_eq!((living.youngest, living.oldest), (500, 501));
    }
}
