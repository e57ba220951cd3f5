//! Connections over Unix sockets: as the visit to all descriptors at the end of each tick finds them, and those between two visits
//! that were accepted while system calls were counted. The kernel tells nobody when one is opened or closed, and counts nothing
//! of what goes over it.

use std::collections::{BTreeMap, HashMap};

use crate::decode::model::{ConnTotals, Direction, Peer, PoolPeer, PoolTotals, SlotId, Tick, UnixSocket};

/// What was found at the end of the last tick.
#[derive(Default)]
pub struct UnixConnections {
    /// `None` before the first tick.
    last: Option<Found>,
}

/// A socket while it exists: its address, and the number of its inode.
type Key = (u64, u32);
type Whose = (SlotId, Direction, PoolPeer);

/// A visit takes its time: the ends of what comes and goes may belong to different connections. So the accepted end alone is the
/// connection, and says who connected.
#[derive(Default)]
struct Found {
    accepted: HashMap<Key, Ends>,
    /// Ends that connected and whose other end nobody has: not accepted yet, or closed while the visit went on.
    lone: HashMap<Key, Lone>,
}

#[derive(Clone, Copy)]
struct Ends {
    server: SlotId,
    client: Option<SlotId>,
}

#[derive(Clone, Copy)]
struct Lone {
    slot: SlotId,
    /// Only one that two visits find counts.
    counts: bool,
}

impl Ends {
    /// What it is to each of its ends.
    fn whose(self) -> impl Iterator<Item = Whose> {
        let peer = |slot| PoolPeer::Slot(slot, Peer::Unix);
        let client = self.client.map_or(PoolPeer::Address(Peer::Unix), peer);
        let far = self
            .client
            .map(|client| (client, Direction::Out, peer(self.server)));
        std::iter::once((self.server, Direction::In, client)).chain(far)
    }
}

impl Lone {
    fn whose(self) -> Whose {
        (self.slot, Direction::Out, PoolPeer::Address(Peer::Unix))
    }
}

impl Found {
    fn new(sockets: &[UnixSocket], before: Option<&Self>) -> Self {
        // One that several programs share is that of the oldest.
        let mut owners: HashMap<u64, SlotId> = HashMap::with_capacity(sockets.len());
        for socket in sockets {
            let owner = owners.entry(socket.id).or_insert(socket.slot);
            *owner = socket.slot.min(*owner);
        }
        let owner = |socket: &UnixSocket| owners.get(&socket.id).copied().unwrap_or(socket.slot);
        let mut found = Self::default();
        for socket in sockets.iter().filter(|socket| socket.direction == Direction::In) {
            let ends = Ends {
                server: owner(socket),
                client: owners.get(&socket.peer).copied().or(socket.client),
            };
            found.accepted.insert((socket.id, socket.inode), ends);
        }
        for socket in sockets.iter().filter(|socket| socket.direction == Direction::Out) {
            if !owners.contains_key(&socket.peer) {
                let key = (socket.id, socket.inode);
                let lone = Lone {
                    slot: owner(socket),
                    counts: before.is_none_or(|before| before.lone.contains_key(&key)),
                };
                found.lone.insert(key, lone);
            }
        }
        found
    }

    fn counting(&self) -> impl Iterator<Item = (&Key, Lone)> {
        let lone = self.lone.iter().map(|(key, lone)| (key, *lone));
        lone.filter(|(_, lone)| lone.counts)
    }

    fn counts(&self, key: &Key) -> bool {
        self.lone.get(key).is_some_and(|lone| lone.counts)
    }
}

impl UnixConnections {
    /// Adds what a tick's visit found to the tick's totals.
    pub fn finish(&mut self, tick: &mut Tick) {
        let before = self.last.take();
        let now = Found::new(&tick.unix, before.as_ref());
        let mut pools: BTreeMap<Whose, PoolTotals> = BTreeMap::new();
        let mut each =
            |whose: Whose, change: &dyn Fn(&mut PoolTotals)| change(pools.entry(whose).or_default());
        for (key, ends) in &now.accepted {
            let new = before
                .as_ref()
                .is_some_and(|before| !before.accepted.contains_key(key));
            for whose in ends.whose() {
                each(whose, &|pool| {
                    pool.open += 1;
                    pool.opened += u64::from(new);
                });
            }
        }
        for (key, lone) in now.counting() {
            let new = before.as_ref().is_some_and(|before| !before.counts(key));
            each(lone.whose(), &|pool| {
                pool.open += 1;
                pool.opened += u64::from(new);
            });
        }
        if let Some(before) = before {
            for (_, ends) in before
                .accepted
                .iter()
                .filter(|(key, _)| !now.accepted.contains_key(*key))
            {
                for whose in ends.whose() {
                    each(whose, &|pool| pool.closed += 1);
                }
            }
            for (_, lone) in before.counting().filter(|(key, _)| !now.counts(key)) {
                each(lone.whose(), &|pool| pool.closed += 1);
            }
        }
        for brief in &tick.unix_brief {
            let ends = Ends {
                server: brief.server,
                client: brief.client,
            };
            for whose in ends.whose() {
                each(whose, &|pool| {
                    pool.opened += brief.count;
                    pool.closed += brief.count;
                    pool.open_peak = 1;
                });
            }
        }
        self.last = Some(now);
        add(tick, pools);
    }
}

