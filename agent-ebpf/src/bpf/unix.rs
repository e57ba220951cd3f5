//! Connections over Unix sockets that are accepted and opened while system calls are counted.
//!
//! The visit to all descriptors finds those that are open at the end of a tick; only this finds those that are closed again
//! by then. Which of the accepted ones the visit has found is noted, so that none counts twice.

use aya_ebpf::{
    btf_maps::{HashMap, LruHashMap},
    macros::btf_map,
};

use super::{
    count::{add, lost},
    file::File,
    sock::Sock,
    task::current,
};
use crate::{
    offsets::MARK_FLAGS,
    wire::{Direction, Lost, Program, UNIX_PAIRS, UNIX_RECENTS, UnixAccepted, UnixEnd, UnixPair, UnixRecent},
};

/// Connections by whose they are.
#[btf_map]
static UNIX_ACCEPTED: HashMap<UnixPair, UnixAccepted, UNIX_PAIRS, MARK_FLAGS> = HashMap::new();

/// Accepted sockets, by address. Brief ones use few addresses in turn.
#[btf_map]
static UNIX_RECENT: LruHashMap<u64, UnixRecent, UNIX_RECENTS> = LruHashMap::new();

/// The running thread accepted a connection.
#[inline(never)]
pub(crate) fn accepted(fd: u32, slot: u32) {
    let Some(file) = File::of(current(), fd.into()) else {
        return;
    };
    let Some(sock) = file.sock().map(Sock) else { return };
    let Some(end) = sock.unix(slot, file.inode_number() as u32) else {
        return;
    };
    if end.direction != Direction::In as u32 {
        return;
    }
    let pair = UnixPair {
        server: slot,
        client: end.client,
    };
    let known = UNIX_ACCEPTED.get_ptr_mut(&pair).or_else(|| {
        // Two CPUs may insert at once: only one wins, and both then add.
        let _ = UNIX_ACCEPTED.insert(&pair, &UnixAccepted::default(), 1);
        UNIX_ACCEPTED.get_ptr_mut(&pair)
    });
    let Some(known) = known else {
        return lost(Program::SyscallExit, Lost::Counters);
    };
    let recent = UnixRecent {
        inode: end.inode,
        pair,
    };
    let _ = UNIX_RECENT.insert(&end.socket, &recent, 0);
    // SAFETY: a map value.
    add(unsafe { &raw mut (*known).accepted }, 1);
}

/// Whether the running thread has just connected this descriptor.
#[inline(never)]
pub(crate) fn connected(fd: u32, slot: u32) -> bool {
    let Some(file) = File::of(current(), fd.into()) else {
        return false;
    };
    let Some(sock) = file.sock().map(Sock) else {
        return false;
    };
    sock.unix(slot, 0)
        .is_some_and(|end| end.direction == Direction::Out as u32)
}

/// The visit to all descriptors found this end.
#[inline(always)]
pub(crate) fn visited(end: &UnixEnd) {
    if end.direction != Direction::In as u32 {
        return;
    }
    let Some(recent) = UNIX_RECENT.get_ptr_mut(&end.socket) else {
        return;
    };
    // SAFETY: map values; only the iterator writes to one that is there.
    unsafe {
        if (*recent).inode == 0 || (*recent).inode != end.inode {
            return;
        }
        (*recent).inode = 0;
        if let Some(known) = UNIX_ACCEPTED.get_ptr_mut(&(*recent).pair) {
            add(&raw mut (*known).visited, 1);
        }
    }
}
