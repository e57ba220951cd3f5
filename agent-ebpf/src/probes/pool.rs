//! Open connections as they are at a moment, read as often as their number allows: whose turn it is on each, since when
//! nothing moved, and with whom. Nothing is hooked for it.

use crate::{
    offsets::Field,
    probe::{Attach, Hook, Probe},
};

/// What it is.
pub const PROBE: Probe = Probe {
    name: "pool",
    help: "Use of connections by service and peer, sampled: busy and idle, most at once, ages, exchanges, churn.",
    hooks: &[Hook { program: "pool_sample", attach: Attach::Run("POOL_SAMPLES") }],
    fields: &[
        Field::TcpDataSegsOut,
        Field::TcpDataSegsIn,
        Field::TcpLsndtime,
        Field::IcskLrcvtime,
        Field::TcpRcvNxt,
        Field::TcpRcvWup,
        Field::TcpSndNxt,
        Field::TcpSndUna,
        Field::TcpWstampNs,
        Field::TcpDeliveredMstamp,
    ],
    metrics: &[
        "tieback_pool_connections",
        "tieback_pool_peak_connections",
        "tieback_pool_connection_mean_age_seconds",
        "tieback_pool_connection_oldest_age_seconds",
        "tieback_pool_connection_seconds_total",
        "tieback_pool_exchanges_total",
        "tieback_pool_opened_total",
        "tieback_pool_closed_after_one_exchange_total",
    ],
};

#[cfg(target_arch = "bpf")]
mod bpf {
    use aya_ebpf::{
        bindings::BPF_F_MMAPABLE,
        btf_maps::Array,
        helpers::generated::{bpf_jiffies64, bpf_loop},
        macros::btf_map,
    };
    use core::ffi::c_void;

    use crate::{
        bpf::{
            conn::CONNS,
            sock::{CLOSE_WAIT, ESTABLISHED, Sock},
            task::Kernel,
        },
        wire::{
            CONN_CLOSED, CONN_ESTABLISHED, CONN_SAMPLES, Conn, ConnSample, ConnSamples, LastData,
        },
    };

    /// The last run's samples, which the agent maps.
    #[btf_map]
    static POOL_SAMPLES: Array<ConnSamples, 1, { BPF_F_MMAPABLE as usize }> = Array::new();

    /// Writes a [`ConnSample`] for each connection of [`ConnSamples`] that is open.
    #[unsafe(no_mangle)]
    #[unsafe(link_section = "raw_tp/pool_sample")]
    extern "C" fn pool_sample(ctx: *const u64) -> i32 {
        let Some(samples) = POOL_SAMPLES.get_ptr_mut(0) else {
            return 0;
        };
        // SAFETY: the verifier allows twelve arguments; a map value; the callback has the signature that the helper wants.
        unsafe {
            (*samples).count = 0;
            let count = (*ctx).min(CONN_SAMPLES as u64) as u32;
            bpf_loop(count, look as *mut c_void, core::ptr::null_mut(), 0);
        }
        0
    }

    extern "C" fn look(index: u64, _ctx: *mut c_void) -> i64 {
        let Some(samples) = POOL_SAMPLES.get_ptr_mut(0) else {
            return 1;
        };
        if index >= CONN_SAMPLES as u64 {
            return 1;
        }
        // SAFETY: a map value that only this program writes, which the agent runs once at a time; indices below the array's
        // length.
        unsafe {
            let each = (&raw mut (*samples).samples).cast::<ConnSample>();
            let address = (&raw const (*each.add(index as usize)).socket).read();
            let Some(conn) = CONNS.get_ptr_mut(address) else { return 0 };
            let flags = (*conn).flags;
            if flags & CONN_ESTABLISHED == 0 || flags & CONN_CLOSED != 0 {
                return 0;
            }
            let sock = Sock(Kernel(address as *const u8));
            if !matches!(sock.state(), ESTABLISHED | CLOSE_WAIT) {
                return 0;
            }
            // Never past the socket that is looked at: what is written over was read.
            let at = (*samples).count as usize;
            if at >= CONN_SAMPLES {
                return 1;
            }
            (*samples).count += 1;
            each.add(at).write(sample(sock, conn));
        }
        0
    }

    /// An open connection as it is.
    ///
    /// # Safety
    /// `conn` is the value of the connection of `sock`.
    #[inline(always)]
    unsafe fn sample(sock: Sock, conn: *mut Conn) -> ConnSample {
        let (sent, received) = sock.data_segments();
        // SAFETY: a map value.
        unsafe {
            // Where no data moved, the answer is the one of before: segments without data (to keep a connection alive)
            // cannot change it.
            if (*conn).data_out != sent || (*conn).data_in != received {
                (*conn).last = sock.last_data(sent, received) as u32;
                (*conn).data_out = sent;
                (*conn).data_in = received;
            }
        }
        // SAFETY: a map value.
        let (key, since, flags, last) =
            unsafe { ((*conn).key, (*conn).since, (*conn).flags, (*conn).last) };
        let (at_sent, at_received) = sock.last_times();
        // SAFETY: the helper has no preconditions.
        let jiffies = unsafe { bpf_jiffies64() } as u32;
        let quiet = jiffies.wrapping_sub(at_sent).min(jiffies.wrapping_sub(at_received));
        let (family, local) = sock.local();
        let (_, remote) = sock.remote();
        ConnSample {
            socket: sock.0.0 as u64,
            since,
            slot: key.slot,
            netns: sock.netns(),
            local,
            remote,
            local_port: sock.local_port(),
            remote_port: sock.remote_port(),
            family,
            direction: key.direction,
            flags: flags as u8,
            last: if last == LastData::Sent as u32 {
                LastData::Sent as u8
            } else if last == LastData::Received as u32 {
                LastData::Received as u8
            } else {
                LastData::None as u8
            },
            quiet,
            jiffies,
        }
    }
}
