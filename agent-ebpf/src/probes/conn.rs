//! TCP connections: opened, accepted, failed, closed, open now, by peer. Facts that the socket keeps by itself (bytes)
//! are read at close and on the tick, never hooked.

use crate::{
    offsets::Field,
    probe::{Attach, Hook, Probe},
};

/// What it is.
pub const PROBE: Probe = Probe {
    name: "conn",
    help: "TCP connections by peer: opened, accepted, failed, closed, open now, latency, age, bytes, retransmits.",
    hooks: &[
        Hook { program: "conn_state", attach: Attach::TpBtf(&["inet_sock_set_state"]) },
        Hook { program: "conn_nested", attach: Attach::TpBtf(&["inet_sock_set_state"]) },
        Hook { program: "conn_settle", attach: Attach::Run("CONN_SETTLED") },
    ],
    fields: &[
        Field::TaskPid,
        Field::TaskTgid,
        Field::SkFamily,
        Field::SkState,
        Field::SkNum,
        Field::SkDport,
        Field::SkDaddr,
        Field::SkSaddr,
        Field::SkNet,
        Field::NetInum,
        Field::SkErr,
        Field::SkProtocol,
        Field::SkFlags,
        Field::TcpBytesAcked,
        Field::TcpBytesReceived,
        Field::TcpWriteSeq,
        Field::TcpSndUna,
        Field::TcpTotalRetrans,
        Field::TcpDataSegsOut,
        Field::TcpDataSegsIn,
        Field::TaskFlags,
    ],
    metrics: &[
        "tieback_connections",
        "tieback_connections_opened_total",
        "tieback_connections_closed_total",
        "tieback_connections_ended_total",
        "tieback_connection_failures_total",
        "tieback_connect_duration_seconds",
        "tieback_connection_age_seconds",
        "tieback_connection_bytes_total",
        "tieback_tcp_retransmits_total",
        "tieback_code_connections_opened_total",
    ],
};

#[cfg(target_arch = "bpf")]
mod bpf {
    use aya_ebpf::{
        bindings::BPF_F_MMAPABLE,
        btf_maps::{Array, PerCpuArray},
        helpers::generated::bpf_loop,
        macros::{btf_map, btf_tracepoint},
        programs::BtfTracePointContext,
    };
    use core::ffi::c_void;

    use crate::{
        bpf::{
            conn::{CONN_STATS, CONNS, chosen, count_closed, late, new, note_open, resent, settle, stats},
            count::{add, lost, observe, run},
            listen::{listener, listens, listens_no_more},
            sample::{self, Level, What},
            sock::{
                CLOSE, CLOSE_WAIT, CLOSING, ESTABLISHED, FIN_WAIT1, FIN_WAIT2, LAST_ACK, LISTEN, SYN_RECV, SYN_SENT, Sock,
            },
            state::{sampled, thread, tuning},
            task::{Kernel, current, field, now},
        },
        wire::{
            CONN_CLOSED, CONN_ESTABLISHED, CONN_SAMPLES, Conn, ConnEnd, ConnFailure, ConnKey, ConnSockets,
            Direction, Lost, Program, SLOT_KERNEL, StackKind,
        },
    };

    /// include/linux/sched.h.
    const PF_EXITING: u32 = 4;
    const ECONNRESET: i32 = 104;
    const EPIPE: i32 = 32;
    const ETIMEDOUT: i32 = 110;
    const ECONNREFUSED: i32 = 111;
    const EHOSTUNREACH: i32 = 113;
    const ENETUNREACH: i32 = 101;

    /// Whether `conn_state` runs on this CPU.
    #[btf_map]
    static CONN_BUSY: PerCpuArray<u32, 1> = PerCpuArray::new();

    #[btf_tracepoint(function = "inet_sock_set_state")]
    fn conn_state(ctx: BtfTracePointContext) -> i32 {
        run(Program::ConnState);
        let Some(busy) = CONN_BUSY.get_ptr_mut(0) else { return 0 };
        // SAFETY: this CPU's element.
        unsafe { core::ptr::write_volatile(busy, 1) };
        let (sock, old, new) = change(&ctx);
        if sock.is_tcp() {
            match (old, new) {
                (_, LISTEN) => listen(sock),
                // A child starts as a copy of its listener, so only CLOSE ends the listener itself.
                (LISTEN, CLOSE) => listens_no_more(sock),
                (_, SYN_SENT) => connect(&ctx, sock),
                _ => received(sock, old, new),
            }
        }
        // SAFETY: as above.
        unsafe { core::ptr::write_volatile(busy, 0) };
        0
    }

    /// In place of `conn_state` where that is running already. A system call that changes a state may be interrupted right there, and
    /// all packets that have come meanwhile be received then: the kernel does not run a program again on that CPU before it is done.
    #[btf_tracepoint(function = "inet_sock_set_state")]
    fn conn_nested(ctx: BtfTracePointContext) -> i32 {
        let Some(busy) = CONN_BUSY.get_ptr_mut(0) else { return 0 };
        // SAFETY: this CPU's element.
        if unsafe { core::ptr::read_volatile(busy) } == 0 {
            return 0;
        }
        run(Program::ConnNested);
        let (sock, old, new) = change(&ctx);
        if sock.is_tcp() && old != LISTEN {
            received(sock, old, new);
        }
        0
    }

