//! Connections that exist, and what is counted of them.

use aya_ebpf::{
    btf_maps::{Array, HashMap},
    macros::btf_map,
};

use super::{
    count::{add, lost, observe},
    sock::Sock,
    state::tuning,
    task::now,
};
use crate::offsets::MARK_FLAGS;
use crate::wire::{
    CONN_ADOPTED, CONN_CLOSED, CONN_ESTABLISHED, Conn, ConnEnd, ConnKey, ConnStats, Lost, Program,
};

/// Connections that exist, by the address of their socket: one with both ends on this host is two.
#[btf_map]
pub(crate) static CONNS: HashMap<u64, Conn, 131072, MARK_FLAGS> = HashMap::new();

/// Totals.
#[btf_map]
pub(crate) static CONN_STATS: HashMap<ConnKey, ConnStats, 8192, MARK_FLAGS> = HashMap::new();

/// A `ConnStats` whose every byte is zero.
#[btf_map]
static CONN_ZERO: Array<ConnStats, 1> = Array::new();

/// Counters of a key, made where there are none.
#[inline(always)]
pub(crate) fn stats(key: &ConnKey) -> Option<*mut ConnStats> {
    if let Some(stats) = CONN_STATS.get_ptr_mut(key) {
        return Some(stats);
    }
    let zero = CONN_ZERO.get(0)?;
    if CONN_STATS.insert(key, zero, 1).is_err() && CONN_STATS.get_ptr_mut(key).is_none() {
        lost(Program::ConnState, Lost::Counters);
    }
    CONN_STATS.get_ptr_mut(key)
}

/// Counts the end of a connection, once.
#[inline(always)]
pub(crate) fn count_closed(sock: Sock, conn: *mut Conn, stats: *mut ConnStats, end: ConnEnd) {
    // SAFETY: map values; the socket's lock is held by whoever changes its state.
    unsafe {
        if (*conn).flags & CONN_CLOSED != 0 || (*conn).flags & CONN_ESTABLISHED == 0 {
            return;
        }
        (*conn).flags |= CONN_CLOSED;
        add(&raw mut (*stats).closed, 1);
        add((&raw mut (*stats).ended).cast::<u64>().add(end as usize), 1);
        if (*conn).flags & CONN_ADOPTED == 0 {
            let (sent, received) = sock.data_segments();
            if sent.min(received) <= 1 {
                add(&raw mut (*stats).once, 1);
            }
            observe(&raw mut (*stats).age, now().saturating_sub((*conn).since));
        }
    }
}

/// Adds what a socket moved since it was looked at last.
#[inline(always)]
pub(crate) fn settle(sock: Sock, conn: *mut Conn, stats: *mut ConnStats) {
    let (sent, received) = sock.bytes();
    // SAFETY: map values.
    unsafe {
        // `bytes_acked` counts the SYN of the connecting side as one byte (RFC 4898 tcpEStatsAppHCThruOctetsAcked).
        if sent > (*conn).sent {
            add(&raw mut (*stats).sent, sent - (*conn).sent);
            (*conn).sent = sent;
        }
        if received > (*conn).received {
            add(&raw mut (*stats).received, received - (*conn).received);
            (*conn).received = received;
        }
        let (sent, received) = sock.data_segments();
        let exchanges = sent.min(received);
        if exchanges > (*conn).exchanges {
            add(
                &raw mut (*stats).exchanges,
                u64::from(exchanges - (*conn).exchanges),
            );
            (*conn).exchanges = exchanges;
        }
    }
}

/// Notes how many are open after one more was opened or found. CPUs that do so at the same moment may overwrite each
/// other's mark; the next one mends it.
#[inline(always)]
pub(crate) fn note_open(stats: *mut ConnStats) {
    let Some(tuning) = tuning() else { return };
    let round = u64::from(tuning.round);
    // SAFETY: a map value.
    unsafe {
        let open = ((*stats).opened + (*stats).adopted).saturating_sub((*stats).closed);
        if (*stats).round != round {
            (*stats).peak_before = if (*stats).round + 1 == round {
                (*stats).peak
            } else {
                0
            };
            (*stats).peak = 0;
            (*stats).round = round;
        }
        if open > (*stats).peak {
            (*stats).peak = open;
        }
    }
}
