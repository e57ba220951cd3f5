//! Growth of anonymous memory by the code that first touches it.

use crate::{
    offsets::Field,
    probe::{Attach, Hook, Probe},
};

/// What it is.
pub const PROBE: Probe = Probe {
    name: "memory",
    help: "Growth of anonymous memory, by the code that touched it first.",
    hooks: &[Hook { program: "memory_growth", attach: Attach::TpBtf(&["rss_stat"]) }],
    fields: &[Field::TaskPid, Field::TaskTgid, Field::TaskMm, Field::MmRss, Field::RegsIp, Field::RegsSp, Field::RegsFp],
    metrics: &["tieback_memory_growth_bytes_total", "tieback_code_memory_growth_bytes_total"],
};

#[cfg(target_arch = "bpf")]
mod bpf {
    use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};

    use crate::{
        bpf::{
            count::{add, run},
            sample::{self, Level, What},
            state::{anon_pages, sampled, slot, thread, tuning},
            task::{current, offset},
        },
        wire::{Program, SLOT_KERNEL, StackKind},
    };

    /// `MM_ANONPAGES`, linux/mm_types_task.h.
    const ANON_PAGES: u32 = 1;

    /// Runs where the kernel has just counted pages of an address space, so the difference of that counter is what was
    /// added: one page or a huge one, or the last 32 of this CPU where the kernel keeps per-CPU parts (64 of a thread
    /// before Linux 6.2). A perf event on page faults would see the same for six times the cost.
    #[btf_tracepoint(function = "rss_stat")]
    fn memory_growth(ctx: BtfTracePointContext) -> i32 {
        if ctx.arg::<u64>(1) as u32 != ANON_PAGES {
            return 0;
        }
        run(Program::MemoryGrowth);
        let task = current();
        // Others than the owner count, too: fork for the child, reclaim, khugepaged. None of that is growth.
        if task.load::<u64>(offset!(task_mm)) != ctx.arg::<*const u8>(0) as u64 {
            return 0;
        }
        let tgid: u32 = task.load(offset!(task_tgid));
        let Some(leader) = thread(tgid) else { return 0 };
        let pages = anon_pages(task);
        // SAFETY: a map value; two threads that fault at once may both see the same growth, which the kernel's own
        // counter batches by more than that.
        let t = unsafe { &mut *leader };
        let grown = pages - t.anon_pages;
        if grown == 0 {
            return 0;
        }
        t.anon_pages = pages;
        if grown < 0 || t.slot <= SLOT_KERNEL {
            return 0;
        }
        let Some(slot) = slot(t.slot) else { return 0 };
        // SAFETY: a map value.
        add(unsafe { &raw mut (*slot).growth_pages }, grown as u64);
        let pending = t.growth_pages + grown as u64;
        let Some(tuning) = tuning() else { return 0 };
        if pending < u64::from(tuning.memory_pages) || !sampled(tgid) {
            t.growth_pages = pending;
            return 0;
        }
        t.growth_pages = 0;
        let what = What {
            program: Program::MemoryGrowth,
            level: Level::Task,
            kind: StackKind::Memory,
            slot: t.slot,
            pid: tgid,
            tid: task.load(offset!(task_pid)),
            cause: 0,
            nr: -1,
            weight: pending * 4096,
            kernel: false,
        };
        sample::take(sample::raw(&ctx), &what);
        0
    }
}
