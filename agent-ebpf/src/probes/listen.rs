//! Accept queues of listening sockets, as the kernel counts them by itself. Nothing is hooked: how long connections wait to be
//! accepted follows from how many wait, sampled, and how many came (J. D. C. Little 1961).

use crate::{
    offsets::Field,
    probe::{Attach, Hook, Probe},
};

/// What it is.
pub const PROBE: Probe = Probe {
    name: "listen",
    help: "Accept queues of listening TCP sockets: length, limit, time in it, connections taken out of it, dropped ones.",
    hooks: &[Hook { program: "listen_sample", attach: Attach::Run("LISTEN_QUEUES") }],
    fields: &[Field::SkAckBacklog, Field::SkMaxAckBacklog, Field::SkDrops],
    metrics: &[
        "tieback_listen_queue_connections",
        "tieback_listen_queue_limit",
        "tieback_listen_queue_connection_seconds_total",
        "tieback_listen_accepted_total",
        "tieback_listen_dropped_total",
    ],
};

#[cfg(target_arch = "bpf")]
mod bpf {
    use aya_ebpf::{
        bindings::BPF_F_MMAPABLE, btf_maps::Array, helpers::generated::bpf_for_each_map_elem, macros::btf_map,
    };
    use core::ffi::c_void;

    use crate::{
        bpf::{
            listen::{LISTEN_SOCKS, established},
            sock::{LISTEN, Sock},
            task::Kernel,
        },
        wire::{LISTEN_SAMPLES, ListenSample, ListenSamples, ListenSock},
    };

    /// The last run's samples, which the agent maps.
    #[btf_map]
    static LISTEN_QUEUES: Array<ListenSamples, 1, { BPF_F_MMAPABLE as usize }> = Array::new();

    /// Writes a [`ListenSample`] for each listening socket.
    #[unsafe(no_mangle)]
    #[unsafe(link_section = "raw_tp/listen_sample")]
    extern "C" fn listen_sample(_ctx: *const u64) -> i32 {
        let Some(samples) = LISTEN_QUEUES.get_ptr_mut(0) else {
            return 0;
        };
        // SAFETY: a map value that only this program writes; the callback has the signature that the helper wants.
        unsafe {
            (*samples).count = 0;
            bpf_for_each_map_elem(
                (&raw const LISTEN_SOCKS).cast_mut().cast(),
                visit as *mut c_void,
                core::ptr::null_mut(),
                0,
            );
        }
        0
    }

    unsafe extern "C" fn visit(
        _map: *mut c_void,
        key: *const u64,
        known: *const ListenSock,
        _ctx: *mut c_void,
    ) -> i64 {
        let Some(samples) = LISTEN_QUEUES.get_ptr_mut(0) else {
            return 1;
        };
        // SAFETY: the helper passes pointers to a key and its value; a map value that only this program writes, which the
        // agent runs once at a time; an index below the array's length.
        unsafe {
            let sock = Sock(Kernel(*key as *const u8));
            if sock.state() != LISTEN {
                return 0;
            }
            let at = (*samples).count as usize;
            if at >= LISTEN_SAMPLES {
                return 1;
            }
            (*samples).count += 1;
            let (family, local) = sock.local();
            let (queued, limit) = sock.accept_queue();
            let sample = ListenSample {
                socket: *key,
                since: (*known).since,
                established: established(&(*known).key, (*known).slot),
                slot: (*known).slot,
                queued,
                limit,
                dropped: sock.drops(),
                local,
                netns: (*known).key.netns,
                port: (*known).key.port,
                family,
                found: (*known).found as u8,
            };
            (&raw mut (*samples).samples).cast::<ListenSample>().add(at).write(sample);
        }
        0
    }
}
