//! Cumulative counters of a service: differences of ticks summed up, gauges replaced.

use std::collections::{BTreeMap, HashMap};

use super::names;
use crate::symbolize::{ConnTotals, Direction, FdForecast, Peer, SyscallTotals, Totals};

/// Adds each element of an array to another.
fn add_each<const N: usize>(total: &mut [u64; N], tick: &[u64; N]) {
    for (sum, more) in total.iter_mut().zip(tick) {
        *sum = sum.saturating_add(*more);
    }
}

/// Adds everything of `ConnTotals` that counts; the gauges are the caller's business.
fn add_conn(total: &mut ConnTotals, tick: &ConnTotals) {
    total.opened = total.opened.saturating_add(tick.opened);
    total.closed = total.closed.saturating_add(tick.closed);
    add_each(&mut total.failures, &tick.failures);
    add_each(&mut total.ended, &tick.ended);
    total.exchanges = total.exchanges.saturating_add(tick.exchanges);
    total.once = total.once.saturating_add(tick.once);
    total.sent_bytes = total.sent_bytes.saturating_add(tick.sent_bytes);
    total.received_bytes = total.received_bytes.saturating_add(tick.received_bytes);
    total.retransmits = total.retransmits.saturating_add(tick.retransmits);
    total.connect.add(&tick.connect);
    total.age.add(&tick.age);
}

/// Adds system calls; numbers and errnos without a name share one entry, so that no process can make more entries
/// than the tables have names.
fn add_syscalls(total: &mut BTreeMap<u16, SyscallTotals>, tick: &BTreeMap<u16, SyscallTotals>) {
    for (&number, more) in tick {
        let sum = total.entry(names::known_syscall(number)).or_default();
        sum.count = sum.count.saturating_add(more.count);
        for (&errno, &count) in &more.errors {
            let errors = sum.errors.entry(names::known_errno(errno)).or_default();
            *errors = errors.saturating_add(count);
        }
        sum.duration.add(&more.duration);
    }
}

/// Adds all counters but the connections.
fn add_counters(total: &mut Totals, tick: &Totals) {
    add_each(&mut total.wait_ns, &tick.wait_ns);
    for (sum, more) in total.wait.iter_mut().zip(&tick.wait) {
        sum.add(more);
    }
    total.cpu_user_ns = total.cpu_user_ns.saturating_add(tick.cpu_user_ns);
    total.cpu_system_ns = total.cpu_system_ns.saturating_add(tick.cpu_system_ns);
    total.cpu_steal_ns = total.cpu_steal_ns.saturating_add(tick.cpu_steal_ns);
    add_syscalls(&mut total.syscalls, &tick.syscalls);
    total.memory_growth_bytes = total.memory_growth_bytes.saturating_add(tick.memory_growth_bytes);
    total.memory_returned_bytes = total
        .memory_returned_bytes
        .saturating_add(tick.memory_returned_bytes);
    add_each(&mut total.stall_ns, &tick.stall_ns);
    add_each(&mut total.stalls, &tick.stalls);
    total.faults_minor = total.faults_minor.saturating_add(tick.faults_minor);
    total.faults_major = total.faults_major.saturating_add(tick.faults_major);
    total.oom_kills = total.oom_kills.saturating_add(tick.oom_kills);
    total.alloc_bytes = total.alloc_bytes.saturating_add(tick.alloc_bytes);
    total.alloc_objects = total.alloc_objects.saturating_add(tick.alloc_objects);
    total.fd_growth = total.fd_growth.saturating_add(tick.fd_growth);
    for (sum, more) in total.disk.iter_mut().zip(&tick.disk) {
        sum.bytes = sum.bytes.saturating_add(more.bytes);
        sum.duration.add(&more.duration);
    }
}

