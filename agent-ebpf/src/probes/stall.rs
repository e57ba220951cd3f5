//! How long threads were held up because memory had to be made free for them, or was taken away from them before.

use crate::{
    offsets::Field,
    probe::{Attach, Hook, Probe},
};

/// What it is.
pub const PROBE: Probe = Probe {
    name: "stall",
    help: "Time in which threads were held up for want of memory: they freed some, or waited for what had been evicted.",
    hooks: &[
        Hook { program: "stall_reclaim", attach: Attach::TpBtf(&["mm_vmscan_direct_reclaim_begin"]) },
        Hook { program: "stall_reclaimed", attach: Attach::TpBtf(&["mm_vmscan_direct_reclaim_end"]) },
        Hook { program: "stall_limit", attach: Attach::TpBtf(&["mm_vmscan_memcg_reclaim_begin"]) },
        Hook { program: "stall_limited", attach: Attach::TpBtf(&["mm_vmscan_memcg_reclaim_end"]) },
        Hook { program: "stall_compact", attach: Attach::TpBtf(&["mm_compaction_begin"]) },
        Hook { program: "stall_compacted", attach: Attach::TpBtf(&["mm_compaction_end"]) },
    ],
    fields: &[Field::TaskPid],
    metrics: &["tieback_memory_stall_seconds_total", "tieback_memory_stalls_total"],
};

#[cfg(target_arch = "bpf")]
pub(crate) mod bpf {
    use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};

    use crate::{
        bpf::{
            count::{add, run},
            state::{slot, thread},
            task::{Kernel, current, now, field},
        },
        wire::{Cause, Program, SLOT_KERNEL, Stall, Thread},
    };

    /// Background reclaim (kswapd, kcompactd) runs in threads of the kernel's own, which are left out.
    #[inline(always)]
    fn begin() -> i32 {
        run(Program::Stall);
        if let Some(thread) = thread(current().load(field!(task_pid))) {
            // SAFETY: a map value; only the thread itself writes this field.
            unsafe { (*thread).stall_at = now() };
        }
        0
    }

    #[inline(always)]
    fn end(kind: Stall) -> i32 {
        let Some(thread) = thread(current().load(field!(task_pid))) else { return 0 };
        // SAFETY: as in `begin`.
        let (at, id) = unsafe { ((*thread).stall_at, (*thread).slot) };
        if at == 0 || id <= SLOT_KERNEL {
            return 0;
        }
        if let Some(slot) = slot(id) {
            // SAFETY: map values.
            unsafe {
                (*thread).stall_at = 0;
                add((&raw mut (*slot).stall_ns).cast::<u64>().add(kind as usize), now().wrapping_sub(at));
                add((&raw mut (*slot).stalls).cast::<u64>().add(kind as usize), 1);
            }
        }
        0
    }

    /// A thread waited. For pages that had been evicted, if the kernel counts that as a stall (`psi_memstall_enter` in mm/filemap.c
    /// and mm/page_io.c); while it frees memory, that is counted already.
    #[inline(always)]
    pub(crate) fn waited(next: Kernel, t: &Thread, cause: usize, ns: u64) {
        let may = cause == Cause::Fault as usize || cause == Cause::Disk as usize;
        if !may || t.stall_at != 0 || !next.in_memstall() {
            return;
        }
        if let Some(slot) = slot(t.slot) {
            let kind = Stall::Refault as usize;
            // SAFETY: a map value, constant index.
            unsafe {
                add((&raw mut (*slot).stall_ns).cast::<u64>().add(kind), ns);
                add((&raw mut (*slot).stalls).cast::<u64>().add(kind), 1);
            }
        }
    }

    #[btf_tracepoint(function = "mm_vmscan_direct_reclaim_begin")]
    fn stall_reclaim(_ctx: BtfTracePointContext) -> i32 {
        begin()
    }

    #[btf_tracepoint(function = "mm_vmscan_direct_reclaim_end")]
    fn stall_reclaimed(_ctx: BtfTracePointContext) -> i32 {
        end(Stall::Reclaim)
    }

    #[btf_tracepoint(function = "mm_vmscan_memcg_reclaim_begin")]
    fn stall_limit(_ctx: BtfTracePointContext) -> i32 {
        begin()
    }

    #[btf_tracepoint(function = "mm_vmscan_memcg_reclaim_end")]
    fn stall_limited(_ctx: BtfTracePointContext) -> i32 {
        end(Stall::Limit)
    }

    #[btf_tracepoint(function = "mm_compaction_begin")]
    fn stall_compact(_ctx: BtfTracePointContext) -> i32 {
        begin()
    }

    #[btf_tracepoint(function = "mm_compaction_end")]
    fn stall_compacted(_ctx: BtfTracePointContext) -> i32 {
        end(Stall::Compaction)
    }
}
