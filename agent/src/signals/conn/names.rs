//! Which program is at the other end: the socket whose addresses are the same, the other way round.

use std::collections::HashMap;
use std::net::SocketAddr;

use crate::decode::model::SlotId;
use crate::decode::sockets::Socket;

/// In how many samples the other end of a new connection is looked for; after these ever more rarely. Where a server's
/// queue is full, its end of a connection comes into being seconds after the client's.
const TRIES: u32 = 4;

/// Other ends by connection.
#[derive(Default)]
pub(super) struct Names {
    known: HashMap<u64, Known>,
    round: u64,
}

#[derive(Clone, Copy)]
struct Known {
    since_ns: u64,
    round: u64,
    other: Option<SlotId>,
    tries: u32,
}

/// Loopback addresses mean another host in each network namespace.
type End = (Option<u32>, SocketAddr, SocketAddr);

fn end(socket: &Socket, near: SocketAddr, far: SocketAddr) -> End {
    let alone = near.ip().is_loopback() || far.ip().is_loopback() || near.ip() == far.ip();
    (alone.then_some(socket.netns), near, far)
}

impl Names {
    /// A sample begins.
    pub(super) fn begin(&mut self) {
        self.round += 1;
    }

    /// Takes note of a connection of this sample; the program at its other end, where that is known already.
    pub(super) fn seen(&mut self, socket: &Socket) -> Option<SlotId> {
        let new = Known {
            since_ns: socket.since_ns,
            round: self.round,
            other: None,
            tries: 0,
        };
        let known = self.known.entry(socket.id).or_insert(new);
        if known.since_ns != socket.since_ns {
            *known = new;
        }
        known.round = self.round;
        known.other
    }

    /// Looks for the other ends of connections: `unknown` are all of this sample of which nothing is known yet. Both ends of a
    /// connection know each other or neither does. Those that were not in the sample are forgotten.
    pub(super) fn end(&mut self, unknown: &[Socket]) {
        let round = self.round;
        self.known.retain(|_, known| known.round == round);
        // The sockets that are looked for: who looks for them, and whose they are.
        let mut wanted: HashMap<End, (SlotId, Option<SlotId>)> = HashMap::new();
        for socket in unknown {
            if let Some(known) = self.known.get_mut(&socket.id) {
                known.tries = known.tries.saturating_add(1);
                if known.tries <= TRIES || known.tries.is_power_of_two() {
                    wanted.insert(end(socket, socket.remote, socket.local), (socket.slot, None));
                }
            }
        }
        if wanted.is_empty() {
            return;
        }
        for socket in unknown {
            if let Some((other, owner)) = wanted.get_mut(&end(socket, socket.local, socket.remote))
                && let Some(known) = self.known.get_mut(&socket.id)
            {
                known.other = Some(*other);
                *owner = Some(socket.slot);
            }
        }
        for socket in unknown {
            if let Some((_, owner @ Some(_))) = wanted.get(&end(socket, socket.remote, socket.local))
                && let Some(known) = self.known.get_mut(&socket.id)
            {
                known.other = *owner;
            }
        }
    }

    /// The program at the other end, where it is on this host.
    pub(super) fn other(&self, socket: &Socket) -> Option<SlotId> {
        self.known.get(&socket.id).and_then(|known| known.other)
    }
}
