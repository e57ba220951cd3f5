//! Processes killed for memory.

use crate::{
    offsets::Field,
    probe::{Attach, Hook, Probe},
};

/// What it is.
pub const PROBE: Probe = Probe {
    name: "oom",
    help: "Processes that the kernel killed for memory.",
    hooks: &[Hook { program: "oom_victim", attach: Attach::RawTp("mark_victim") }],
    fields: &[Field::TaskPid, Field::TaskTgid, Field::TaskComm, Field::TaskMm, Field::MmRss],
    metrics: &["tieback_oom_kills_total"],
};

#[cfg(target_arch = "bpf")]
mod bpf {
    use aya_ebpf::{helpers::bpf_probe_read_kernel_buf, macros::raw_tracepoint, programs::RawTracePointContext};

    use crate::{
        bpf::{
            count::{add, lost, run},
            state::{emit, rss_pages, slot, thread},
            task::{Kernel, current, field, offset},
        },
        wire::{EVENT_OOM, Lost, OomVictim, Program, SLOT_KERNEL},
    };

    /// `MM_FILEPAGES`, `MM_ANONPAGES`, `MM_SWAPENTS`, `MM_SHMEMPAGES` (linux/mm_types_task.h), in the order of `MemoryKind`.
    const COUNTERS: [u32; 4] = [1, 0, 3, 2];

    /// The first argument is a process id up to Linux 6.7, and a task since 6.8.
    #[raw_tracepoint(tracepoint = "mark_victim")]
    fn oom_victim(ctx: RawTracePointContext) -> i32 {
        run(Program::MemoryOom);
        let argument: u64 = ctx.arg(0);
        let (pid, task) = if argument > u64::from(u32::MAX) {
            let task = Kernel(argument as *const u8);
            (task.read::<u32>(offset!(task_pid)), Some(task))
        } else {
            let task = current();
            let itself = task.load::<u32, _>(field!(task_tgid)) == argument as u32;
            (Some(argument as u32), itself.then_some(task))
        };
        if let Some(thread) = pid.and_then(thread) {
            // SAFETY: a map value.
            let (id, pid) = unsafe { ((*thread).slot, (*thread).tgid) };
            if id > SLOT_KERNEL
                && let Some(slot) = slot(id)
            {
                // SAFETY: a map value.
                add(unsafe { &raw mut (*slot).oom_kills }, 1);
                tell(id, pid, task);
                return 0;
            }
        }
        lost(Program::MemoryOom, Lost::Unmatched);
        0
    }

    #[inline(always)]
    fn tell(slot: u32, pid: u32, task: Option<Kernel>) {
        let mut victim = OomVictim { kind: EVENT_OOM, slot, pid, pad: 0, pages: [0; 4], comm: [0; 16] };
        if let Some(task) = task {
            if let Some(mm) = task.deref(offset!(task_mm)) {
                let mut at = 0;
                while at < COUNTERS.len() {
                    victim.pages[at] = rss_pages(mm, COUNTERS[at]) as u64;
                    at += 1;
                }
            }
            // SAFETY: the helper checks the address.
            let _ = unsafe {
                bpf_probe_read_kernel_buf(task.0.wrapping_add(offset!(task_comm) as usize), &mut victim.comm)
            };
        } else if let Some(leader) = thread(pid) {
            // SAFETY: a map value.
            victim.pages[0] = unsafe { (*leader).anon_pages } as u64;
        }
        emit(&victim, Program::MemoryOom);
    }
}
