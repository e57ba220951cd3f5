//! Connections that exist, and what is counted of them.

use aya_ebpf::{
    btf_maps::{Array, HashMap},
    helpers::generated::bpf_get_prandom_u32,
    macros::btf_map,
};

use super::{
    count::{add, lost, observe},
    sock::Sock,
    state::{slot, tuning},
    task::now,
};
use crate::offsets::MARK_FLAGS;
use crate::wire::{
    CALLER_SAMPLES, CONN_ADOPTED, CONN_CLOSED, CONN_ESTABLISHED, Conn, ConnEnd, ConnKey, ConnStats, LastData,
    Lost, Program, Tuning,
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

/// Whether this caller is sampled, and for how many it stands: what was sampled before decides the chance, never the
/// caller, so sums of weights have no bias.
#[inline(always)]
pub(crate) fn chosen(id: u32, tuning: &Tuning) -> Option<u64> {
    let slot = slot(id)?;
    // SAFETY: map values. Two callers at once may count as one, which only sets the pace.
    let samples = unsafe {
        if (*slot).conn_round != tuning.round {
            (*slot).conn_round = tuning.round;
            (*slot).conn_samples = 0;
        }
        &mut (*slot).conn_samples
    };
    let halvings = (*samples / CALLER_SAMPLES).min(24);
    let every = u64::from(tuning.conn_every.max(1)) << halvings;
    // SAFETY: the helper has no preconditions.
    if every > 1 && (u64::from(unsafe { bpf_get_prandom_u32() }) * every) >> 32 != 0 {
        return None;
    }
    *samples = samples.wrapping_add(1);
    Some(every)
}

/// A connection that begins now.
#[inline(always)]
pub(crate) fn new(key: ConnKey, flags: u32) -> Conn {
    Conn {
        key,
        since: now(),
        sent: 0,
        received: 0,
        flags,
        exchanges: 0,
        data_out: 0,
        data_in: 0,
        last: LastData::None as u32,
        resent: 0,
    }
}

/// Counts a connection of which it was not seen that it was established; how long connecting took is not known, either.
#[inline(always)]
pub(crate) fn late(conn: *mut Conn) {
    lost(Program::ConnState, Lost::Unmatched);
    // SAFETY: map values.
    unsafe {
        (*conn).flags |= CONN_ESTABLISHED;
        if let Some(stats) = stats(&(*conn).key) {
            add(&raw mut (*stats).opened, 1);
            note_open(stats);
        }
    }
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

/// Adds what a socket in this state moved since it was looked at last.
#[inline(always)]
pub(crate) fn settle(sock: Sock, state: i32, conn: *mut Conn, stats: *mut ConnStats) {
    // SAFETY: map values.
    unsafe {
        let (sent, received) = sock.bytes((*conn).key.direction, state);
        resent(sock, conn, stats);
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

/// Adds what a socket sent again since it was looked at last.
#[inline(always)]
pub(crate) fn resent(sock: Sock, conn: *mut Conn, stats: *mut ConnStats) {
    let resent = sock.retransmits();
    // SAFETY: map values.
    unsafe {
        if resent > (*conn).resent {
            add(&raw mut (*stats).retransmits, u64::from(resent - (*conn).resent));
            (*conn).resent = resent;
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
