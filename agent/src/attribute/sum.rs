//! Sums of totals: counters and gauges add up, except for the limit of descriptors, of which the lowest counts.

use super::{ConnTotals, Histogram, Totals};

fn add_histogram(to: &mut Histogram, from: &Histogram) {
    for (to, from) in to.buckets.iter_mut().zip(&from.buckets) {
        *to += from;
    }
    to.sum_ns += from.sum_ns;
}

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
            syscalls,
            memory_growth_bytes,
            faults_minor,
            faults_major,
            oom_kills,
            disk,
            conns,
            resident_bytes,
            fds,
            fd_limit,
            processes,
            threads,
        } = other;
        add_array(&mut self.wait_ns, wait_ns);
        for (to, from) in self.wait.iter_mut().zip(wait) {
            add_histogram(to, from);
        }
        self.cpu_user_ns += cpu_user_ns;
        self.cpu_system_ns += cpu_system_ns;
        for (nr, from) in syscalls {
            let to = self.syscalls.entry(*nr).or_default();
            to.count += from.count;
            for (errno, count) in &from.errors {
                *to.errors.entry(*errno).or_default() += count;
            }
            add_histogram(&mut to.duration, &from.duration);
        }
        self.memory_growth_bytes += memory_growth_bytes;
        self.faults_minor += faults_minor;
        self.faults_major += faults_major;
        self.oom_kills += oom_kills;
        for (to, from) in self.disk.iter_mut().zip(disk) {
            to.bytes += from.bytes;
            add_histogram(&mut to.duration, &from.duration);
        }
        for (whom, from) in conns {
            self.conns.entry(*whom).or_default().merge(from);
        }
        add_array(&mut self.resident_bytes, resident_bytes);
        add_array(&mut self.fds, fds);
        self.fd_limit = match (self.fd_limit, *fd_limit) {
            (0, limit) | (limit, 0) => limit,
            (a, b) => a.min(b),
        };
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
        self.sent_bytes += sent_bytes;
        self.received_bytes += received_bytes;
        self.retransmits += retransmits;
        add_histogram(&mut self.connect, connect);
        add_histogram(&mut self.age, age);
    }
}
