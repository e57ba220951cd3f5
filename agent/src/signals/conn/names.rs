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
    /// Looks for the other ends of connections that are new in this sample.
    pub(super) fn update(&mut self, sockets: &[Socket]) {
        self.round += 1;
        let round = self.round;
        // The sockets that are looked for, and whose they are.
        let mut owners: HashMap<End, Option<SlotId>> = HashMap::new();
        for socket in sockets {
            let known = self.known.entry(socket.id).or_insert(Known {
                since_ns: socket.since_ns,
                round,
                other: None,
                tries: 0,
            });
            if known.since_ns != socket.since_ns {
                *known = Known {
                    since_ns: socket.since_ns,
                    round,
                    other: None,
                    tries: 0,
                };
            }
            known.round = round;
            if known.other.is_some() {
                continue;
            }
            known.tries = known.tries.saturating_add(1);
            if known.tries <= TRIES || known.tries.is_power_of_two() {
                owners.insert(end(socket, socket.remote, socket.local), None);
            }
        }
        self.known.retain(|_, known| known.round == round);
        if owners.is_empty() {
            return;
        }
        for socket in sockets {
            if let Some(owner) = owners.get_mut(&end(socket, socket.local, socket.remote)) {
                *owner = Some(socket.slot);
            }
        }
        for socket in sockets {
            if let Some(known) = self.known.get_mut(&socket.id)
                && known.other.is_none()
                && let Some(owner) = owners.get(&end(socket, socket.remote, socket.local))
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
