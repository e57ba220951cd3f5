//! Connections over Unix sockets as later stages see them.

use super::model::SlotId;
use agent_ebpf::wire::Direction;

/// One end of a connection over a Unix socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnixSocket {
    /// Names the socket while it exists.
    pub id: u64,
    /// Tells it from later ones of the name.
    pub inode: u32,
    /// Names that of the other end.
    pub peer: u64,
    /// Whose.
    pub slot: SlotId,
    /// Who connected.
    pub direction: Direction,
    /// Of an accepted socket, who connected, where the kernel still knows it.
    pub client: Option<SlotId>,
}

/// Connections over Unix sockets that lived between two ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnixBrief {
    /// Who accepted them.
    pub server: SlotId,
    /// Who connected, where that is known.
    pub client: Option<SlotId>,
    /// How many: an estimate where system calls are counted in windows.
    pub count: u64,
}

impl UnixBrief {
    /// What they stand for, where each that was counted stands for so many.
    #[must_use]
    pub fn scaled(&self, factor: f64) -> Self {
        Self {
            count: (self.count as f64 * factor).round() as u64,
            ..*self
        }
    }
}
