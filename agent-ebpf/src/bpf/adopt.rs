//! Connections that are there already: older than the agent, or left by a program to the one that it became.

use super::{
    conn::{CONNS, late, new, note_open, stats},
    count::add,
    listen::{listener, listens},
    sock::{CLOSE_WAIT, ESTABLISHED, LISTEN, Sock},
    state::in_use,
    task::now,
};
use crate::wire::{CONN_ADOPTED, CONN_CLOSED, CONN_ESTABLISHED, Conn, Direction};

/// Nanoseconds after its beginning when nobody is about to tell any more that a connection is established.
const SETTLED: u64 = 1_000_000_000;

/// A connection that is known: where its program is gone, it has left it to the one in which it is open now.
#[inline(always)]
fn left(conn: *mut Conn, slot: u32) {
    // SAFETY: map values; connections that are closed are counted under the slot that they had.
    unsafe {
        if in_use((*conn).key.slot)
            || (*conn).flags & CONN_ESTABLISHED == 0
            || (*conn).flags & CONN_CLOSED != 0
        {
            return;
        }
        (*conn).key.slot = slot;
        if let Some(stats) = stats(&(*conn).key) {
            add(&raw mut (*stats).adopted, 1);
            note_open(stats);
        }
    }
}

/// Takes up a socket that is open in a process: one that is older than the agent, or whose owner changed. What listens comes
/// first: a connection is taken for an outgoing one where nothing is known to listen at its address.
#[inline(always)]
pub(crate) fn adopt(sock: Sock, slot: u32, listeners_only: bool) {
    if !sock.is_tcp() {
        return;
    }
    let state = sock.state();
    match state {
        LISTEN => listens(sock, slot, true),
        _ if listeners_only => {}
        ESTABLISHED | CLOSE_WAIT => {
            if let Some(conn) = CONNS.get_ptr_mut(sock.0.0 as u64) {
                // SAFETY: a map value.
                let (flags, since) = unsafe { ((*conn).flags, (*conn).since) };
                if flags & CONN_ESTABLISHED == 0 && now().saturating_sub(since) > SETTLED {
                    late(conn);
                }
                return left(conn, slot);
            }
            let direction = if listener(sock).is_some() {
                Direction::In
            } else {
                Direction::Out
            };
            let key = sock.key(slot, direction);
            let (sent, received) = sock.bytes(direction as u8, state);
            let (out, back) = sock.data_segments();
            let exchanges = out.min(back);
            let resent = sock.retransmits();
            let conn = Conn {
                sent,
                received,
                exchanges,
                resent,
                ..new(key, CONN_ESTABLISHED | CONN_ADOPTED)
            };
            let address = sock.0.0 as u64;
            if CONNS.insert(address, &conn, 1).is_err() {
                return;
            }
            // Of one that ended since its state was read nobody tells any more, unless it was here by then: it is counted as closed.
            if !matches!(sock.state(), ESTABLISHED | CLOSE_WAIT)
                && let Some(conn) = CONNS.get_ptr_mut(address)
                // SAFETY: a map value.
                && unsafe { (*conn).flags } & CONN_CLOSED == 0
            {
                let _ = CONNS.remove(address);
                return;
            }
            if let Some(stats) = stats(&key) {
                // SAFETY: a map value.
                add(unsafe { &raw mut (*stats).adopted }, 1);
                note_open(stats);
            }
        }
        _ => {}
    }
}
