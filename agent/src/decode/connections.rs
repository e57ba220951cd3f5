//! Connections as later stages see them: by peer, and how those with a peer are used.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use agent_ebpf::wire::{ConnEnd, ConnFailure};

use super::model::{Histogram, SlotId};

/// The other end of connections, with ephemeral ports left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peer {
    /// Address and port of a listening side.
    Server(IpAddr, u16),
    /// Address of a connecting side; its port is ephemeral.
    Client(IpAddr),
    /// A program of this host, over Unix sockets.
    Unix,
    /// Past the bound on peers.
    Other,
}

/// Totals of the connections of one direction with one peer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConnTotals {
    /// Open now (gauge).
    pub open: u64,
    /// Established since the agent runs (`Out`: connects that succeeded; `In`: accepted).
    pub opened: u64,
    /// Established ones that ended.
    pub closed: u64,
    /// Failures by `ConnFailure`.
    pub failures: [u64; ConnFailure::COUNT],
    /// Ended ones by `ConnEnd`.
    pub ended: [u64; ConnEnd::COUNT],
    /// Exchanges, estimated from data segments: see [`PoolTotals::exchanges`].
    pub exchanges: u64,
    /// Ended after at most one exchange.
    pub once: u64,
    /// Most that were open at once in the tick (gauge).
    pub peak: u64,
    /// Payload bytes sent.
    pub sent_bytes: u64,
    /// Payload bytes received.
    pub received_bytes: u64,
    /// Retransmitted segments.
    pub retransmits: u64,
    /// Time from SYN to established.
    pub connect: Histogram,
    /// Age when closed.
    pub age: Histogram,
}

/// The other end of connections by what it is called.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PoolPeer {
    /// A program image on this host; the attributing stage makes it a service, or the peer where it has none.
    Slot(SlotId, Peer),
    /// A service on this host, as `NAMESPACE/NAME` or `NAME`.
    Service(Arc<str>),
    /// The same over Unix sockets, as `unix:NAMESPACE/NAME` or `unix:NAME`.
    Unix(Arc<str>),
    /// An address.
    Address(Peer),
}

impl PoolPeer {
    /// Past the bound on peers.
    pub const OTHER: Self = Self::Address(Peer::Other);

    /// Unix sockets do not say which way data went, nor how much.
    #[must_use]
    pub const fn counted_only(&self) -> bool {
        matches!(
            self,
            Self::Unix(_) | Self::Address(Peer::Unix) | Self::Slot(_, Peer::Unix)
        )
    }
}

/// How the connections of one direction with one peer are used. What is said of "busy" is sampled: a connection is busy
/// while it is this side's turn to work (accepted ones) or the other side's (opened ones), which is to say that the last
/// data went from the client to the server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoolTotals {
    /// Open at the last sample (gauge).
    pub open: u64,
    /// Busy at the last sample (gauge).
    pub busy: u64,
    /// Of those open at the last sample, how many had moved no data for a minute (gauge).
    pub quiet: u64,
    /// Most that were open at once (gauge): exact where one program image and address make up the pool.
    pub open_peak: u64,
    /// Most that any sample found busy at once (gauge).
    pub busy_peak: u64,
    /// Ages of those open at the last sample, in powers of two of milliseconds (gauge); connections that are older than
    /// the agent count from its start.
    pub ages: [u64; AGES],
    /// The same ages in nanoseconds, summed (gauge).
    pub ages_ns: u128,
    /// The greatest of them (gauge).
    pub oldest_ns: u64,
    /// Nanoseconds that connections were open, summed over them: 50,000 of them fill 64 bits in four days.
    pub open_ns: u128,
    /// The part of `open_ns` during which they were busy.
    pub busy_ns: u128,
    /// Samples.
    pub samples: u64,
    /// Established.
    pub opened: u64,
    /// Ended.
    pub closed: u64,
    /// Exchanges (a request and its answer), estimated: of each connection the lesser of the data segments sent and
    /// received. Exact where each request and each answer, or one of both, is one segment; pipelined requests that share a
    /// segment count as one, and where requests and answers both take several segments, too many are counted.
    pub exchanges: u64,
    /// Ended after at most one exchange.
    pub once: u64,
    /// Ages at the end.
    pub age: Histogram,
    /// Addresses of a peer that has a name; [`MOST_ADDRESSES`] at most.
    pub addresses: BTreeSet<Peer>,
}

/// Addresses that are kept of a peer.
pub const MOST_ADDRESSES: usize = 16;

/// Classes of [`PoolTotals::ages`]: up to 1 ms, 2 ms, and so on; the last one is everything above 2^30 ms (12 days).
pub const AGES: usize = 32;
