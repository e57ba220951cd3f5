//! Sums samples to pools.

mod sample;

use std::collections::{BTreeMap, HashMap, HashSet};

use self::sample::{Clock, Sample};
use super::names::Names;
use crate::decode::model::{ConnTotals, Direction, Peer, PoolPeer, PoolTotals, SlotId, Tick};
use crate::decode::sockets::Socket;

/// Keys whose other end is remembered.
const MAX_KEYS: usize = 16_384;

type Key = (SlotId, Direction, PoolPeer);

/// What samples say since the last tick.
#[derive(Default)]
pub struct Pools {
    names: Names,
    pools: HashMap<Key, PoolTotals>,
    /// The program at the other end by what the kernel side counts by.
    ends: HashMap<(SlotId, Direction, Peer), End>,
    last_ns: Option<u64>,
    clock: Clock,
}

/// Who is at the other end of the connections that the kernel side counts together.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Unknown,
    One(SlotId),
    /// Several programs of one address in this tick: what is counted of them together has no other name than that.
    Many,
}

impl Pools {
    /// Begins a sample of all open connections at `now_ns` of the monotonic clock.
    pub fn sample(&mut self, now_ns: u64) -> Sample<'_> {
        self.names.begin();
        Sample::new(self, now_ns)
    }

    fn note_end(&mut self, socket: &Socket, other: Option<SlotId>) {
        let key = (socket.slot, socket.direction, socket.peer());
        if self.ends.len() >= MAX_KEYS && !self.ends.contains_key(&key) {
            return;
        }
        let seen = self.ends.entry(key).or_insert(End::Unknown);
        *seen = match (*seen, other) {
            (_, None) => *seen,
            (End::Unknown, Some(other)) => End::One(other),
            (End::One(before), Some(other)) if before == other => *seen,
            // One address and port is one server, which was started again.
            (_, Some(other)) if socket.direction == Direction::Out => End::One(other),
            _ => End::Many,
        };
    }

    /// Adds what is known of pools to a tick's totals.
    pub fn finish(&mut self, tick: &mut Tick) {
        let mut sampled: HashMap<SlotId, Vec<(Direction, PoolPeer, PoolTotals)>> = HashMap::new();
        let live: HashSet<SlotId> = tick.slots.iter().map(|(slot, _)| *slot).collect();
        for ((slot, direction, peer), pool) in &mut self.pools {
            // A program that began while the tick was read is in the next one.
            if live.contains(slot) {
                let begun = begin(pool);
                let done = std::mem::replace(pool, begun);
                sampled
                    .entry(*slot)
                    .or_default()
                    .push((*direction, peer.clone(), done));
            }
        }
        self.pools
            .retain(|(slot, ..), pool| pool.open > 0 || !live.contains(slot) && pool.samples > 0);
        for (slot, totals) in &mut tick.slots {
            let mut pools: BTreeMap<(Direction, PoolPeer), PoolTotals> = BTreeMap::new();
            for (direction, peer, pool) in sampled.remove(slot).unwrap_or_default() {
                pools.insert((direction, peer), pool);
            }
            for ((direction, peer), conn) in &totals.conns {
                let name = match self.ends.get(&(*slot, *direction, *peer)) {
                    Some(End::One(other)) => PoolPeer::Slot(*other, *peer),
                    _ => PoolPeer::Address(*peer),
                };
                add(pools.entry((*direction, name)).or_default(), conn);
            }
            pools.retain(|_, pool| *pool != PoolTotals::default());
            totals.pools = pools;
        }
        self.ends.retain(|(slot, ..), _| live.contains(slot));
        for end in self.ends.values_mut().filter(|end| **end == End::Many) {
            *end = End::Unknown;
        }
    }
}

/// A pool at the beginning of a tick: as it is now.
fn begin(pool: &PoolTotals) -> PoolTotals {
    PoolTotals {
        open: pool.open,
        busy: pool.busy,
        quiet: pool.quiet,
        open_peak: pool.open,
        busy_peak: pool.busy,
        ages: pool.ages,
        ages_ns: pool.ages_ns,
        oldest_ns: pool.oldest_ns,
        ..PoolTotals::default()
    }
}

fn key(socket: &Socket, other: Option<SlotId>) -> Key {
    let peer = match other {
        Some(other) => PoolPeer::Slot(other, socket.peer()),
        None => PoolPeer::Address(socket.peer()),
    };
    (socket.slot, socket.direction, peer)
}

/// What the kernel side counted exactly.
fn add(pool: &mut PoolTotals, conn: &ConnTotals) {
    pool.opened += conn.opened;
    pool.closed += conn.closed;
    pool.exchanges += conn.exchanges;
    pool.once += conn.once;
    pool.open_peak = pool.open_peak.max(conn.peak);
    pool.age.add(&conn.age);
}

#[cfg(test)]
mod tests {
    use super::sample::age_class;
    use super::*;
    use crate::decode::model::Totals;

