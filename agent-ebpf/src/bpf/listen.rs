//! What listens: by address, to know whose an accepted connection is, and each socket, to look at its accept queue.

use aya_ebpf::{btf_maps::HashMap, macros::btf_map};

use super::{
    count::{add, lost},
    file::File,
    sock::Sock,
    state::in_use,
    task::{current, now},
};
use crate::offsets::MARK_FLAGS;
use crate::wire::{LISTEN_SAMPLES, ListenKey, ListenSock, Listener, Lost, Program};

/// What listens, by address.
#[btf_map]
static CONN_LISTENERS: HashMap<ListenKey, Listener, 4096, MARK_FLAGS> = HashMap::new();

/// Listening sockets, by their address in memory.
#[btf_map]
pub(crate) static LISTEN_SOCKS: HashMap<u64, ListenSock, { LISTEN_SAMPLES }, MARK_FLAGS> = HashMap::new();

/// A socket listens, of the program image `slot`. `found`: it did so before it was seen.
#[inline(always)]
pub(crate) fn listens(sock: Sock, slot: u32, found: bool) {
    let key = sock.listen_key();
    let address = sock.0.0 as u64;
    if found && let Some(known) = LISTEN_SOCKS.get_ptr_mut(address) {
        // SAFETY: map values.
        unsafe {
            if (*known).key.port == key.port {
                if !in_use((*known).slot) {
                    take_over(known, slot);
                }
                return;
            }
        }
        // `listen` without `bind`: the port was chosen after the socket was seen.
        forget(address, known);
    }
    match CONN_LISTENERS.get_ptr_mut(&key) {
        // SAFETY: a map value.
        Some(listener) if !found => unsafe {
            if (*listener).slot != slot {
                (*listener).slot = slot;
                (*listener).established = 0;
            }
        },
        Some(_) => {}
        None => {
            let listener = Listener {
                established: 0,
                sockets: 0,
                slot,
                pad: 0,
            };
            let _ = CONN_LISTENERS.insert(&key, &listener, 1);
        }
    }
    let known = ListenSock {
        key,
        since: now(),
        slot,
        found: u32::from(found),
        accepts: 0,
        pad: 0,
    };
    if LISTEN_SOCKS.insert(address, &known, 0).is_err() {
        lost(Program::ConnState, Lost::Conns);
        return;
    }
    if let Some(listener) = CONN_LISTENERS.get_ptr_mut(&key) {
        // SAFETY: a map value.
        add(unsafe { &raw mut (*listener).sockets }, 1);
    }
}

/// A program accepted a connection from this descriptor. Service managers listen for others, and keep the socket open without ever
/// accepting from it: it is that of the program which does. One that was seen to accept keeps it as long as it lives.
#[inline(never)]
pub(crate) fn accepts(fd: u32, slot: u32) {
    let Some(file) = File::of(current(), fd.into()) else {
        return;
    };
    let Some(sock) = file.sock().map(Sock) else { return };
    let Some(known) = LISTEN_SOCKS.get_ptr_mut(sock.0.0 as u64) else {
        return;
    };
    // SAFETY: map values.
    unsafe {
        if (*known).slot != slot {
            if (*known).accepts != 0 {
                return;
            }
            take_over(known, slot);
        }
        (*known).accepts = 1;
    }
}

/// A socket's program is gone, or only held it, and has left it to another one.
///
/// # Safety
/// A map value.
#[inline(always)]
unsafe fn take_over(known: *mut ListenSock, slot: u32) {
    // SAFETY: map values.
    unsafe {
        if let Some(listener) = CONN_LISTENERS.get_ptr_mut(&(*known).key)
            && (*listener).slot == (*known).slot
        {
            (*listener).slot = slot;
            (*listener).established = 0;
        }
        (*known).slot = slot;
        (*known).accepts = 0;
    }
}

/// A socket does not listen any more.
#[inline(always)]
pub(crate) fn listens_no_more(sock: Sock) {
    let address = sock.0.0 as u64;
    match LISTEN_SOCKS.get_ptr_mut(address) {
        Some(known) => forget(address, known),
        None => {
            let _ = CONN_LISTENERS.remove(&sock.listen_key());
        }
    }
}

/// Forgets a socket, and its address with the last socket on it (`SO_REUSEPORT`).
#[inline(always)]
fn forget(address: u64, known: *mut ListenSock) {
    // SAFETY: a map value, copied at once.
    let key = unsafe { (*known).key };
    if let Some(listener) = CONN_LISTENERS.get_ptr_mut(&key) {
        // SAFETY: a map value. Two sockets on one address that are closed at the same moment both find it unused.
        let left = unsafe {
            add(&raw mut (*listener).sockets, u64::MAX);
            (&raw const (*listener).sockets).read_volatile()
        };
        if left == 0 {
            let _ = CONN_LISTENERS.remove(&key);
        }
    }
    let _ = LISTEN_SOCKS.remove(address);
}

/// The listener that accepts on this socket's local address.
#[inline(always)]
pub(crate) fn listener(sock: Sock) -> Option<*mut Listener> {
    let mut key = sock.listen_key();
    if let Some(listener) = CONN_LISTENERS.get_ptr_mut(&key) {
        return Some(listener);
    }
    key.addr = [0; 16];
    CONN_LISTENERS.get_ptr_mut(&key)
}

/// Connections established on an address that are counted for this program image.
#[inline(always)]
pub(crate) fn established(key: &ListenKey, slot: u32) -> u64 {
    // SAFETY: the value is copied at once.
    match unsafe { CONN_LISTENERS.get(key) } {
        Some(listener) if listener.slot == slot => listener.established,
        _ => 0,
    }
}
