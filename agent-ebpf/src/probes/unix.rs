//! Connections over Unix sockets. It has no hook of its own: the visit to all descriptors (`fd`) finds those that are open, and
//! where system calls are counted (`syscall`) those that were accepted.

use crate::{offsets::Field, probe::Probe};

/// What it is.
pub const PROBE: Probe = Probe {
    name: "unix",
    help: "Connections over Unix sockets: those that are open on each tick, by `fd`, and those closed again by then, by `syscall`.",
    hooks: &[],
    fields: &[
        Field::InodeNumber,
        Field::PidNumber,
        Field::SkFamily,
        Field::SkState,
        Field::SkType,
        Field::SkPeerPid,
        Field::UnixAddr,
        Field::UnixAddrRefs,
        Field::UnixPeer,
    ],
    metrics: &["tieback_pool_connections", "tieback_pool_opened_total"],
};
