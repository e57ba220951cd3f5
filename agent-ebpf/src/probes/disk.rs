//! Block requests: latency and bytes, charged to whoever started them.

use crate::{
    offsets::Field,
    probe::{Attach, Hook, Probe},
};

/// What it is.
pub const PROBE: Probe = Probe {
    name: "disk",
    help: "Latency and bytes of block requests, by the process that started them.",
    hooks: &[
        Hook { program: "disk_start", attach: Attach::TpBtf(&["block_io_start", "block_rq_issue"]) },
        Hook { program: "disk_done", attach: Attach::TpBtf(&["block_rq_complete"]) },
    ],
    fields: &[Field::TaskPid, Field::RqCmdFlags, Field::RqDataLen],
    metrics: &["tieback_disk_io_duration_seconds", "tieback_disk_io_bytes_total"],
};

#[cfg(target_arch = "bpf")]
mod bpf {
    use aya_ebpf::{
        btf_maps::HashMap,
        macros::{btf_map, btf_tracepoint},
        programs::BtfTracePointContext,
    };

    use crate::{
        offsets::MARK_FLAGS,
        bpf::{
            count::{add, lost, observe, run},
            state::thread,
            task::{Kernel, current, field, now},
        },
        wire::{BUCKETS, DiskKey, DiskOp, DiskRequest, DiskStats, Hist, Lost, Program, SLOT_KERNEL},
    };

    /// Requests under way by address.
    #[btf_map]
    static DISK_REQUESTS: HashMap<u64, DiskRequest, 8192> = HashMap::new();

    /// Totals.
    #[btf_map]
    static DISK_STATS: HashMap<DiskKey, DiskStats, 4096, MARK_FLAGS> = HashMap::new();

    /// `REQ_OP_*`, include/linux/blk_types.h.
    #[inline(always)]
    fn operation(flags: u32) -> DiskOp {
        match flags & 0xff {
            0 => DiskOp::Read,
            1 => DiskOp::Write,
            2 => DiskOp::Flush,
            3 | 5 | 9 => DiskOp::Discard,
            _ => DiskOp::Other,
        }
    }

    #[btf_tracepoint(function = "block_io_start")]
    fn disk_start(ctx: BtfTracePointContext) -> i32 {
        run(Program::DiskStart);
        let request = Kernel(ctx.arg::<*const u8>(0));
        let tid: u32 = current().load(field!(task_pid));
        let mut slot = SLOT_KERNEL;
        if let Some(thread) = thread(tid) {
            // SAFETY: a map value.
            slot = unsafe { (*thread).slot }.max(SLOT_KERNEL);
        }
        let op = operation(request.load(field!(rq_cmd_flags))) as u32;
        let value = DiskRequest { at: now(), slot, op };
        if DISK_REQUESTS.insert(request.0 as u64, &value, 0).is_err() {
            lost(Program::DiskStart, Lost::Requests);
        }
        0
    }

    #[btf_tracepoint(function = "block_rq_complete")]
    fn disk_done(ctx: BtfTracePointContext) -> i32 {
        run(Program::DiskDone);
        let request = Kernel(ctx.arg::<*const u8>(0));
        let bytes: u64 = ctx.arg::<u64>(2) & 0xffff_ffff;
        let address = request.0 as u64;
        let Some(found) = DISK_REQUESTS.get_ptr_mut(address) else { return 0 };
        // SAFETY: a map value; the request is only completed once at a time.
        let started = unsafe { *found };
        let left: u32 = request.load(field!(rq_data_len));
        let finished = u64::from(left) <= bytes;
        if finished {
            let _ = DISK_REQUESTS.remove(address);
        }
        let key = DiskKey { slot: started.slot, op: started.op };
        if DISK_STATS.get_ptr_mut(&key).is_none() {
            let zero = DiskStats { bytes: 0, latency: Hist { buckets: [0; BUCKETS], sum_ns: 0 } };
            let _ = DISK_STATS.insert(&key, &zero, 1);
        }
        let Some(stats) = DISK_STATS.get_ptr_mut(&key) else {
            lost(Program::DiskDone, Lost::Counters);
            return 0;
        };
        // SAFETY: a map value.
        unsafe {
            add(&raw mut (*stats).bytes, bytes);
            if finished {
                observe(&raw mut (*stats).latency, now().saturating_sub(started.at));
            }
        }
        0
    }
}
