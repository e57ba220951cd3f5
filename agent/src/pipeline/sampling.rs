//! How often things are sampled, and the samples of open connections and listening sockets.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::clock::{monotonic_ns, thread_cpu};
use crate::decode::listeners::Listeners;
use crate::decode::model::Tick;
use crate::decode::sockets::Sockets;
use crate::load::Loaded;
use crate::signals::conn::{Pace, Pools, Queues, UnixConnections};

/// The mean of forecast waiting between two samples (in units of 1024 ns) that brings the rate of samples to the
/// budget; `None` while it is near enough. At most a factor of four a tick, between 1 ms and 10 s.
pub(super) fn wait_mean(mean: u32, rate: f64, budget: f64) -> Option<u32> {
    let factor = (rate / budget).clamp(0.25, 4.0);
    if (0.7..1.4).contains(&factor) {
        return None;
    }
    let wanted = (f64::from(mean) * factor).clamp(977.0, 9_765_625.0) as u32;
    (wanted != mean).then_some(wanted)
}

/// When samples of one kind are taken, and how often that failed.
struct Paced {
    what: &'static str,
    pace: Pace,
    failures: u64,
}

impl Paced {
    fn new(what: &'static str, mean: Duration, share: f64) -> Self {
        Self {
            what,
            pace: Pace::new(Instant::now(), mean, share),
            failures: 0,
        }
    }

    /// Takes a sample by `read`, which returns of how many things there are.
    fn sample(&mut self, read: impl FnOnce() -> Result<usize>) {
        let began = thread_cpu();
        let count = read().unwrap_or_else(|error| {
            if self.failures == 0 {
                tracing::warn!(%error, "{} cannot be read", self.what);
            }
            self.failures += 1;
            0
        });
        let cost = thread_cpu().saturating_sub(began);
        tracing::debug!(count, ?cost, "sampled {}", self.what);
        self.pace.took(Instant::now(), cost, count == 0);
    }
}

/// Samples of open connections.
pub(super) struct PoolSampling {
    paced: Paced,
    sockets: Sockets,
    pools: Pools,
    unix: UnixConnections,
}

impl PoolSampling {
    pub(super) fn new() -> Self {
        Self {
            paced: Paced::new("open connections", Duration::from_millis(25), 0.002),
            sockets: Sockets::default(),
            pools: Pools::default(),
            unix: UnixConnections::default(),
        }
    }

    /// When the next sample is due.
    pub(super) fn next_turn(&self) -> Instant {
        self.paced.pace.next()
    }

    /// Takes a sample if one is due.
    pub(super) fn turn(&mut self, loaded: &mut Loaded, now: Instant) {
        if self.paced.pace.due(now) {
            self.sample(loaded);
        }
    }

    fn sample(&mut self, loaded: &mut Loaded) {
        self.paced.sample(|| {
            let mut sample = self.pools.sample(monotonic_ns());
            let count = self.sockets.read(loaded, |socket| sample.add(socket))?;
            sample.end();
            Ok(count)
        });
    }

    /// Takes one more sample, so that gauges are as old as the tick's other numbers, and adds what is known of pools.
    pub(super) fn finish(&mut self, loaded: &mut Loaded, tick: &mut Tick) {
        self.sample(loaded);
        self.pools.finish(tick);
        self.unix.finish(tick);
    }

    /// What was lost, by reason.
    pub(super) fn lost(&self) -> [(&'static str, u64); 2] {
        [
            ("unreadable", self.paced.failures),
            ("malformed", self.sockets.malformed),
        ]
    }
}

/// Samples of listening sockets: fewer things change there, and so more rarely.
pub(super) struct ListenSampling {
    paced: Paced,
    listeners: Listeners,
    queues: Queues,
}

impl ListenSampling {
    pub(super) fn new() -> Self {
        Self {
            paced: Paced::new("listening sockets", Duration::from_millis(250), 0.0005),
            listeners: Listeners::default(),
            queues: Queues::default(),
        }
    }

    /// When the next sample is due.
    pub(super) fn next_turn(&self) -> Instant {
        self.paced.pace.next()
    }

    /// Takes a sample if one is due.
    pub(super) fn turn(&mut self, loaded: &mut Loaded, now: Instant) {
        if self.paced.pace.due(now) {
            self.sample(loaded);
        }
    }

    fn sample(&mut self, loaded: &mut Loaded) {
        self.paced.sample(|| {
            let sockets = self.listeners.read(loaded)?;
            let count = sockets.len();
            self.queues.sample(monotonic_ns(), sockets);
            Ok(count)
        });
    }

    /// Takes one more sample, and adds what is known of accept queues.
    pub(super) fn finish(&mut self, loaded: &mut Loaded, tick: &mut Tick) {
        self.sample(loaded);
        self.queues.finish(tick);
    }

    /// What was lost, by reason.
    pub(super) fn lost(&self) -> [(&'static str, u64); 2] {
        [
            ("unreadable", self.paced.failures),
            ("malformed", self.listeners.malformed),
        ]
    }
}
