//! Sums samples of listening sockets.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;

use crate::decode::listeners::Listening;
use crate::decode::model::{ListenTotals, Peer, SlotId, Tick};

/// A program image, a network namespace and an address in it: what the kernel side counts together.
type Key = (SlotId, u32, SocketAddr);

/// What samples say since the last tick.
#[derive(Default)]
pub struct Queues {
    queues: HashMap<Key, Queue>,
    /// Dropped at the last sample, by socket.
    dropped: HashMap<(u64, u64), u32>,
    last_ns: Option<u64>,
}

#[derive(Default)]
struct Queue {
    totals: ListenTotals,
    /// At the last sample: established, and of these waiting.
    last: Option<(u64, u64)>,
    /// Connections by which the count of those that were taken out was too high for a moment: the kernel counts one that comes in
    /// the queue first.
    ahead: u64,
}

/// All sockets on one address.
#[derive(Default)]
struct Now {
    queued: u64,
    limit: u64,
    sockets: u64,
    established: u64,
    dropped: u64,
    found: bool,
}

impl Queues {
    /// Takes a sample of all listening sockets at `now_ns` of the monotonic clock. Between two samples queues are taken to have
    /// been as long as the mean of both.
    pub fn sample(&mut self, now_ns: u64, sockets: &[Listening]) {
        let length_ns = now_ns.saturating_sub(self.last_ns.replace(now_ns).unwrap_or(now_ns));
        let mut all: HashMap<Key, Now> = HashMap::new();
        let mut dropped = HashMap::with_capacity(sockets.len());
        for socket in sockets {
            let now = all
                .entry((socket.slot, socket.netns, socket.address))
                .or_default();
            now.queued += socket.queued;
            now.limit += socket.limit;
            now.sockets += 1;
            // One count for all sockets on an address.
            now.established = now.established.max(socket.established);
            now.found |= socket.found;
            let name = (socket.id, socket.since_ns);
            let before = self.dropped.get(&name).copied();
            let before = before.unwrap_or(if socket.found { socket.dropped } else { 0 });
            now.dropped += u64::from(socket.dropped.wrapping_sub(before));
            dropped.insert(name, socket.dropped);
        }
        self.dropped = dropped;
        for (key, queue) in &mut self.queues {
            if !all.contains_key(key) {
                queue.end();
            }
        }
        for (key, now) in all {
            self.queues.entry(key).or_default().sample(&now, length_ns);
        }
    }

    /// Adds what is known to a tick's totals.
    pub fn finish(&mut self, tick: &mut Tick) {
        let live: HashSet<SlotId> = tick.slots.iter().map(|(slot, _)| *slot).collect();
        let mut done: HashMap<SlotId, BTreeMap<Peer, ListenTotals>> = HashMap::new();
        for ((slot, _, address), queue) in &mut self.queues {
            // A program that began while the tick was read is in the next one.
            if live.contains(slot) {
                let peer = Peer::Server(address.ip(), address.port());
                let listeners = done.entry(*slot).or_default();
                listeners.entry(peer).or_default().merge(&queue.take());
            }
        }
        self.queues.retain(|(slot, ..), queue| {
            queue.last.is_some() || !live.contains(slot) && queue.totals != ListenTotals::default()
        });
        for (slot, totals) in &mut tick.slots {
            totals.listeners = done.remove(slot).unwrap_or_default();
        }
    }
}

impl Queue {
    fn sample(&mut self, now: &Now, length_ns: u64) {
        let (established, queued) = match self.last {
            // It listens anew: nothing is left of what waited.
            Some((established, _)) if established > now.established => (0, 0),
            Some(last) => last,
            // What waited when it was found came before it was counted.
            None if now.found => (now.established, now.queued),
            None => (0, 0),
        };
        let gone =
            (now.established - established) as i64 + queued as i64 - now.queued as i64 - self.ahead as i64;
        self.ahead = gone.min(0).unsigned_abs();
        self.totals.accepted += gone.max(0).unsigned_abs();
        self.totals.queue_ns += (queued + now.queued) * length_ns / 2;
        self.totals.dropped += now.dropped;
        (self.totals.queued, self.totals.limit, self.totals.sockets) = (now.queued, now.limit, now.sockets);
        self.last = Some((now.established, now.queued));
    }

