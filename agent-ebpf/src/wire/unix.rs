//! What the kernel side keeps and tells of connections over Unix sockets.

use super::FdProcess;

/// One end of a connection over a Unix socket: what `fd_harvest` writes for each, as long as an [`FdProcess`].
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct UnixEnd {
    /// 0, which no process has.
    pub pid: u32,
    /// Slot.
    pub slot: u32,
    /// Address of the socket.
    pub socket: u64,
    /// Address of the other end's socket.
    pub peer: u64,
    /// `Direction`.
    pub direction: u32,
    /// Of an accepted socket, the slot of the process that connected; 0 where it is not known.
    pub client: u32,
    /// Number of the socket's inode, which tells it from a later one at the same address (socket inodes have 32 bits of number).
    pub inode: u32,
    /// Padding.
    pub pad: u32,
}
const _: () = assert!(size_of::<UnixEnd>() == size_of::<FdProcess>());

/// Who accepted a connection, and whose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct UnixPair {
    /// Slot of the process that accepted it.
    pub server: u32,
    /// Slot of the one that connected, 0 where it is not known.
    pub client: u32,
}

/// Connections that were accepted while system calls were counted.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct UnixAccepted {
    /// All of them.
    pub accepted: u64,
    /// Those that a visit to all descriptors found, which counts them by itself.
    pub visited: u64,
}

/// An accepted socket that was not visited yet.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct UnixRecent {
    /// [`UnixEnd::inode`]; 0 once it was visited.
    pub inode: u32,
    /// Under which it was counted.
    pub pair: UnixPair,
}

/// Pairs that are told apart.
pub const UNIX_PAIRS: usize = 8192;
/// Sockets that are accepted between two visits and still open at the second: one that is forgotten counts twice.
pub const UNIX_RECENTS: usize = 16384;
