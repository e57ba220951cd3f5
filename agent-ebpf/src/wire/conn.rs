//! What the kernel side keeps and tells of connections.

use super::{ConnEnd, ConnFailure, Hist};

/// Whom connections are counted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct ConnKey {
    /// Slot.
    pub slot: u32,
    /// Remote port for outgoing connections, 0 for accepted ones.
    pub port: u16,
    /// `Direction`.
    pub direction: u8,
    /// 4 or 6; 0 past the bound on peers.
    pub family: u8,
    /// Remote address; IPv4 in the first four bytes.
    pub addr: [u8; 16],
}
const _: () = assert!(size_of::<ConnKey>() == 24);

/// Counters of connections.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct ConnStats {
    /// Established.
    pub opened: u64,
    /// Found established when the agent started.
    pub adopted: u64,
    /// Ended after having been established (or adopted).
    pub closed: u64,
    /// By `ConnFailure`.
    pub failures: [u64; ConnFailure::COUNT],
    /// Payload bytes sent.
    pub sent: u64,
    /// Payload bytes received.
    pub received: u64,
    /// Retransmitted segments.
    pub retransmits: u64,
    /// By `ConnEnd`.
    pub ended: [u64; ConnEnd::COUNT],
    /// Exchanges: of each connection the lesser of the data segments sent and received.
    pub exchanges: u64,
    /// Connections that ended after at most one exchange, those older than the agent aside.
    pub once: u64,
    /// Most that were open at once during `round`.
    pub peak: u64,
    /// The same of the round before.
    pub peak_before: u64,
    /// [`Tuning::round`](super::Tuning::round) of `peak`.
    pub round: u64,
    /// SYN to established.
    pub connect: Hist,
    /// Age at close.
    pub age: Hist,
}

/// A connection that exists.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Conn {
    /// Whose and with whom.
    pub key: ConnKey,
    /// When the SYN was sent, or when it was established.
    pub since: u64,
    /// Bytes sent that are counted already.
    pub sent: u64,
    /// Bytes received that are counted already.
    pub received: u64,
    /// `CONN_*` flags.
    pub flags: u32,
    /// Exchanges that are counted already.
    pub exchanges: u32,
    /// Data segments sent when `last` was decided.
    pub data_out: u32,
    /// Data segments received when `last` was decided.
    pub data_in: u32,
    /// `LastData`.
    pub last: u32,
    /// Segments sent again that are counted already.
    pub resent: u32,
}

/// An open connection as it is now: what `pool_sample` writes for each.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct ConnSample {
    /// Address of the socket; together with `since` it names the connection.
    pub socket: u64,
    /// When it was established (or found), in nanoseconds of the monotonic clock.
    pub since: u64,
    /// Slot.
    pub slot: u32,
    /// Inode of the network namespace.
    pub netns: u32,
    /// Local address; IPv4 in the first four bytes.
    pub local: [u8; 16],
    /// Remote address, likewise.
    pub remote: [u8; 16],
    /// Local port.
    pub local_port: u16,
    /// Remote port.
    pub remote_port: u16,
    /// 4 or 6.
    pub family: u8,
    /// `Direction`.
    pub direction: u8,
    /// `CONN_*` flags.
    pub flags: u8,
    /// `LastData`.
    pub last: u8,
    /// Jiffies since data went either way.
    pub quiet: u32,
    /// Jiffies, the lower half: two samples tell how long one is.
    pub jiffies: u32,
}
const _: () = assert!(size_of::<ConnSample>() == 72);

/// Connections that one run of `pool_sample` or `conn_settle` looks at. Runs cannot be preempted, so this bounds how long they
/// take; where more are open, there are several.
pub const CONN_SAMPLES: usize = 4096;

/// What a run of `pool_sample` is given and writes (288 KiB).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct ConnSamples {
    /// How many it wrote: those of its connections that are open.
    pub count: u64,
    /// Each of them. Before the run, `socket` says of which sockets; the number is the run's first argument.
    pub samples: [ConnSample; CONN_SAMPLES],
}

/// What a run of `conn_settle` is given.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct ConnSockets {
    /// Not used.
    pub count: u64,
    /// Addresses of sockets; their number is the run's first argument.
    pub sockets: [u64; CONN_SAMPLES],
}

/// [`Conn::flags`]: established.
pub const CONN_ESTABLISHED: u32 = 1;
/// [`Conn::flags`]: counted as closed.
pub const CONN_CLOSED: u32 = 2;
/// [`Conn::flags`]: older than the agent, so its age is unknown.
pub const CONN_ADOPTED: u32 = 4;

/// What is known of the sockets that listen on an address.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Listener {
    /// Connections that were established on it for `slot`: since then they wait to be accepted, or were.
    pub established: u64,
    /// How many there are.
    pub sockets: u64,
    /// Slot of the one that began last.
    pub slot: u32,
    /// Padding.
    pub pad: u32,
}

/// A listening socket.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct ListenSock {
    /// Where it listens.
    pub key: ListenKey,
    /// When it began, or was found, in nanoseconds of the monotonic clock.
    pub since: u64,
    /// Slot.
    pub slot: u32,
    /// 1 where it was found: it may have dropped connections before.
    pub found: u32,
    /// 1 where the program of this slot was seen to accept from it.
    pub accepts: u32,
    /// Padding.
    pub pad: u32,
}

/// A listening socket as it is now: what `listen_sample` writes for each.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct ListenSample {
    /// Address of the socket; together with `since` it names the socket.
    pub socket: u64,
    /// When it began to listen, or was found, in nanoseconds of the monotonic clock.
    pub since: u64,
    /// [`Listener::established`] of its address, by all sockets on it; 0 where it is another slot's.
    pub established: u64,
    /// Slot.
    pub slot: u32,
    /// Connections that wait to be accepted.
    pub queued: u32,
    /// How many may wait: what `listen` was told, and the host allows.
    pub limit: u32,
    /// Dropped requests for connections, because the queue was full as a rule; it wraps.
    pub dropped: u32,
    /// Local address; IPv4 in the first four bytes.
    pub local: [u8; 16],
    /// Inode of the network namespace.
    pub netns: u32,
    /// Local port.
    pub port: u16,
    /// 4 or 6.
    pub family: u8,
    /// 1 where it was found: it may have dropped connections before.
    pub found: u8,
}
const _: () = assert!(size_of::<ListenSample>() == 64);

/// Listening sockets that are known at most.
pub const LISTEN_SAMPLES: usize = 2048;

/// What a run of `listen_sample` writes.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct ListenSamples {
    /// Listening sockets.
    pub count: u64,
    /// Each of them.
    pub samples: [ListenSample; LISTEN_SAMPLES],
}

/// Where sockets listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct ListenKey {
    /// Inode of the network namespace.
    pub netns: u32,
    /// Local port.
    pub port: u16,
    /// Padding.
    pub pad: u16,
    /// Local address, zero for any; IPv4 in the first four bytes.
    pub addr: [u8; 16],
}
