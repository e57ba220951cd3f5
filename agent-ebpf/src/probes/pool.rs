//! Open connections as they are at a moment, read as often as their number allows: whose turn it is on each, since when
//! nothing moved, and with whom. Nothing is hooked for it.

use crate::{
    offsets::Field,
    probe::{Attach, Hook, Probe},
};

/// What it is.
pub const PROBE: Probe = Probe {
    name: "pool",
    help: "Use of connections by service and peer, sampled: busy and idle, most at once, exchanges, churn.",
    hooks: &[Hook { program: "pool_sample", attach: Attach::IterMap("CONNS") }],
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
        "tieback_pool_connection_seconds_total",
        "tieback_pool_exchanges_total",
        "tieback_pool_opened_total",
        "tieback_pool_closed_after_one_exchange_total",
    ],
};

#[cfg(target_arch = "bpf")]
mod bpf {
    use aya_ebpf::helpers::generated::{bpf_jiffies64, bpf_seq_write};
    use core::ffi::c_void;

    use crate::{
        bpf::{
            sock::{CLOSE_WAIT, ESTABLISHED, Sock},
            task::Kernel,
        },
        wire::{CONN_CLOSED, CONN_ESTABLISHED, Conn, ConnSample, LastData},
    };

    /// Writes a [`ConnSample`] for an open connection.
    #[unsafe(no_mangle)]
    #[unsafe(link_section = "iter/bpf_map_elem")]
    fn pool_sample(ctx: *mut c_void) -> i32 {
        // SAFETY: the context of `iter/bpf_map_elem` is `{ meta, map, key, value }`, and `meta` begins with `seq`.
        let (meta, key, conn) = unsafe {
            (
                *ctx.cast::<*const *mut c_void>(),
                *ctx.cast::<*const u64>().add(2),
                *ctx.cast::<*mut Conn>().add(3),
            )
        };
        if key.is_null() || conn.is_null() {
            return 0;
        }
        // SAFETY: the verifier knows the sizes of key and value, and the type of `meta`.
        unsafe {
            let flags = (*conn).flags;
            if flags & CONN_ESTABLISHED == 0 || flags & CONN_CLOSED != 0 {
                return 0;
            }
            let sock = Sock(Kernel(*key as *const u8));
            if !matches!(sock.state(), ESTABLISHED | CLOSE_WAIT) {
                return 0;
            }
            let (sent, received) = sock.data_segments();
            // Where no data moved, the answer is the one of before: segments without data (to keep a connection alive)
            // cannot change it.
            if (*conn).data_out != sent || (*conn).data_in != received {
                (*conn).last = sock.last_data(sent, received) as u32;
                (*conn).data_out = sent;
                (*conn).data_in = received;
            }
            let (at_sent, at_received) = sock.last_times();
            let jiffies = bpf_jiffies64() as u32;
            let quiet = jiffies.wrapping_sub(at_sent).min(jiffies.wrapping_sub(at_received));
            let (family, local) = sock.local();
            let (_, remote) = sock.remote();
            let sample = ConnSample {
                socket: *key,
                since: (*conn).since,
                slot: (*conn).key.slot,
                netns: sock.netns(),
                local,
                remote,
                local_port: sock.local_port(),
                remote_port: sock.remote_port(),
                family,
                direction: (*conn).key.direction,
                flags: flags as u8,
                last: if (*conn).last == LastData::Sent as u32 {
                    LastData::Sent as u8
                } else if (*conn).last == LastData::Received as u32 {
                    LastData::Received as u8
                } else {
                    LastData::None as u8
                },
                quiet,
                jiffies,
            };
            let seq = *meta;
            bpf_seq_write(seq.cast(), (&raw const sample).cast(), size_of::<ConnSample>() as u32);
        }
        0
    }
}
