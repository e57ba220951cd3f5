//! One sample of all open connections.

use std::collections::HashMap;
use std::time::Duration;

use super::{Key, Pools, key};
use crate::decode::model::{AGES, PoolTotals, SlotId};
use crate::decode::sockets::Socket;

/// A connection that has moved no data for this long is quiet.
const QUIET: Duration = Duration::from_secs(60);

/// How long a jiffy is: the kernel does not say, but both clocks are read.
#[derive(Default)]
pub(super) struct Clock {
    first: Option<(u64, u32)>,
    jiffy_ns: u64,
}

impl Clock {
    fn read(&mut self, now_ns: u64, jiffies: u32) {
        let (first_ns, first) = *self.first.get_or_insert((now_ns, jiffies));
        let passed = jiffies.wrapping_sub(first);
        // Every rate that kernels have is told from the others by then.
        if passed >= 50 {
            self.jiffy_ns = now_ns.saturating_sub(first_ns) / u64::from(passed);
        }
    }

    fn quiet(&self, jiffies: u32) -> bool {
        u128::from(jiffies) * u128::from(self.jiffy_ns) >= QUIET.as_nanos()
    }
}

pub(super) fn age_class(age_ns: u64) -> usize {
    let ms = (age_ns / 1_000_000).saturating_sub(1);
    ((u64::BITS - ms.leading_zeros()) as usize).min(AGES - 1)
}

/// What one sample says of a pool.
#[derive(Clone, Copy, Default)]
pub(super) struct Now {
    open: u64,
    busy: u64,
    quiet: u64,
    ages: [u64; AGES],
    ages_ns: u128,
    oldest_ns: u64,
}

impl Now {
    fn tell(self, pool: &mut PoolTotals) {
        (pool.open, pool.busy, pool.quiet) = (self.open, self.busy, self.quiet);
        (pool.ages, pool.ages_ns, pool.oldest_ns) = (self.ages, self.ages_ns, self.oldest_ns);
    }
}

/// A sample that is being taken. It counts once it has ended: one that breaks off says nothing.
pub struct Sample<'a> {
    pools: &'a mut Pools,
    now_ns: u64,
    now: HashMap<Key, Now>,
    /// Connections whose other end is not known yet.
    unknown: Vec<Socket>,
}

impl<'a> Sample<'a> {
    pub(super) fn new(pools: &'a mut Pools, now_ns: u64) -> Self {
        Self {
            pools,
            now_ns,
            now: HashMap::new(),
            unknown: Vec::new(),
        }
    }

    /// Takes an open connection. Only those whose other end is not known are kept: a host may have very many.
    pub fn add(&mut self, socket: &Socket) {
        if self.now.is_empty() && self.unknown.is_empty() {
            self.pools.clock.read(self.now_ns, socket.jiffies);
        }
        match self.pools.names.seen(socket) {
            None => self.unknown.push(*socket),
            other => self.count(socket, other),
        }
    }

    fn count(&mut self, socket: &Socket, other: Option<SlotId>) {
        self.pools.note_end(socket, other);
        let now = self.now.entry(key(socket, other)).or_default();
        now.open += 1;
        now.busy += u64::from(socket.busy);
        now.quiet += u64::from(self.pools.clock.quiet(socket.quiet));
        let age_ns = self.now_ns.saturating_sub(socket.since_ns);
        now.ages[age_class(age_ns)] += 1;
        now.ages_ns += u128::from(age_ns);
        now.oldest_ns = now.oldest_ns.max(age_ns);
    }

    /// All were taken.
    pub fn end(mut self) {
        let unknown = std::mem::take(&mut self.unknown);
        self.pools.names.end(&unknown);
        for socket in &unknown {
            let other = self.pools.names.other(socket);
            self.count(socket, other);
        }
        let last_ns = self.pools.last_ns.replace(self.now_ns).unwrap_or(self.now_ns);
        let length_ns = u128::from(self.now_ns.saturating_sub(last_ns));
        for pool in self.pools.pools.values_mut() {
            Now::default().tell(pool);
        }
        for (key, now) in self.now {
            now.tell(self.pools.pools.entry(key).or_default());
        }
        for pool in self.pools.pools.values_mut() {
            pool.samples += 1;
            pool.open_ns += u128::from(pool.open) * length_ns;
            pool.busy_ns += u128::from(pool.busy) * length_ns;
            pool.open_peak = pool.open_peak.max(pool.open);
            pool.busy_peak = pool.busy_peak.max(pool.busy);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn ages_fall_into_powers_of_two_of_milliseconds() {
        let ms = |ms: u64| age_class(ms * 1_000_000);
        assert_eq!([ms(0), ms(1), ms(2), ms(3), ms(4), ms(5)], [0, 0, 1, 2, 2, 3]);
        assert_eq!(ms(u64::MAX / 1_000_000), AGES - 1);
    }

    #[test]
    fn a_minute_without_data_is_quiet_at_any_rate_of_jiffies() {
        for hz in [100u32, 250, 300, 1000] {
            let mut clock = Clock::default();
            clock.read(5, 7);
            clock.read(5 + 2 * SECOND, 7 + 2 * hz);
            assert!(!clock.quiet(59 * hz) && clock.quiet(61 * hz), "{hz}");
        }
    }
}