    /// A socket, its state and the next one.
    #[inline(always)]
    fn change(ctx: &BtfTracePointContext) -> (Sock, i32, i32) {
        let sock = Sock(Kernel(ctx.arg::<*const u8>(0)));
        (sock, ctx.arg::<u64>(1) as i32, ctx.arg::<u64>(2) as i32)
    }

    /// Changes that packets bring about, too. On its own: with its variables there would be no stack left for the walk of `connect`.
    #[inline(never)]
    fn received(sock: Sock, old: i32, new: i32) {
        match (old, new) {
            (SYN_SENT, ESTABLISHED) => connected(sock),
            (SYN_RECV, ESTABLISHED) => accepted(sock),
            (_, FIN_WAIT1 | LAST_ACK | CLOSING) => closing(sock, old),
            (_, CLOSE) => closed(sock, old),
            _ => {}
        }
    }

    /// Slot of the running thread, `None` for the kernel's own.
    #[inline(always)]
    fn own_slot() -> Option<u32> {
        let thread = thread(current().load(field!(task_pid)))?;
        // SAFETY: a map value.
        let slot = unsafe { (*thread).slot };
        (slot > SLOT_KERNEL).then_some(slot)
    }

    #[inline(always)]
    fn listen(sock: Sock) {
        if let Some(slot) = own_slot() {
            listens(sock, slot, false);
        }
    }

    #[inline(always)]
    fn remember(sock: Sock, key: ConnKey, flags: u32) -> bool {
        let conn = new(key, flags);
        let room = CONNS.insert(sock.0.0 as u64, &conn, 0).is_ok();
        if !room {
            lost(Program::ConnState, Lost::Conns);
        }
        room
    }

    #[inline(always)]
    fn connect(ctx: &BtfTracePointContext, sock: Sock) {
        let Some(slot) = own_slot() else { return };
        // Without room it is not counted: of those that connect nothing says later whose they are.
        let key = sock.key(slot, Direction::Out);
        remember(sock, key, 0);
        let Some(tuning) = tuning() else { return };
        let Some(every) = chosen(slot, tuning) else { return };
        let task = current();
        let tgid: u32 = task.load(field!(task_tgid));
        if !sampled(tgid) {
            return;
        }
        let Some(of) = sample::conn(Level::Task) else { return };
        // SAFETY: a map value of this program's level.
        unsafe { of.write(key) };
        let what = What {
            program: Program::ConnState,
            level: Level::Task,
            kind: StackKind::Conn,
            slot,
            pid: tgid,
            tid: task.load(field!(task_pid)),
            cause: 0,
            nr: -1,
            weight: every,
            kernel: false,
        };
        sample::take(sample::raw(ctx), &what);
    }

    #[inline(always)]
    fn connected(sock: Sock) {
        let Some(conn) = CONNS.get_ptr_mut(sock.0.0 as u64) else { return };
        // SAFETY: map values.
        unsafe {
            let at = now();
            // The destination may be rewritten between connect and now (NAT in a hook), so the key is the one of then.
            if let Some(stats) = stats(&(*conn).key) {
                add(&raw mut (*stats).opened, 1);
                note_open(stats);
                observe(&raw mut (*stats).connect, at.saturating_sub((*conn).since));
            }
            (*conn).since = at;
            (*conn).flags |= CONN_ESTABLISHED;
        }
    }

    /// Counts a connection to a listener. One that there is no room for is [counted](known) when it closes, if there is room then.
    #[inline(always)]
    fn accepted(sock: Sock) {
        let Some(listener) = listener(sock) else { return };
        // SAFETY: a map value.
        let key = sock.key(unsafe { (*listener).slot }, Direction::In);
        if !remember(sock, key, CONN_ESTABLISHED) {
            return;
        }
        // SAFETY: a map value.
        add(unsafe { &raw mut (*listener).established }, 1);
        if let Some(stats) = stats(&key) {
            // SAFETY: a map value.
            add(unsafe { &raw mut (*stats).opened }, 1);
            note_open(stats);
        }
    }

    /// The connection of a socket that is not in this state any more. Not each change of state is told: of a connection over a slow
    /// link on Linux 6.18 two agents at once were not told that it was established. What ends has begun, seen or not; else the
    /// number of open ones would go astray for good.
    #[inline(always)]
    fn known(sock: Sock, old: i32) -> Option<*mut Conn> {
        let begun = matches!(old, ESTABLISHED | CLOSE_WAIT | FIN_WAIT1 | FIN_WAIT2 | LAST_ACK | CLOSING);
        let address = sock.0.0 as u64;
        let Some(conn) = CONNS.get_ptr_mut(address) else {
            if !begun {
                return None;
            }
            accepted(sock);
            let conn = CONNS.get_ptr_mut(address)?;
            lost(Program::ConnState, Lost::Unmatched);
            return Some(conn);
        };
        // SAFETY: a map value.
        if begun && unsafe { (*conn).flags } & CONN_ESTABLISHED == 0 {
            late(conn);
        }
        Some(conn)
    }