/// Adds them to the totals of their slots.
fn add(tick: &mut Tick, pools: BTreeMap<Whose, PoolTotals>) {
    let mut slots: HashMap<SlotId, Vec<(Direction, PoolPeer, PoolTotals)>> = HashMap::new();
    for ((slot, direction, peer), mut pool) in pools {
        pool.open_peak = pool.open.max(pool.open_peak);
        pool.open_ns = u128::from(pool.open) * u128::from(tick.length_ns);
        pool.samples = 1;
        slots.entry(slot).or_default().push((direction, peer, pool));
    }
    for (slot, totals) in &mut tick.slots {
        for (direction, peer, pool) in slots.remove(slot).into_iter().flatten() {
            let conns = ConnTotals {
                open: pool.open,
                opened: pool.opened,
                closed: pool.closed,
                peak: pool.open_peak,
                ..ConnTotals::default()
            };
            let all = totals.conns.entry((direction, Peer::Unix)).or_default();
            all.merge(&conns);
            totals.pools.insert((direction, peer), pool);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::model::UnixBrief;

    const CLIENT: SlotId = SlotId(2);
    const SERVER: SlotId = SlotId(9);

    fn ends(id: u64) -> [UnixSocket; 2] {
        let client = UnixSocket {
            id,
            inode: 1,
            peer: id + 1,
            slot: CLIENT,
            direction: Direction::Out,
            client: None,
        };
        let server = UnixSocket {
            id: id + 1,
            inode: 2,
            peer: id,
            slot: SERVER,
            direction: Direction::In,
            client: Some(CLIENT),
        };
        [client, server]
    }

    fn tick(connections: &mut UnixConnections, unix: Vec<UnixSocket>) -> Tick {
        let mut tick = Tick {
            length_ns: 10,
            slots: vec![(CLIENT, Box::default()), (SERVER, Box::default())],
            unix,
            ..Tick::default()
        };
        connections.finish(&mut tick);
        tick
    }

    #[test]
    fn both_ends_are_pools_of_each_other_and_changes_are_counted() {
        let mut connections = UnixConnections::default();
        tick(&mut connections, ends(10).to_vec());
        // One more, of which a child of the server has a copy; and one whose other end nobody has.
        let copy = UnixSocket {
            slot: SlotId(12),
            ..ends(20)[1]
        };
        let lone = ends(30)[0];
        let found = tick(
            &mut connections,
            [&ends(10)[..], &ends(20), &[copy, lone]].concat(),
        );
        let pool = |tick: &Tick, at: usize, direction, peer| {
            let pool = tick.slots[at].1.pools.get(&(direction, peer)).cloned();
            pool.map(|pool| (pool.open, pool.opened, pool.closed))
        };
        let server = PoolPeer::Slot(SERVER, Peer::Unix);
        let client = PoolPeer::Slot(CLIENT, Peer::Unix);
        assert_eq!(pool(&found, 0, Direction::Out, server.clone()), Some((2, 1, 0)));
        assert_eq!(pool(&found, 1, Direction::In, client.clone()), Some((2, 1, 0)));
        let nobody = PoolPeer::Address(Peer::Unix);
        assert_eq!(pool(&found, 0, Direction::Out, nobody.clone()), None, "seen once");
        let conn = &found.slots[0].1.conns[&(Direction::Out, Peer::Unix)];
        assert_eq!((conn.open, conn.opened, conn.closed), (2, 1, 0));
        let found = tick(&mut connections, [&ends(10)[..], &ends(20), &[lone]].concat());
        assert_eq!(pool(&found, 0, Direction::Out, nobody.clone()), Some((1, 1, 0)));

        let after = tick(&mut connections, ends(20).to_vec());
        assert_eq!(pool(&after, 0, Direction::Out, server.clone()), Some((1, 0, 1)));
        assert_eq!(pool(&after, 1, Direction::In, client.clone()), Some((1, 0, 1)));
        assert_eq!(pool(&after, 0, Direction::Out, nobody), Some((0, 0, 1)));

        // Another connection at the addresses of the last.
        let again = ends(20).map(|end| UnixSocket { inode: 9, ..end });
        let after = tick(&mut connections, again.to_vec());
        assert_eq!(pool(&after, 0, Direction::Out, server.clone()), Some((1, 1, 1)));

        // The visit came to the client before it connected, and to the server after that: the kernel knows who it was.
        let half = tick(&mut connections, vec![ends(40)[1]]);
        assert_eq!(pool(&half, 0, Direction::Out, server), Some((1, 1, 1)));
        assert_eq!(pool(&half, 1, Direction::In, client), Some((1, 1, 1)));
    }

    #[test]
    fn brief_ones_are_opened_and_closed_at_both_ends() {
        let brief = |client, count| UnixBrief {
            server: SERVER,
            client,
            count,
        };
        let mut found = Tick {
            length_ns: 10,
            slots: vec![(CLIENT, Box::default()), (SERVER, Box::default())],
            unix: ends(10).to_vec(),
            unix_brief: vec![brief(Some(CLIENT), 40), brief(None, 3)],
            ..Tick::default()
        };
        UnixConnections::default().finish(&mut found);
        let pool = |at: usize, direction, peer| {
            let pool = &found.slots[at].1.pools[&(direction, peer)];
            (pool.open, pool.opened, pool.closed, pool.open_peak)
        };
        let server = PoolPeer::Slot(SERVER, Peer::Unix);
        assert_eq!(pool(0, Direction::Out, server), (1, 40, 40, 1));
        let client = PoolPeer::Slot(CLIENT, Peer::Unix);
        assert_eq!(pool(1, Direction::In, client), (1, 40, 40, 1));
        assert_eq!(
            pool(1, Direction::In, PoolPeer::Address(Peer::Unix)),
            (0, 3, 3, 1)
        );
        let conn = &found.slots[1].1.conns[&(Direction::In, Peer::Unix)];
        assert_eq!((conn.open, conn.opened, conn.closed), (1, 43, 43));
    }
}
