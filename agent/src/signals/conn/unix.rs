//! Connections over Unix sockets, as the visit to all descriptors at the end of each tick finds them. The kernel tells nobody when
//! one is opened or closed, and counts nothing of what goes over it.

use std::collections::{BTreeMap, HashMap};

use crate::decode::model::{ConnTotals, Direction, Peer, PoolPeer, PoolTotals, SlotId, Tick, UnixSocket};

/// What was found at the end of the last tick.
#[derive(Default)]
pub struct UnixConnections {
    /// By both ends; `None` before the first tick.
    open: Option<HashMap<(u64, u64), Whose>>,
}

type Whose = (SlotId, Direction, PoolPeer);

impl UnixConnections {
    /// Adds what a tick's visit found to the tick's totals.
    pub fn finish(&mut self, tick: &mut Tick) {
        let open = whose(&tick.unix);
        let mut pools: BTreeMap<Whose, PoolTotals> = BTreeMap::new();
        for (ends, whose) in &open {
            let pool = pools.entry(whose.clone()).or_default();
            pool.open += 1;
            if let Some(before) = &self.open
                && !before.contains_key(ends)
            {
                pool.opened += 1;
            }
        }
        for (ends, whose) in self.open.iter().flatten() {
            if !open.contains_key(ends) {
                pools.entry(whose.clone()).or_default().closed += 1;
            }
        }
        let mut slots: HashMap<SlotId, Vec<(Direction, PoolPeer, PoolTotals)>> = HashMap::new();
        for ((slot, direction, peer), mut pool) in pools {
            pool.open_peak = pool.open;
            pool.open_ns = pool.open * tick.length_ns;
            pool.samples = 1;
            slots.entry(slot).or_default().push((direction, peer, pool));
        }
        for (slot, totals) in &mut tick.slots {
            for (direction, peer, pool) in slots.remove(slot).into_iter().flatten() {
                let conns = ConnTotals {
                    open: pool.open,
                    opened: pool.opened,
                    closed: pool.closed,
                    peak: pool.open,
                    ..ConnTotals::default()
                };
                let all = totals.conns.entry((direction, Peer::Unix)).or_default();
                all.merge(&conns);
                totals.pools.insert((direction, peer), pool);
            }
        }
        self.open = Some(open);
    }
}

/// Whose each connection is. One that several programs share is that of the oldest.
fn whose(sockets: &[UnixSocket]) -> HashMap<(u64, u64), Whose> {
    let mut owners: HashMap<u64, SlotId> = HashMap::with_capacity(sockets.len());
    for socket in sockets {
        let owner = owners.entry(socket.id).or_insert(socket.slot);
        *owner = socket.slot.min(*owner);
    }
    let each = sockets.iter().map(|socket| {
        let peer = match owners.get(&socket.peer) {
            Some(other) => PoolPeer::Slot(*other, Peer::Unix),
            // It was not accepted yet, or is closed.
            None => PoolPeer::Address(Peer::Unix),
        };
        let owner = owners.get(&socket.id).copied().unwrap_or(socket.slot);
        ((socket.id, socket.peer), (owner, socket.direction, peer))
    });
    each.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: SlotId = SlotId(2);
    const SERVER: SlotId = SlotId(9);

    fn ends(id: u64) -> [UnixSocket; 2] {
        let client = UnixSocket {
            id,
            peer: id + 1,
            slot: CLIENT,
            direction: Direction::Out,
        };
        let server = UnixSocket {
            id: id + 1,
            peer: id,
            slot: SERVER,
            direction: Direction::In,
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
        assert_eq!(pool(&found, 0, Direction::Out, nobody), Some((1, 1, 0)));
        let conn = &found.slots[0].1.conns[&(Direction::Out, Peer::Unix)];
        assert_eq!((conn.open, conn.opened, conn.closed), (3, 2, 0));

        let after = tick(&mut connections, ends(20).to_vec());
        assert_eq!(pool(&after, 0, Direction::Out, server), Some((1, 0, 1)));
        assert_eq!(pool(&after, 1, Direction::In, client), Some((1, 0, 1)));
    }
}
