//! Sums of totals: counters and gauges add up, except for the limit of descriptors, of which the lowest counts.

use super::{ConnTotals, FdForecast, MOST_ADDRESSES, Peer, PoolTotals, Totals};

fn add_array<const N: usize>(to: &mut [u64; N], from: &[u64; N]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to += from;
    }
}

impl Totals {
    /// Adds another slot's totals. Destructured, so that a new field cannot be forgotten.
    pub fn merge(&mut self, other: &Self) {
        let Self {
            wait_ns,
            wait,
            cpu_user_ns,
            cpu_system_ns,
            cpu_steal_ns,
            syscalls,
            memory_growth_bytes,
            memory_returned_bytes,
            stall_ns,
            stalls,
            faults_minor,
            faults_major,
            oom_kills,
            alloc_bytes,
            alloc_objects,
            alloc_live_bytes,
            disk,
            conns,
            pools,
            listeners,
            resident_bytes,
            fds,
            fd_limit,
            fd_growth,
            fd_forecast,
            processes,
            threads,
        } = other;
        add_array(&mut self.wait_ns, wait_ns);
        for (to, from) in self.wait.iter_mut().zip(wait) {
            to.add(from);
        }
        self.cpu_user_ns += cpu_user_ns;
        self.cpu_system_ns += cpu_system_ns;
        self.cpu_steal_ns += cpu_steal_ns;
        for (nr, from) in syscalls {
            let to = self.syscalls.entry(*nr).or_default();
            to.count += from.count;
            for (errno, count) in &from.errors {
                *to.errors.entry(*errno).or_default() += count;
            }
            to.duration.add(&from.duration);
        }
        self.memory_growth_bytes += memory_growth_bytes;
        self.memory_returned_bytes += memory_returned_bytes;
        add_array(&mut self.stall_ns, stall_ns);
        add_array(&mut self.stalls, stalls);
        self.faults_minor += faults_minor;
        self.faults_major += faults_major;
        self.oom_kills += oom_kills;
        self.alloc_bytes += alloc_bytes;
        self.alloc_objects += alloc_objects;
        self.alloc_live_bytes += alloc_live_bytes;
        for (to, from) in self.disk.iter_mut().zip(disk) {
            to.bytes += from.bytes;
            to.duration.add(&from.duration);
        }
        for (whom, from) in conns {
            self.conns.entry(*whom).or_default().merge(from);
        }
        for (whom, from) in pools {
            self.pools.entry(whom.clone()).or_default().merge(from);
        }
        for (at, from) in listeners {
            self.listeners.entry(*at).or_default().merge(from);
        }
        add_array(&mut self.resident_bytes, resident_bytes);
        add_array(&mut self.fds, fds);
        self.fd_limit = match (self.fd_limit, *fd_limit) {
            (0, limit) | (limit, 0) => limit,
            (a, b) => a.min(b),
        };
        self.fd_growth += fd_growth;
        self.fd_forecast = FdForecast::first(self.fd_forecast, *fd_forecast);
        self.processes += processes;
        self.threads += threads;
    }
}

impl ConnTotals {
    /// Adds another's counts.
    pub fn merge(&mut self, other: &Self) {
        let Self {
            open,
            opened,
            closed,
            failures,
            ended,
            exchanges,
            once,
            peak,
            sent_bytes,
            received_bytes,
            retransmits,
            connect,
            age,
        } = other;
        self.open += open;
        self.opened += opened;
        self.closed += closed;
        add_array(&mut self.failures, failures);
        add_array(&mut self.ended, ended);
        self.exchanges += exchanges;
        self.once += once;
        self.peak += peak;
        self.sent_bytes += sent_bytes;
        self.received_bytes += received_bytes;
        self.retransmits += retransmits;
        self.connect.add(connect);
        self.age.add(age);
    }
}

impl PoolTotals {
    /// Adds another pool of the same service and peer. Peaks add up, too: they may have come at the same time, and no more
    /// can have been open.
    pub fn merge(&mut self, other: &Self) {
        let Self {
            open,
            busy,
            quiet,
            open_peak,
            busy_peak,
            ages,
            ages_ns,
            oldest_ns,
            open_ns,
            busy_ns,
            samples,
            opened,
            closed,
            exchanges,
            once,
            age,
            addresses,
        } = other;
        self.open += open;
        self.busy += busy;
        self.quiet += quiet;
        self.open_peak += open_peak;
        self.busy_peak += busy_peak;
        add_array(&mut self.ages, ages);
        self.ages_ns += ages_ns;
        self.oldest_ns = self.oldest_ns.max(*oldest_ns);
        self.open_ns += open_ns;
        self.busy_ns += busy_ns;
        self.samples = self.samples.max(*samples);
        self.opened += opened;
        self.closed += closed;
        self.exchanges += exchanges;
        self.once += once;
        self.age.add(age);
        for address in addresses {
            self.known_as(*address);
        }
    }

    /// Mean age of the open ones, in nanoseconds; `None` where none is, or no sample told.
    #[must_use]
    pub fn mean_age_ns(&self) -> Option<u64> {
        let known: u64 = self.ages.iter().sum();
        let mean = self.ages_ns.checked_div(known.into())?;
        u64::try_from(mean).ok()
    }

    /// The peer has this address, too.
    pub fn known_as(&mut self, address: Peer) {
        if self.addresses.len() < MOST_ADDRESSES {
            self.addresses.insert(address);
        }
    }

    /// Forgets what is true of one tick only.
    pub fn clear_gauges(&mut self) {
        *self = Self {
            open: 0,
            busy: 0,
            quiet: 0,
            open_peak: 0,
            busy_peak: 0,
            ages: Default::default(),
            ages_ns: 0,
            oldest_ns: 0,
            ..std::mem::take(self)
        };
    }
}