/// Joins two services' totals of the *same* tick: counters and gauges add up, the lower descriptor limit stays.
pub(super) fn join(total: &mut Totals, other: &Totals) {
    add_counters(total, other);
    for (key, more) in &other.conns {
        let sum = total.conns.entry(*key).or_default();
        add_conn(sum, more);
        sum.open = sum.open.saturating_add(more.open);
        sum.peak = sum.peak.saturating_add(more.peak);
    }
    for (key, more) in &other.pools {
        total.pools.entry(key.clone()).or_default().merge(more);
    }
    for (at, more) in &other.listeners {
        total.listeners.entry(*at).or_default().merge(more);
    }
    add_each(&mut total.resident_bytes, &other.resident_bytes);
    add_each(&mut total.fds, &other.fds);
    total.fd_limit = match (total.fd_limit, other.fd_limit) {
        (0, limit) | (limit, 0) => limit,
        (a, b) => a.min(b),
    };
    total.alloc_live_bytes = total.alloc_live_bytes.saturating_add(other.alloc_live_bytes);
    total.fd_forecast = FdForecast::first(total.fd_forecast, other.fd_forecast);
    total.processes = total.processes.saturating_add(other.processes);
    total.threads = total.threads.saturating_add(other.threads);
}

/// Adds a tick to a service's cumulative totals. Gauges take the tick's values, also for a tick that reports
/// nothing: a service or a peer that a tick does not mention has nothing open and no process.
pub(super) fn add(total: &mut Totals, tick: &Totals, peers: &mut PeerBound, now: u64) {
    add_counters(total, tick);
    peers.add(&mut total.conns, &tick.conns, now);
    total.resident_bytes = tick.resident_bytes;
    total.fds = tick.fds;
    total.fd_limit = tick.fd_limit;
    total.alloc_live_bytes = tick.alloc_live_bytes;
    total.fd_forecast = tick.fd_forecast;
    total.processes = tick.processes;
    total.threads = tick.threads;
}

/// Ticks without a change after which a peer with nothing open makes room for a new one.
const QUIET_TICKS: u64 = 60;

/// Keeps the peers of one service under a bound.
///
/// Peers come first, stay first; what does not fit adds to `Peer::Other`. A peer with nothing open and no news for
/// [`QUIET_TICKS`] makes room when a new one comes; its series end.
#[derive(Clone, Debug, Default)]
pub(super) struct PeerBound {
    limit: usize,
    last_news: HashMap<(Direction, Peer), u64>,
}

