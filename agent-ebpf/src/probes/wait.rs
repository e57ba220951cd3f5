//! Where threads are blocked, and their time on the CPU: one program at `sched_switch`.
//!
//! All times are the run queue's own clock, the one that the kernel accounts with; the run-queue part of a wait is the
//! kernel's own `sched_info`, so no hook on wake-ups is needed.

use crate::{
    offsets::Field,
    probe::{Attach, Hook, Probe},
};

/// What it is.
pub const PROBE: Probe = Probe {
    name: "wait",
    help: "Time of threads on and off the CPU, by cause, with sampled stacks of waits.",
    hooks: &[Hook { program: "wait_switch", attach: Attach::TpBtf(&["sched_switch"]) }],
    fields: &[
        Field::TaskPid,
        Field::TaskTgid,
        Field::TaskFlags,
        Field::TaskRunDelay,
        Field::TaskLastQueued,
        Field::TaskIowait,
        Field::TaskFiles,
        Field::FilesFdt,
        Field::FdtMax,
        Field::FdtFd,
        Field::FileInode,
        Field::FileOp,
        Field::FilePrivate,
        Field::InodeMode,
        Field::SocketSk,
        Field::SkFamily,
        Field::RegsNr,
        Field::RegsArg0,
    ],
    metrics: &[
        "tieback_wait_seconds_total",
        "tieback_wait_duration_seconds",
        "tieback_code_wait_seconds_total",
        "tieback_cpu_seconds_total",
    ],
};

#[cfg(target_arch = "bpf")]
mod bpf {
    use aya_ebpf::{
        Global,
        btf_maps::Array,
        helpers::generated::bpf_get_prandom_u32,
        macros::{btf_map, btf_tracepoint},
        programs::BtfTracePointContext,
    };

    use crate::{
        bpf::{
            behind,
            count::{add, lost, run, tally},
            random::exponential,
            sample::{self, Level, What},
            state::{adopt, emit, forget, release, sampled, slot, thread, tuning},
            task::{Kernel, Regs, offset, rq_clock},
        },
        classes::{CLASS_DISK, CLASS_FD, CLASS_IDLE, CLASS_IPC, CLASS_LOCK, CLASS_SLEEP},
        wire::{
            BUCKETS, FORECAST_BITS, FORECAST_MAX,
            Cause, EVENT_EXITED, EVENT_WAIT_DONE, Lost, MAX_SLOTS, MAX_SYSCALLS, Program, SITES,
            SLOT_KERNEL, STATE_NEW, STATE_OFF, STATE_ON, STATE_UNSEEN, SlotEvent, StackKind, Thread, Tuning,
            WaitDone, WaitHists,
        },
    };

    /// What each system call waits for; the agent fills it in for its architecture.
    #[btf_map]
    static WAIT_CLASSES: Array<u32, { MAX_SYSCALLS as usize }> = Array::new();

    /// Durations of finished waits by slot.
    #[btf_map]
    static WAIT_HISTS: Array<WaitHists, { MAX_SLOTS as usize }> = Array::new();

    /// Mask of `in_iowait` in its byte.
    #[unsafe(no_mangle)]
    static IOWAIT_MASK: Global<u32> = Global::new(1);

    const TASK_STOPPED_OR_TRACED: u32 = 0x4 | 0x8;
    const TASK_DEAD: u32 = 0x80;
    const EXIT_DEAD_OR_ZOMBIE: u32 = 0x10 | 0x20;
    const PF_IO_WORKER: u32 = 0x10;
    /// Forecast of a place that was never seen: 20 ms, so that a long first wait has a fair chance.
    const FIRST_FORECAST: u32 = 20_000_000 / 1024;

    #[btf_tracepoint(function = "sched_switch")]
    fn wait_switch(ctx: BtfTracePointContext) -> i32 {
        run(Program::WaitSwitch);
        let prev = Kernel(ctx.arg::<*const u8>(1));
        let next = Kernel(ctx.arg::<*const u8>(2));
        let state: u32 = ctx.arg::<u64>(3) as u32;
        let now = rq_clock(prev);
        switch_out(&ctx, prev, state, now);
        switch_in(next, now);
        0
    }

