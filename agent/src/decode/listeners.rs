//! Listening sockets as the kernel side writes them when it is asked for a sample.

use std::net::SocketAddr;

use agent_ebpf::wire::ListenSample;
use anyhow::Result;

use super::keys::address;
use super::model::SlotId;
use crate::load::Loaded;

/// What became of connections to one address that a service listens on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListenTotals {
    /// Waiting to be accepted at the last sample (gauge).
    pub queued: u64,
    /// How many may wait, summed over sockets; 0 where nobody listens any more (gauge).
    pub limit: u64,
    /// Sockets that listen (gauge).
    pub sockets: u64,
    /// Nanoseconds that connections waited to be accepted, summed over them; sampled.
    pub queue_ns: u64,
    /// Taken out of the queue.
    pub accepted: u64,
    /// Requests that were dropped.
    pub dropped: u64,
}

impl ListenTotals {
    /// Adds another's counts and gauges.
    pub fn merge(&mut self, other: &Self) {
        let Self {
            queued,
            limit,
            sockets,
            queue_ns,
            accepted,
            dropped,
        } = other;
        self.queued += queued;
        self.limit += limit;
        self.sockets += sockets;
        self.queue_ns += queue_ns;
        self.accepted += accepted;
        self.dropped += dropped;
    }

    /// Forgets what is true of one tick only.
    pub fn clear_gauges(&mut self) {
        (self.queued, self.limit, self.sockets) = (0, 0, 0);
    }
}

/// A listening socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listening {
    /// Names the socket, together with `since_ns`.
    pub id: u64,
    /// When it began to listen, or was found.
    pub since_ns: u64,
    /// Whose.
    pub slot: SlotId,
    /// Inode of its network namespace.
    pub netns: u32,
    /// Where.
    pub address: SocketAddr,
    /// Waiting to be accepted.
    pub queued: u64,
    /// How many may wait.
    pub limit: u64,
    /// Established on the address, by all sockets on it, since the kernel side knows it.
    pub established: u64,
    /// Dropped since the socket exists; it wraps.
    pub dropped: u32,
    /// Older than the agent.
    pub found: bool,
}

/// Reads samples; keeps its buffers.
#[derive(Default)]
pub struct Listeners {
    samples: Vec<ListenSample>,
    sockets: Vec<Listening>,
    /// Records that made no sense.
    pub malformed: u64,
}

impl Listeners {
    /// Every listening socket now.
    pub fn read(&mut self, loaded: &mut Loaded) -> Result<&[Listening]> {
        self.samples.clear();
        loaded.listeners(&mut self.samples)?;
        self.sockets.clear();
        for sample in &self.samples {
            match listening(sample) {
                Some(socket) => self.sockets.push(socket),
                None => self.malformed += 1,
            }
        }
        Ok(&self.sockets)
    }
}

fn listening(sample: &ListenSample) -> Option<Listening> {
    Some(Listening {
        id: sample.socket,
        since_ns: sample.since,
        slot: SlotId(sample.slot),
        netns: sample.netns,
        address: SocketAddr::new(address(sample.family, &sample.local)?, sample.port),
        queued: sample.queued.into(),
        limit: sample.limit.into(),
        established: sample.established,
        dropped: sample.dropped,
        found: sample.found != 0,
    })
}