    /// Nobody listens any more: what waited was never accepted.
    fn end(&mut self) {
        self.totals.clear_gauges();
        (self.last, self.ahead) = (None, 0);
    }

    /// The totals of a tick; the next begins with the gauges as they are.
    fn take(&mut self) -> ListenTotals {
        let ListenTotals {
            queued,
            limit,
            sockets,
            ..
        } = self.totals;
        let next = ListenTotals {
            queued,
            limit,
            sockets,
            ..ListenTotals::default()
        };
        std::mem::replace(&mut self.totals, next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const SLOT: SlotId = SlotId(4);

    fn socket(id: u64, queued: u64, established: u64, dropped: u32) -> Listening {
        Listening {
            id,
            since_ns: 1,
            slot: SLOT,
            netns: 1,
            address: "127.0.0.1:80".parse().unwrap(),
            queued,
            limit: 5,
            established,
            dropped,
            found: id == 2,
        }
    }

    fn finish(queues: &mut Queues) -> Option<ListenTotals> {
        let mut tick = Tick {
            slots: vec![(SLOT, Box::default())],
            ..Tick::default()
        };
        queues.finish(&mut tick);
        let listeners = &tick.slots[0].1.listeners;
        listeners
            .get(&Peer::Server("127.0.0.1".parse().unwrap(), 80))
            .cloned()
    }

    #[test]
    fn waiting_is_summed_and_counts_are_differences() {
        let mut queues = Queues::default();
        queues.sample(SECOND, &[socket(1, 0, 10, 1)]);
        queues.sample(3 * SECOND, &[socket(1, 4, 16, 3)]);
        let expected = ListenTotals {
            queued: 4,
            limit: 5,
            sockets: 1,
            queue_ns: 4 * SECOND,
            accepted: 12,
            dropped: 3,
        };
        assert_eq!(finish(&mut queues), Some(expected.clone()));
        queues.sample(4 * SECOND, &[socket(1, 0, 2, 3)]);
        let anew = ListenTotals {
            queued: 0,
            queue_ns: 0,
            accepted: 2,
            dropped: 0,
            ..expected
        };
        assert_eq!(finish(&mut queues), Some(anew), "it listens anew");
        queues.sample(5 * SECOND, &[]);
        assert_eq!(finish(&mut queues), Some(ListenTotals::default()));
        assert_eq!(finish(&mut queues), None, "closed");
    }

    #[test]
    fn what_waited_and_was_dropped_before_the_agent_came_does_not_count() {
        let mut queues = Queues::default();
        // The second socket on the address is older than the agent, and so is what is in its queue.
        queues.sample(SECOND, &[socket(2, 3, 0, 7)]);
        queues.sample(2 * SECOND, &[socket(2, 2, 0, 8), socket(1, 1, 0, 0)]);
        queues.sample(3 * SECOND, &[socket(2, 0, 4, 8), socket(1, 1, 4, 1)]);
        let expected = ListenTotals {
            queued: 1,
            limit: 10,
            sockets: 2,
            queue_ns: 5 * SECOND,
            accepted: 6,
            dropped: 2,
        };
        assert_eq!(finish(&mut queues), Some(expected));
    }

    #[test]
    fn a_connection_that_is_in_the_queue_before_it_is_counted_is_accepted_once() {
        let mut queues = Queues::default();
        for (at, queued, established) in [(1, 0, 0), (2, 1, 0), (3, 0, 1), (4, 0, 1)] {
            queues.sample(at * SECOND, &[socket(1, queued, established, 0)]);
        }
        assert_eq!(finish(&mut queues).map(|totals| totals.accepted), Some(1));
    }
}