    #[inline(always)]
    fn switch_out(ctx: &BtfTracePointContext, prev: Kernel, state: u32, now: u64) {
        let tid: u32 = prev.load(offset!(task_pid));
        if tid == 0 {
            return;
        }
        let Some(thread) = thread(tid) else {
            if state & TASK_DEAD == 0 {
                adopt(prev.0, true, Program::WaitSwitch);
            }
            return;
        };
        // SAFETY: a map value; only the CPU that switches this thread writes it.
        let t = unsafe { &mut *thread };
        if t.state == STATE_UNSEEN {
            if state & TASK_DEAD != 0 {
                return;
            }
            adopt(prev.0, true, Program::WaitSwitch);
        }
        if t.slot <= SLOT_KERNEL {
            if state & TASK_DEAD != 0 {
                forget(tid, thread);
            }
            return;
        }
        if t.state == STATE_ON {
            t.cpu_ns += now.wrapping_sub(t.since);
        }
        t.since = now;
        t.state = STATE_OFF;
        if state & TASK_DEAD != 0 {
            end(prev, tid, thread);
            return;
        }
        t.run_delay = prev.load(offset!(task_run_delay));
        if state == 0 {
            t.cause = Cause::Runqueue as u8;
            return;
        }
        block(ctx, prev, tid, state, t);
    }

    /// A thread goes to sleep: why, and is this wait sampled?
    #[inline(always)]
    fn block(ctx: &BtfTracePointContext, prev: Kernel, tid: u32, state: u32, t: &mut Thread) {
        let regs = Regs::of(prev);
        let nr = regs.nr();
        t.remembered = 0;
        let cause = classify(prev, regs, nr, state, t);
        t.cause = cause;
        if u32::from(cause) == Cause::Idle as u32 || !sampled(t.tgid) {
            return;
        }
        let Some(tuning) = tuning() else { return };
        let forecast = forecast(t, sample::site(regs, nr));
        let expect = if forecast == 0 { FIRST_FORECAST } else { forecast };
        if t.credit_epoch != tuning.epoch {
            // Exponential thresholds have no memory, so a new draw at any time keeps the sampling unbiased.
            t.credit = draw(tuning);
            t.credit_epoch = tuning.epoch;
        }
        if expect < t.credit {
            t.credit -= expect;
            return;
        }
        t.credit = draw(tuning);
        behind::check(prev, regs, t);
        t.sample = (u64::from(tid) << 32 | t.since & 0xffff_ffff) | 1;
        t.sample_expect = expect;
        t.sample_mean = tuning.wait_mean;
        let what = What {
            program: Program::WaitSwitch,
            level: Level::Switch,
            kind: StackKind::Wait,
            slot: t.slot,
            pid: t.tgid,
            tid,
            cause: u32::from(t.cause),
            nr,
            weight: t.sample,
            kernel: true,
        };
        sample::take(sample::raw(ctx), &what);
    }

    /// Finds the thread's forecast for a blocking place and notes where it is; 0 for a new place. A place has an entry
    /// of its own (but for one in 256): were a rare long wait and a frequent short one to share a forecast, the long one
    /// would hardly be chosen, and the few times it is would weigh far too much.
    #[inline(always)]
    fn forecast(t: &mut Thread, tag: u8) -> u32 {
        let mut empty = SITES;
        let mut at = 0;
        while at < SITES {
            let entry = t.forecast[at];
            if entry == 0 {
                empty = at;
                break;
            }
            if entry >> FORECAST_BITS == u32::from(tag) {
                t.site = at as u8;
                return entry & FORECAST_MAX;
            }
            at += 1;
        }
        if empty == SITES {
            // SAFETY: the helper has no preconditions.
            empty = unsafe { bpf_get_prandom_u32() } as usize;
        }
        let at = empty & (SITES - 1);
        t.site = at as u8;
        t.forecast[at] = u32::from(tag) << FORECAST_BITS;
        0
    }

    /// An exponential threshold with the mean of the tuning.
    #[inline(always)]
    fn draw(tuning: &Tuning) -> u32 {
        exponential(tuning.wait_mean).min(u64::from(u32::MAX)) as u32
    }

    #[inline(always)]
    fn classify(prev: Kernel, regs: Regs, nr: i32, state: u32, t: &mut Thread) -> u8 {
        if state & (TASK_STOPPED_OR_TRACED | EXIT_DEAD_OR_ZOMBIE) != 0 {
            return Cause::Other as u8;
        }
        let iowait = u32::from(prev.load::<u8>(offset!(task_iowait))) & IOWAIT_MASK.load() != 0;
        if prev.load::<u32>(offset!(task_flags)) & PF_IO_WORKER != 0 {
            return if iowait { Cause::Disk as u8 } else { Cause::Idle as u8 };
        }
        if nr < 0 {
            return Cause::Fault as u8;
        }
        let class = WAIT_CLASSES.get(nr as u32).copied().unwrap_or(0);
        let cause = match class {
            CLASS_IDLE => Cause::Idle,
            CLASS_SLEEP => Cause::Sleep,
            CLASS_LOCK => Cause::Lock,
            CLASS_IPC => Cause::Ipc,
            _ if iowait => Cause::Disk,
            CLASS_DISK => Cause::Disk,
            CLASS_FD => return behind::cause(prev, regs.arg0(), t),
            _ => Cause::Other,
        };
        cause as u8
    }

