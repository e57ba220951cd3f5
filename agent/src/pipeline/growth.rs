//! Net growth of memory by code: what the reading thread tells of it, and what the naming one keeps.

use std::sync::Arc;

use super::clock::monotonic_ns;
use crate::aggregate::GrownBytes;
use crate::attribute::{Service, StackSample};
use crate::decode::harvest::unix_ns;
use crate::decode::model::{Growth, Range};
use crate::host::Host;
use crate::signals::growth::{Held, Touched, touched};
use crate::symbolize::{SharedStack, SymbolizedSample};

/// What happened in a tick.
#[derive(Debug, Default)]
pub(super) struct GrowthNews {
    touched: Vec<Touched>,
    pub(super) ranges: Vec<Range>,
    /// Those are all that were noted until then.
    pub(super) known_ns: u64,
    pub(super) exited: Vec<u32>,
    /// Samples whose address could not be told: net growth lacks them.
    unlocated: u64,
}

impl GrowthNews {
    pub(super) fn sampled(&mut self, host: &Host, index: usize, sample: &StackSample, growth: &Growth) {
        match touched(host, index, sample, growth) {
            Some(touched) => self.touched.push(touched),
            None => self.unlocated += 1,
        }
    }
}

/// What is still there of all growth.
#[derive(Default)]
pub(super) struct NetGrowth {
    held: Held<(Arc<Service>, SharedStack)>,
    /// All samples whose address could not be told.
    pub(super) unlocated: u64,
}

impl NetGrowth {
    /// Takes a tick's news; `samples` are all of its samples.
    pub(super) fn tick(&mut self, host: &Host, news: GrowthNews, samples: &[SymbolizedSample]) {
        for touched in &news.touched {
            if let Some(sample) = samples.get(touched.index) {
                let whose = (Arc::clone(&sample.service), Arc::clone(&sample.stack));
                self.held.add(touched, sample.weight, whose);
            }
        }
        self.unlocated += news.unlocated;
        self.held.apply(&news.ranges);
        for pid in news.exited {
            self.held.exited(pid);
        }
        self.held.check(host, news.known_ns, monotonic_ns());
    }

    /// What is there.
    pub(super) fn all(&self) -> Vec<GrownBytes> {
        let boot_unix_ns = unix_ns().saturating_sub(monotonic_ns());
        let each = self
            .held
            .all()
            .map(|((service, stack), bytes, at_ns)| GrownBytes {
                service: Arc::clone(service),
                stack: Arc::clone(stack),
                bytes,
                at_unix_ns: boot_unix_ns + at_ns,
            });
        each.collect()
    }
}
