//! Sampled stacks of what runs.

use crate::{
    offsets::Field,
    probe::{Attach, Hook, Probe},
};

/// What it is.
pub const PROBE: Probe = Probe {
    name: "cpu",
    help: "Stacks of running code, sampled by the CPU clock.",
    hooks: &[Hook { program: "cpu_clock", attach: Attach::CpuClock }],
    fields: &[Field::TaskPid, Field::TaskTgid, Field::RegsIp, Field::RegsSp, Field::RegsFp],
    metrics: &["tieback_code_cpu_seconds_total"],
};

#[cfg(target_arch = "bpf")]
mod bpf {
    use aya_ebpf::{macros::perf_event, programs::PerfEventContext};

    use crate::{
        bpf::{
            count::run,
            sample::{self, Level, What},
            state::{sampled, thread, tuning},
            task::{current, field},
        },
        wire::{Program, SLOT_KERNEL, StackKind},
    };

    /// Which word of the saved registers tells the privileges of what was interrupted.
    const CODE_SEGMENT: usize = 17;
    /// Its bits that are set in a program's code.
    const USER: u64 = 3;

    #[perf_event]
    fn cpu_clock(ctx: PerfEventContext) -> u32 {
        run(Program::CpuClock);
        let task = current();
        let tid: u32 = task.load(field!(task_pid));
        if tid == 0 {
            return 0;
        }
        let (Some(thread), Some(tuning)) = (thread(tid), tuning()) else { return 0 };
        // SAFETY: the context begins with the registers of what was interrupted, the 18th of which says whose code it was.
        let user = unsafe { *ctx.ctx.cast::<u64>().cast_const().add(CODE_SEGMENT) } & USER != 0;
        // SAFETY: a map value.
        super::super::alloc::clocked(task, unsafe { &*thread }, user);
        // SAFETY: a map value.
        let (slot, tgid) = unsafe { ((*thread).slot, (*thread).tgid) };
        if slot <= SLOT_KERNEL || !sampled(tgid) {
            return 0;
        }
        let what = What {
            program: Program::CpuClock,
            level: Level::Clock,
            kind: StackKind::Cpu,
            slot,
            pid: tgid,
            tid,
            cause: 0,
            nr: -1,
            weight: u64::from(tuning.cpu_period_ns),
            kernel: true,
        };
        sample::take(sample::raw(&ctx), &what);
        0
    }
}
