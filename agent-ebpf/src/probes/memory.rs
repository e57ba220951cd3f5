//! Growth of anonymous memory by the code that first touches it, and what of it was given back.
//!
//! A page that is given back cannot be tied to the code that touched it first without a record of every page. Instead each
//! sample of growth carries the thread's registers, from which the agent finds the address that was touched; whether that page
//! is still there tells, without bias, how much of the growth of that code is. So that an address that is used anew is not
//! taken for the old page, the ranges that system calls give back are noted here, where the kernel has just counted them: no
//! hook of system calls is needed.

use crate::{
    offsets::Field,
    probe::{Attach, Hook, Probe},
};

/// What it is.
pub const PROBE: Probe = Probe {
    name: "memory",
    help: "Growth of anonymous memory, by the code that touched it first.",
    hooks: &[
        Hook { program: "memory_growth", attach: Attach::TpBtf(&["rss_stat"]) },
        Hook { program: "memory_moved", attach: Attach::TpBtf(&["vm_unmapped_area"]) },
    ],
    fields: &[
        Field::TaskPid,
        Field::TaskTgid,
        Field::TaskMm,
        Field::MmRss,
        Field::RegsNr,
        Field::RegsArg0,
        Field::RegsArg1,
        Field::RegsArg2,
        Field::RegsArg3,
        Field::RegsIp,
        Field::RegsSp,
        Field::RegsFp,
    ],
    metrics: &[
        "tieback_memory_growth_bytes_total",
        "tieback_memory_returned_bytes_total",
        "tieback_code_memory_growth_bytes_total",
        "tieback_code_memory_net_bytes",
    ],
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
            count::{add, lost, run},
            sample::{self, Level, What},
            state::{anon_pages, sampled, slot, thread, tuning},
            task::{Regs, current, field, now},
        },
        wire::{ABOVE_HEAP, Lost, Program, RangeKey, SLOT_KERNEL, StackKind},
    };

    /// Ranges that were given back or moved, and when last. The agent takes them away on each tick.
    #[btf_map]
    static MEMORY_RANGES: HashMap<RangeKey, u64, 8192, MARK_FLAGS> = HashMap::new();

    /// Numbers of system calls.
    #[cfg(not(bpf_target_arch = "aarch64"))]
    mod nr {
        pub(super) const MMAP: i32 = 9;
        pub(super) const MUNMAP: i32 = 11;
        pub(super) const BRK: i32 = 12;
        pub(super) const MREMAP: i32 = 25;
        pub(super) const MADVISE: i32 = 28;
    }
    #[cfg(bpf_target_arch = "aarch64")]
    mod nr {
        pub(super) const MMAP: i32 = 222;
        pub(super) const MUNMAP: i32 = 215;
        pub(super) const BRK: i32 = 214;
        pub(super) const MREMAP: i32 = 216;
        pub(super) const MADVISE: i32 = 233;
    }

    const MADV_DONTNEED: u64 = 4;
    const MADV_REMOVE: u64 = 9;
    const MADV_DONTNEED_LOCKED: u64 = 24;
    const MAP_FIXED: u64 = 0x10;
    const MAP_POPULATE: u64 = 0x8000;

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
        if task.load::<u64, _>(field!(task_mm)) != ctx.arg::<*const u8>(0) as u64 {
            return 0;
        }
        let tgid: u32 = task.load(field!(task_tgid));
        let Some(leader) = thread(tgid) else { return 0 };
        let pages = anon_pages(task);
        // SAFETY: a map value.
        if unsafe { (*leader).grown } != 0 {
            given_back(tgid, Regs::of(task));
        }
        // SAFETY: a map value; two threads that fault at once may both see the same growth, which the kernel's own
        // counter batches by more than that.
        let t = unsafe { &mut *leader };
        let grown = pages - t.anon_pages;
        if grown == 0 {
            return 0;
        }
        t.anon_pages = pages;
        if t.slot <= SLOT_KERNEL {
            return 0;
        }
        let Some(slot) = slot(t.slot) else { return 0 };
        if grown < 0 {
            // SAFETY: a map value.
            add(unsafe { &raw mut (*slot).returned_pages }, grown.unsigned_abs());
            return 0;
        }
        // SAFETY: a map value.
        add(unsafe { &raw mut (*slot).growth_pages }, grown as u64);
        let pending = u64::from(t.growth_pages) + grown as u64;
        let Some(tuning) = tuning() else { return 0 };
        if pending < u64::from(tuning.memory_pages) || !sampled(tgid) {
            t.growth_pages = pending as u32;
            return 0;
        }
        t.growth_pages = 0;
        t.grown = 1;
        let what = What {
            program: Program::MemoryGrowth,
            level: Level::Task,
            kind: StackKind::Memory,
            slot: t.slot,
            pid: tgid,
            tid: task.load(field!(task_pid)),
            cause: 0,
            nr: -1,
            weight: pending * 4096,
            kernel: false,
        };
        sample::take(sample::raw(&ctx), &what);
        0
    }

    /// The kernel changes the counter of anonymous pages in a system call: which range does that call give back? What it frees
    /// comes in parts, each of which ends up here, so the last time is when the last part was freed. (Pages that
    /// `MADV_FREE` lets go of stay until they are needed elsewhere, and the agent then sees them missing.)
    #[inline(always)]
    fn given_back(pid: u32, regs: Regs) {
        let call = regs.nr();
        if call < 0 {
            return;
        }
        let (start, len) = match call {
            nr::MUNMAP => (regs.arg0(), regs.arg1()),
            nr::MADVISE => match regs.arg2() {
                MADV_DONTNEED | MADV_REMOVE | MADV_DONTNEED_LOCKED => (regs.arg0(), regs.arg1()),
                _ => return,
            },
            nr::BRK => (regs.arg0(), ABOVE_HEAP),
            nr::MREMAP if regs.arg2() < regs.arg1() => (regs.arg0() + regs.arg2(), regs.arg1() - regs.arg2()),
            nr::MMAP if regs.arg3() & (MAP_FIXED | MAP_POPULATE) == MAP_FIXED => (regs.arg0(), regs.arg1()),
            _ => return,
        };
        note(&RangeKey { pid, pad: 0, start, len, to: 0 }, Program::MemoryGrowth);
    }

    #[inline(always)]
    fn note(range: &RangeKey, program: Program) {
        if MEMORY_RANGES.insert(range, &now(), 0).is_err() {
            lost(program, Lost::Ranges);
        }
    }

    /// A place for a mapping was found; `mremap` asks for one where it cannot grow in place, and moves the pages there.
    #[btf_tracepoint(function = "vm_unmapped_area")]
    fn memory_moved(ctx: BtfTracePointContext) -> i32 {
        run(Program::MemoryMoved);
        let task = current();
        let regs = Regs::of(task);
        if regs.nr() != nr::MREMAP {
            return 0;
        }
        let to = ctx.arg::<u64>(0);
        let pid: u32 = task.load(field!(task_tgid));
        let Some(leader) = thread(pid) else { return 0 };
        // SAFETY: a map value.
        if unsafe { (*leader).grown } != 0 && to & 0xfff == 0 {
            let range = RangeKey { pid, pad: 0, start: regs.arg0(), len: regs.arg1(), to };
            note(&range, Program::MemoryMoved);
        }
        0
    }
}