    #[inline(always)]
    fn switch_in(next: Kernel, now: u64) {
        let tid: u32 = next.load(offset!(task_pid));
        if tid == 0 {
            return;
        }
        let Some(thread) = thread(tid) else {
            adopt(next.0, true, Program::WaitSwitch);
            return;
        };
        // SAFETY: as in `switch_out`.
        let t = unsafe { &mut *thread };
        if t.state == STATE_UNSEEN {
            adopt(next.0, true, Program::WaitSwitch);
            return;
        }
        if t.slot <= SLOT_KERNEL {
            return;
        }
        let queued: u64 = next.load(offset!(task_last_queued));
        if t.state == STATE_NEW && queued != 0 {
            // The clock of the creating CPU may be a tick old; when it was queued is exact.
            t.since = queued;
        }
        let off = now.saturating_sub(t.since);
        let mut runqueue = next.load::<u64>(offset!(task_run_delay)).wrapping_sub(t.run_delay);
        if t.state == STATE_NEW {
            runqueue = 0;
        }
        if queued != 0 {
            runqueue = runqueue.wrapping_add(now.saturating_sub(queued));
        }
        if runqueue > off {
            runqueue = off;
        }
        let blocked = off - runqueue;
        if blocked >= behind::CHECKED {
            // It is still inside the call.
            behind::check(next, Regs::of(next), t);
        }
        t.since = now;
        t.state = STATE_ON;
        t.wait_ns[Cause::Runqueue as usize] += runqueue;
        let hists = WAIT_HISTS.get_ptr_mut(t.slot & (MAX_SLOTS - 1));
        let cause = t.cause as usize;
        if cause == Cause::Runqueue as usize {
            t.wait_ns[Cause::Runqueue as usize] += blocked;
            if let Some(hists) = hists {
                // SAFETY: map value, constant index.
                tally(unsafe { (&raw mut (*hists).causes).cast() }, off);
            }
            return;
        }
        if cause >= Cause::COUNT {
            return;
        }
        t.wait_ns[cause] += blocked;
        if let Some(hists) = hists {
            // SAFETY: map value, the index is below the array's length.
            unsafe {
                tally((&raw mut (*hists).causes).cast::<[u64; BUCKETS]>().add(cause), blocked);
                tally((&raw mut (*hists).causes).cast(), runqueue);
            }
        }
        if cause == Cause::Idle as usize {
            return;
        }
        let site = t.site as usize & (SITES - 1);
        let length = (blocked >> 10).clamp(1, u64::from(FORECAST_MAX)) as u32;
        let entry = t.forecast[site];
        let old = entry & FORECAST_MAX;
        let new = if old == 0 { length } else { (old - old / 4 + length / 4).max(1) };
        t.forecast[site] = entry & !FORECAST_MAX | new;
        if t.sample != 0 {
            emit(
                &WaitDone {
                    kind: EVENT_WAIT_DONE,
                    expect: t.sample_expect,
                    mean: t.sample_mean,
                    pad: 0,
                    sample: t.sample,
                    blocked_ns: blocked,
                },
                Program::WaitSwitch,
            );
            t.sample = 0;
        }
    }

    /// The last switch of a thread: what it did is folded into its slot.
    #[inline(always)]
    fn end(prev: Kernel, tid: u32, thread: *mut Thread) {
        // SAFETY: map values.
        unsafe {
            let t = &*thread;
            let (id, tgid) = (t.slot, t.tgid);
            if let Some(slot) = slot(id) {
                let dead = &raw mut (*slot).dead;
                add(&raw mut (*dead).cpu_ns, t.cpu_ns);
                let mut cause = 0;
                while cause < Cause::COUNT {
                    add((&raw mut (*dead).wait_ns).cast::<u64>().add(cause), t.wait_ns[cause]);
                    cause += 1;
                }
                add(&raw mut (*dead).utime, prev.load(offset!(task_utime)));
                add(&raw mut (*dead).stime, prev.load(offset!(task_stime)));
                add(&raw mut (*dead).min_flt, prev.load(offset!(task_min_flt)));
                add(&raw mut (*dead).maj_flt, prev.load(offset!(task_maj_flt)));
                let live: u32 = prev.follow(offset!(task_signal)).load(offset!(signal_live));
                if live == 0 {
                    let event = SlotEvent { kind: EVENT_EXITED, slot: id, pid: tgid, parent: 0, comm: [0; 16] };
                    emit(&event, Program::WaitSwitch);
                }
                forget(tid, thread);
                release(slot, id, tgid, Program::WaitSwitch);
            } else {
                lost(Program::WaitSwitch, Lost::Unmatched);
                forget(tid, thread);
            }
        }
    }
}