    const SECOND: u64 = 1_000_000_000;
    const CLIENT: SlotId = SlotId(2);
    const OTHER_CLIENT: SlotId = SlotId(3);
    const SERVER: SlotId = SlotId(9);

    fn ends(id: u64, client: SlotId, busy: bool) -> [Socket; 2] {
        let local = format!("127.0.0.1:{}", 40_000 + id).parse().unwrap();
        let near = Socket {
            id,
            since_ns: SECOND,
            slot: client,
            netns: 1,
            local,
            remote: "127.0.0.1:5432".parse().unwrap(),
            direction: Direction::Out,
            adopted: false,
            busy,
            quiet: 0,
            jiffies: 0,
        };
        let far = Socket {
            id: id + 1000,
            slot: SERVER,
            local: near.remote,
            remote: local,
            direction: Direction::In,
            ..near
        };
        [near, far]
    }

    fn sample(pools: &mut Pools, now_ns: u64, sockets: &[Socket]) {
        let mut sample = pools.sample(now_ns);
        sockets.iter().for_each(|socket| sample.add(socket));
        sample.end();
    }

    fn tick(slots: &[(SlotId, Direction, Peer, u64)]) -> Tick {
        let slots = slots.iter().map(|(slot, direction, peer, exchanges)| {
            let conn = ConnTotals {
                exchanges: *exchanges,
                ..ConnTotals::default()
            };
            let totals = Totals {
                conns: BTreeMap::from([((*direction, *peer), conn)]),
                ..Totals::default()
            };
            (*slot, Box::new(totals))
        });
        Tick {
            slots: slots.collect(),
            ..Tick::default()
        }
    }

    fn server_peer() -> Peer {
        Peer::Server("127.0.0.1".parse().unwrap(), 5432)
    }

    fn client_peer() -> Peer {
        Peer::Client("127.0.0.1".parse().unwrap())
    }

    #[test]
    fn time_is_summed_over_connections_and_peers_are_programs() {
        let mut pools = Pools::default();
        for second in 2..=12 {
            let sockets: Vec<Socket> = (0..4)
                .flat_map(|id| ends(id, CLIENT, id == 0 || id == 1 && second <= 7))
                .collect();
            sample(&mut pools, second * SECOND, &sockets);
        }
        let mut first = tick(&[
            (CLIENT, Direction::Out, server_peer(), 30),
            (SERVER, Direction::In, client_peer(), 30),
        ]);
        pools.finish(&mut first);
        for ((slot, totals), (direction, other, peer)) in first.slots.iter().zip([
            (Direction::Out, SERVER, server_peer()),
            (Direction::In, CLIENT, client_peer()),
        ]) {
            assert_eq!(totals.pools.len(), 1, "{slot:?}");
            let pool = &totals.pools[&(direction, PoolPeer::Slot(other, peer))];
            assert_eq!(
                (pool.open, pool.open_peak, pool.busy, pool.busy_peak),
                (4, 4, 1, 2)
            );
            let seconds = |ns: u128| ns / u128::from(SECOND);
            assert_eq!((seconds(pool.open_ns), seconds(pool.busy_ns)), (40, 15));
            assert_eq!((pool.exchanges, pool.samples), (30, 11));
            assert_eq!(pool.ages[age_class(11 * SECOND)], 4);
            assert_eq!(
                (pool.mean_age_ns(), pool.oldest_ns),
                (Some(11 * SECOND), 11 * SECOND)
            );
        }
        // The next tick begins with what is open, and counts nothing twice.
        let mut next = tick(&[(CLIENT, Direction::Out, server_peer(), 0)]);
        pools.finish(&mut next);
        let pool = &next.slots[0].1.pools[&(Direction::Out, PoolPeer::Slot(SERVER, server_peer()))];
        assert_eq!(
            (pool.open, pool.open_peak, pool.open_ns, pool.samples),
            (4, 4, 0, 0)
        );
        assert_eq!(
            (pool.mean_age_ns(), pool.oldest_ns),
            (Some(11 * SECOND), 11 * SECOND)
        );
    }

    #[test]
    fn ages_are_those_of_the_last_sample() {
        let mut pools = Pools::default();
        let [young, _] = ends(1, CLIENT, false);
        let [mut old, _] = ends(2, CLIENT, false);
        old.since_ns = 0;
        sample(&mut pools, 3 * SECOND, &[young, old]);
        sample(&mut pools, 8 * SECOND, &[young, old]);
        let mut one = tick(&[(CLIENT, Direction::Out, server_peer(), 0)]);
        pools.finish(&mut one);
        let key = (Direction::Out, PoolPeer::Address(server_peer()));
        let pool = &one.slots[0].1.pools[&key];
        assert_eq!(
            (pool.mean_age_ns(), pool.oldest_ns),
            (Some(15 * SECOND / 2), 8 * SECOND)
        );
        // Together with 50,000 of another program, 20 days old.
        let days = 20 * 86_400 * SECOND;
        let mut sum = PoolTotals {
            ages_ns: 50_000 * u128::from(days),
            oldest_ns: days,
            open_ns: u64::MAX.into(),
            ..PoolTotals::default()
        };
        sum.ages[age_class(days)] = 50_000;
        sum.merge(pool);
        assert_eq!(sum.oldest_ns, days);
        assert_eq!(sum.open_ns, u128::from(u64::MAX) + u128::from(10 * SECOND));
        assert_eq!(
            sum.mean_age_ns().map(|ns| (ns as f64 / SECOND as f64).round()),
            Some(((50_000.0 * 20.0 * 86_400.0 + 15.0_f64) / 50_002.0).round())
        );
        sample(&mut pools, 9 * SECOND, &[]);
        let mut none = tick(&[(CLIENT, Direction::Out, server_peer(), 7)]);
        pools.finish(&mut none);
        let pool = &none.slots[0].1.pools[&key];
        assert_eq!((pool.mean_age_ns(), pool.oldest_ns), (None, 0));
    }