    /// This side closes: the connection is not open any more, whatever the peer still sends.
    #[inline(always)]
    fn closing(sock: Sock, old: i32) {
        if let Some(conn) = known(sock, old)
            // SAFETY: a map value.
            && let Some(stats) = stats(unsafe { &(*conn).key })
        {
            let end = if old == CLOSE_WAIT { ConnEnd::Them } else { abandoned().unwrap_or(ConnEnd::Us) };
            count_closed(sock, conn, stats, end);
        }
    }

    /// `Death` while the running thread ends: closing is its own doing only where it does not.
    #[inline(always)]
    fn abandoned() -> Option<ConnEnd> {
        let flags: u32 = current().load(field!(task_flags));
        (flags & PF_EXITING != 0).then_some(ConnEnd::Death)
    }

    /// How a connection without an error ended that is still counted as open, by its last state. The states in which a side has
    /// closed tell who was first, though the change to them was [not told](known).
    #[inline(always)]
    fn unsaid_end(old: i32) -> ConnEnd {
        match old {
            LAST_ACK => ConnEnd::Them,
            FIN_WAIT1 | FIN_WAIT2 | CLOSING => ConnEnd::Us,
            // A socket that is closed with unread data, or that does not linger, is reset by its own side.
            _ => abandoned().unwrap_or(ConnEnd::Reset),
        }
    }

    #[inline(always)]
    fn closed(sock: Sock, old: i32) {
        let address = sock.0.0 as u64;
        let Some(conn) = known(sock, old) else { return };
        // SAFETY: a map value.
        if let Some(stats) = stats(unsafe { &(*conn).key }) {
            let error = sock.error();
            // SAFETY: map values.
            let established = unsafe { (*conn).flags } & CONN_ESTABLISHED != 0;
            let failure = match error {
                ECONNREFUSED => Some(ConnFailure::Refused),
                ECONNRESET | EPIPE => Some(ConnFailure::Reset),
                ETIMEDOUT => Some(ConnFailure::Timeout),
                EHOSTUNREACH | ENETUNREACH => Some(ConnFailure::Unreachable),
                0 if old == SYN_SENT => Some(ConnFailure::Aborted),
                0 => None,
                _ => Some(ConnFailure::Other),
            };
            if let Some(failure) = failure
                && (!established || old == ESTABLISHED || old == CLOSE_WAIT)
            {
                // SAFETY: a map value and an index below the array's length.
                add(unsafe { (&raw mut (*stats).failures).cast::<u64>().add(failure as usize) }, 1);
            }
            if established {
                let end = match error {
                    0 => unsaid_end(old),
                    ETIMEDOUT | EHOSTUNREACH | ENETUNREACH => ConnEnd::Timeout,
                    _ => ConnEnd::Reset,
                };
                count_closed(sock, conn, stats, end);
                settle(sock, old, conn, stats);
            } else {
                resent(sock, conn, stats);
            }
        }
        let _ = CONNS.remove(address);
    }

    /// The connections that are to be settled, which the agent writes.
    #[btf_map]
    static CONN_SETTLED: Array<ConnSockets, 1, { BPF_F_MMAPABLE as usize }> = Array::new();

    /// Adds what the sockets of [`ConnSockets`] moved to their totals. A change of state is told before it is made, and the last one takes
    /// a connection away: one that is still here in that state ended without a word.
    #[unsafe(no_mangle)]
    #[unsafe(link_section = "raw_tp/conn_settle")]
    extern "C" fn conn_settle(ctx: *const u64) -> i32 {
        // SAFETY: the verifier allows twelve arguments; the callback has the signature that the helper wants.
        unsafe {
            let count = (*ctx).min(CONN_SAMPLES as u64) as u32;
            bpf_loop(count, settle_one as *mut c_void, core::ptr::null_mut(), 0);
        }
        0
    }

    extern "C" fn settle_one(index: u64, _ctx: *mut c_void) -> i64 {
        let Some(sockets) = CONN_SETTLED.get_ptr_mut(0) else { return 1 };
        if index >= CONN_SAMPLES as u64 {
            return 1;
        }
        // SAFETY: an index below the array's length; map values.
        unsafe {
            let address = (&raw const (*sockets).sockets).cast::<u64>().add(index as usize).read();
            if let Some(conn) = CONNS.get_ptr_mut(address)
                && (*conn).flags & CONN_ESTABLISHED != 0
                && (*conn).flags & CONN_CLOSED == 0
                && let sock = Sock(Kernel(address as *const u8))
                && let state = sock.state()
                && matches!(state, ESTABLISHED | CLOSE_WAIT | CLOSE)
                && let Some(stats) = CONN_STATS.get_ptr_mut(&(*conn).key)
            {
                if state == CLOSE {
                    lost(Program::ConnState, Lost::Unmatched);
                    count_closed(sock, conn, stats, ConnEnd::Reset);
                    let _ = CONNS.remove(address);
                } else {
                    settle(sock, state, conn, stats);
                }
            }
        }
        0
    }
}
