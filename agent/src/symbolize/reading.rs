//! How much CPU time reading files may take, all of them together, and what waits for it.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::SymbolizerConfig;
use super::maps::Mapping;
use super::module::Via;

/// Most addresses of a file that wait to be looked up.
const MAX_WAITING: usize = 4096;

/// Addresses of a file that are to be looked up together.
#[derive(Debug)]
pub(super) struct Wanted {
    pid: u32,
    mapping: Mapping,
    pub(super) addresses: BTreeSet<u64>,
    /// The batch that wanted them first.
    pub(super) since: u64,
}

impl Wanted {
    pub(super) fn new(via: Via<'_>, since: u64) -> Self {
        Self {
            pid: via.pid,
            mapping: via.mapping.clone(),
            addresses: BTreeSet::new(),
            since,
        }
    }

    pub(super) fn via(&self) -> Via<'_> {
        Via {
            pid: self.pid,
            alive: true,
            mapping: &self.mapping,
        }
    }

    pub(super) fn add(&mut self, address: u64) {
        if self.addresses.len() < MAX_WAITING {
            self.addresses.insert(address);
        }
    }
}

/// A share of the time that passes, saved up to a limit. What was begun is finished, so there may be a debt.
#[derive(Debug)]
pub(super) struct Reading {
    /// Seconds of CPU time left.
    left: f64,
    at: Instant,
}

impl Reading {
    pub(super) fn new(config: &SymbolizerConfig) -> Self {
        Self {
            left: config.read_burst.as_secs_f64(),
            at: Instant::now(),
        }
    }

    /// Whether one more file may be read.
    pub(super) fn allowed(&mut self, config: &SymbolizerConfig, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = now;
        self.left = (self.left + passed * config.read_share).min(config.read_burst.as_secs_f64());
        self.left > 0.0
    }

    /// Takes off what it took.
    pub(super) fn spend(&mut self, spent: Duration) {
        self.left -= spent.as_secs_f64();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_of_the_time_is_spent() {
        let config = SymbolizerConfig {
            read_burst: Duration::from_secs(2),
            read_share: 0.1,
            ..SymbolizerConfig::default()
        };
        let mut reading = Reading::new(&config);
        let begin = reading.at;
        // As much as it may, each time half a second.
        let mut spent = 0.0;
        for tick in 0..100 {
            while reading.allowed(&config, begin + Duration::from_secs(tick)) {
                reading.spend(Duration::from_millis(500));
                spent += 0.5;
            }
        }
        assert!(
            (11.5..=12.5).contains(&spent),
            "{spent} s of 2 s and a tenth of 99 s"
        );
        // No more is saved than the burst.
        assert!(reading.allowed(&config, begin + Duration::from_secs(100_000)));
        assert!((reading.left - 2.0).abs() < 1e-9);
    }
}