impl PeerBound {
    /// At most `limit` peers, both directions together, `Other` aside.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            last_news: HashMap::new(),
        }
    }

    fn add(
        &mut self,
        total: &mut BTreeMap<(Direction, Peer), ConnTotals>,
        tick: &BTreeMap<(Direction, Peer), ConnTotals>,
        now: u64,
    ) {
        for conn in total.values_mut() {
            (conn.open, conn.peak) = (0, 0);
        }
        for (&key, more) in tick {
            let key = self.admit(total, key, now);
            let sum = total.entry(key).or_default();
            sum.open = sum.open.saturating_add(more.open);
            sum.peak = sum.peak.saturating_add(more.peak);
            add_conn(sum, more);
        }
    }

    /// What a sample of a connection to this peer is of: it may come before the connection is counted.
    pub(super) fn name(
        &mut self,
        total: &mut BTreeMap<(Direction, Peer), ConnTotals>,
        peer: Peer,
        now: u64,
    ) -> Peer {
        self.admit(total, (Direction::Out, peer), now).1
    }

    fn admit(
        &mut self,
        total: &mut BTreeMap<(Direction, Peer), ConnTotals>,
        key: (Direction, Peer),
        now: u64,
    ) -> (Direction, Peer) {
        if key.1 == Peer::Other {
            return key;
        }
        if !self.last_news.contains_key(&key) && self.last_news.len() >= self.limit {
            let quietest = self
                .last_news
                .iter()
                .filter(|(known, _)| total.get(known).is_none_or(|conn| conn.open == 0))
                .min_by_key(|(known, news)| (**news, **known))
                .map(|(known, news)| (*known, *news));
            match quietest {
                Some((gone, news)) if now.saturating_sub(news) >= QUIET_TICKS => {
                    self.last_news.remove(&gone);
                    total.remove(&gone);
                }
                _ => return (key.0, Peer::Other),
            }
        }
        self.last_news.insert(key, now);
        key
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;
    use crate::symbolize::Cause;

    fn client(last: u8) -> (Direction, Peer) {
        (
            Direction::In,
            Peer::Client(IpAddr::V4(Ipv4Addr::new(10, 0, 0, last))),
        )
    }

    fn opened(key: (Direction, Peer), opened: u64, open: u64) -> Totals {
        let conn = ConnTotals {
            opened,
            open,
            ..ConnTotals::default()
        };
        Totals {
            conns: BTreeMap::from([(key, conn)]),
            ..Totals::default()
        }
    }

    #[test]
    fn counters_add_and_gauges_follow() {
        let mut total = Totals::default();
        let mut peers = PeerBound::new(50);
        let mut tick = Totals {
            processes: 3,
            fds: [1; 9],
            cpu_user_ns: 5,
            ..Totals::default()
        };
        tick.wait_ns[Cause::Disk.index()] = 7;
        add(&mut total, &tick, &mut peers, 1);
        add(&mut total, &tick, &mut peers, 2);
        assert_eq!(
            (
                total.wait_ns[Cause::Disk.index()],
                total.cpu_user_ns,
                total.processes
            ),
            (14, 10, 3)
        );
        add(&mut total, &Totals::default(), &mut peers, 3);
        assert_eq!((total.cpu_user_ns, total.processes, total.fds), (10, 0, [0; 9]));
    }

    #[test]
    fn a_sample_may_come_first_and_past_the_bound_it_is_of_others() {
        let mut total = Totals::default();
        let mut peers = PeerBound::new(2);
        let server = |port| Peer::Server(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
        assert_eq!(peers.name(&mut total.conns, server(1), 1), server(1));
        add(
            &mut total,
            &opened((Direction::Out, server(2)), 1, 1),
            &mut peers,
            1,
        );
        assert_eq!(peers.name(&mut total.conns, server(3), 1), Peer::Other);
        // So are its totals, but not those of the first.
        for port in [1, 3] {
            add(
                &mut total,
                &opened((Direction::Out, server(port)), 1, 1),
                &mut peers,
                2,
            );
        }
        let of = |peer| total.conns.get(&(Direction::Out, peer)).map(|conn| conn.opened);
        assert_eq!(
            [server(1), server(3), Peer::Other].map(of),
            [Some(1), None, Some(1)]
        );
    }

    #[test]
    fn peers_past_the_bound_are_other_until_a_quiet_one_makes_room() {
        let mut total = Totals::default();
        let mut peers = PeerBound::new(2);
        add(&mut total, &opened(client(1), 1, 1), &mut peers, 1);
        add(&mut total, &opened(client(2), 1, 0), &mut peers, 2);
        add(&mut total, &opened(client(3), 4, 2), &mut peers, 3);
        let other = (Direction::In, Peer::Other);
        assert_eq!(total.conns[&other].opened, 4);
        assert_eq!(total.conns[&other].open, 2);
        assert_eq!(
            total.conns[&client(1)].open,
            0,
            "not mentioned, so nothing is open"
        );

        add(&mut total, &opened(client(3), 1, 1), &mut peers, 1 + QUIET_TICKS);
        assert_eq!(total.conns[&client(3)].opened, 1);
        assert!(!total.conns.contains_key(&client(1)));
        assert_eq!(
            total.conns[&other].opened, 4,
            "what was counted stays where it was counted"
        );
    }

    #[test]
    fn unnamed_calls_share_one_entry() {
        let mut total = Totals::default();
        let calls = |number| {
            let totals = SyscallTotals {
                count: 2,
                errors: BTreeMap::from([(4000, 1)]),
                ..SyscallTotals::default()
            };
            Totals {
                syscalls: BTreeMap::from([(number, totals)]),
                ..Totals::default()
            }
        };
        for number in 60_000..60_100 {
            add(&mut total, &calls(number), &mut PeerBound::new(1), 1);
        }
        assert_eq!(total.syscalls.len(), 1);
        let (&number, sum) = total.syscalls.first_key_value().expect("one");
        assert_eq!((names::syscall(number), sum.count), ("(unknown)", 200));
        assert_eq!(
            sum.errors
                .iter()
                .map(|(&e, &n)| (names::errno(e), n))
                .collect::<Vec<_>>(),
            [("(unknown)", 100)]
        );
    }

    #[test]
    fn joining_keeps_the_lower_limit() {
        let mut a = Totals {
            fd_limit: 1024,
            processes: 1,
            ..Totals::default()
        };
        join(
            &mut a,
            &Totals {
                fd_limit: 512,
                processes: 2,
                ..Totals::default()
            },
        );
        join(&mut a, &Totals::default());
        assert_eq!((a.fd_limit, a.processes), (512, 3));
    }
}
