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
    fields: &[Field::TaskPid],
    metrics: &["tieback_oom_kills_total"],
};

#[cfg(target_arch = "bpf")]
mod bpf {
    use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};

    use crate::{
        bpf::{
            count::{add, lost, run},
            state::{slot, thread},
            task::{Kernel, offset},
        },
        wire::{Lost, Program, SLOT_KERNEL},
    };

    /// The first argument is a process id up to Linux 6.7, and a task since 6.8.
    #[raw_tracepoint(tracepoint = "mark_victim")]
    fn oom_victim(ctx: RawTracePointContext) -> i32 {
        run(Program::MemoryOom);
        let argument: u64 = ctx.arg(0);
        let pid = if argument > u64::from(u32::MAX) {
            Kernel(argument as *const u8).read::<u32>(offset!(task_pid))
        } else {
            Some(argument as u32)
        };
        if let Some(thread) = pid.and_then(thread) {
            // SAFETY: a map value.
            let id = unsafe { (*thread).slot };
            if id > SLOT_KERNEL
                && let Some(slot) = slot(id)
            {
                // SAFETY: a map value.
                add(unsafe { &raw mut (*slot).oom_kills }, 1);
                return 0;
            }
        }
        lost(Program::MemoryOom, Lost::Unmatched);
        0
    }
}