    #[test]
    fn a_sample_that_breaks_off_says_nothing() {
        let mut pools = Pools::default();
        let both: Vec<Socket> = [ends(1, CLIENT, true), ends(2, CLIENT, true)].concat();
        sample(&mut pools, 2 * SECOND, &both);
        let mut broken = pools.sample(3 * SECOND);
        both.iter().take(1).for_each(|socket| broken.add(socket));
        drop(broken);
        sample(&mut pools, 4 * SECOND, &both);
        let mut now = tick(&[(CLIENT, Direction::Out, server_peer(), 0)]);
        pools.finish(&mut now);
        let pool = &now.slots[0].1.pools[&(Direction::Out, PoolPeer::Slot(SERVER, server_peer()))];
        assert_eq!((pool.open, pool.samples), (2, 2));
        assert_eq!(pool.open_ns, u128::from(2 * 2 * SECOND));
    }

    /// A server's end may come into being later than its client's.
    #[test]
    fn an_end_that_comes_later_is_found() {
        let mut pools = Pools::default();
        let [near, far] = ends(1, CLIENT, false);
        for second in 1..=20 {
            sample(&mut pools, second * SECOND, &[near]);
        }
        for second in 21..=40 {
            sample(&mut pools, second * SECOND, &[near, far]);
        }
        let keys: HashSet<&Key> = pools
            .pools
            .iter()
            .filter(|(_, pool)| pool.open > 0)
            .map(|(key, _)| key)
            .collect();
        let wanted = [
            (CLIENT, Direction::Out, PoolPeer::Slot(SERVER, server_peer())),
            (SERVER, Direction::In, PoolPeer::Slot(CLIENT, client_peer())),
        ];
        assert_eq!(keys, wanted.iter().collect());
    }

    #[test]
    fn what_is_counted_of_two_clients_together_keeps_their_address() {
        let mut pools = Pools::default();
        let both: Vec<Socket> = ends(1, CLIENT, false)
            .into_iter()
            .chain(ends(2, OTHER_CLIENT, false))
            .collect();
        sample(&mut pools, 2 * SECOND, &both);
        let mut first = tick(&[(SERVER, Direction::In, client_peer(), 7)]);
        pools.finish(&mut first);
        let found = &first.slots[0].1.pools;
        let by_program = |client| found[&(Direction::In, PoolPeer::Slot(client, client_peer()))].open;
        assert_eq!((by_program(CLIENT), by_program(OTHER_CLIENT)), (1, 1));
        assert_eq!(
            found[&(Direction::In, PoolPeer::Address(client_peer()))].exchanges,
            7
        );

        sample(&mut pools, 3 * SECOND, &ends(1, CLIENT, false));
        let mut second = tick(&[(SERVER, Direction::In, client_peer(), 5)]);
        pools.finish(&mut second);
        let pool = &second.slots[0].1.pools[&(Direction::In, PoolPeer::Slot(CLIENT, client_peer()))];
        assert_eq!((pool.exchanges, pool.open), (5, 1));
    }

    #[test]
    fn loopback_of_another_network_namespace_is_another_host() {
        let [near, mut far] = ends(1, CLIENT, false);
        far.netns = 2;
        let mut pools = Pools::default();
        sample(&mut pools, 2 * SECOND, &[near, far]);
        assert!(
            pools
                .pools
                .contains_key(&(CLIENT, Direction::Out, PoolPeer::Address(server_peer())))
        );
        let mut apart = [near, far];
        for (socket, ends) in apart.iter_mut().zip([(1, 2), (2, 1)]) {
            socket.id += 7;
            socket.local.set_ip([10, 0, 0, ends.0].into());
            socket.remote.set_ip([10, 0, 0, ends.1].into());
        }
        sample(&mut pools, 3 * SECOND, &apart);
        let peer = Peer::Server([10, 0, 0, 2].into(), 5432);
        assert!(
            pools
                .pools
                .contains_key(&(CLIENT, Direction::Out, PoolPeer::Slot(SERVER, peer)))
        );
    }
}
