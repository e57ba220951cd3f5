//! Growth of anonymous memory by the code that first touches it.

use crate::{
    offsets::Field,
    probe::{Attach, Hook, Probe},
};

/// What it is.
pub const PROBE: Probe = Probe {
    name: "memory",
    help: "Growth of anonymous memory, by the code whose page faults grew it.",
    hooks: &[Hook { program: "memory_fault", attach: Attach::MinorFaults }],
    fields: &[Field::TaskTgid, Field::TaskMm, Field::MmRss, Field::RegsIp, Field::RegsSp, Field::RegsFp],
    metrics: &["tieback_memory_growth_bytes_total", "tieback_code_memory_growth_bytes_total"],
};

#[cfg(target_arch = "bpf")]
mod bpf {
    use aya_ebpf::{macros::perf_event, programs::PerfEventContext};

    use crate::{
        bpf::{
            count::{add, run},
            sample::{self, Level, What},
            state::{anon_pages, sampled, slot, thread, tuning},
            task::{current, offset},
        },
        wire::{Program, SLOT_KERNEL, StackKind},
    };

    /// Runs after the fault was handled (`mm_account_fault`), so the difference of the resident counter is what this
    /// fault added, or the last 32 of its CPU where the kernel keeps per-CPU parts.
    #[perf_event]
    fn memory_fault(ctx: PerfEventContext) -> u32 {
        run(Program::MemoryFault);
        let task = current();
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
            program: Program::MemoryFault,
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
