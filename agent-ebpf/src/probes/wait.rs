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
        Field::TaskState,
        Field::TaskFlags,
        Field::TaskRunDelay,
        Field::TaskLastQueued,
        Field::TaskRan,
        Field::TaskRanBefore,
        Field::TaskPrio,
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
    use core::ffi::c_void;
    use aya_ebpf::{
        btf_maps::Array,
        macros::{btf_map, btf_tracepoint},
        programs::BtfTracePointContext,
    };

    use crate::{
        bpf::{
            behind,
            count::{add, lost, tally},
            forecast::{draw, forecast, learn, renew},
            sample::{self, Level, What},
            state::{adopt, emit, forget, release, sampled, slot, thread, tuning},
            task::{Kernel, Regs, field, rq_clock},
        },
        classes::{CLASS_DISK, CLASS_FD, CLASS_IDLE, CLASS_IPC, CLASS_LOCK, CLASS_SLEEP},
        wire::{
            BUCKETS, Cause, EVENT_EXITED, EVENT_WAIT_DONE, FOR_MEMORY, Lost, MAX_SLOTS, MAX_SYSCALLS, Program, SAMPLE_AGAIN,
            SAMPLE_FLAGS, SAMPLE_SHORT, SLOT_KERNEL, STATE_NEW, STATE_OFF, STATE_ON, STATE_UNSEEN, SlotEvent, StackKind, Thread, WaitDone, WaitHists,
        },
    };

    /// What each system call waits for; the agent fills it in for its architecture.
    #[btf_map]
    static WAIT_CLASSES: Array<u32, { MAX_SYSCALLS as usize }> = Array::new();

    /// Durations of finished waits by slot.
    #[btf_map]
    static WAIT_HISTS: Array<WaitHists, { MAX_SLOTS as usize }> = Array::new();

    /// States in which a thread waits for none of the causes that are told apart: stopped, traced, dead, a zombie.
    const SPECIAL: u32 = 0x4 | 0x8 | 0x10 | 0x20;
    const TASK_DEAD: u32 = 0x80;
    const PF_IO_WORKER: u32 = 0x10;
    /// Priorities below it are of real-time classes.
    const REAL_TIME: u32 = 100;

    // A host spends few of its cycles here, so the code is never in the innermost cache: what is not on the common way is a
    // function of its own, which leaves the rest in few cache lines. That saves as much as a helper call or two.

    #[btf_tracepoint(function = "sched_switch")]
    fn wait_switch(ctx: BtfTracePointContext) -> i32 {
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
        let tid: u32 = prev.load(field!(task_pid));
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
        if (t.state == STATE_UNSEEN || t.slot <= SLOT_KERNEL) && !unusual(prev.0, state, thread) {
            return;
        }
        if t.state != STATE_ON {
            untold(prev.0, t, now);
        }
        if t.state == STATE_ON {
            t.cpu_ns += now.wrapping_sub(t.since);
        }
        t.since = now;
        t.state = STATE_OFF;
        if state & TASK_DEAD != 0 {
            end(prev.0, thread);
            return;
        }
        t.run_delay = prev.load(field!(task_run_delay));
        if state == 0 {
            t.cause = Cause::Runqueue as u8;
            return;
        }
        block(ctx, prev, state, t);
    }

    /// A thread leaves its CPU of which nobody said that it had got there: the kernel does not tell of each switch. The scheduler
    /// knows for how long it ran, but not of real-time threads.
    #[inline(never)]
    fn untold(task: *const u8, t: &mut Thread, now: u64) {
        let task = Kernel(task);
        lost(Program::WaitSwitch, Lost::Untold);
        // The call that waited may have ended since: its stack cannot be taken again.
        t.sample &= !SAMPLE_SHORT;
        if task.load::<u32, _>(field!(task_prio)) >= REAL_TIME {
            let ran = task.load::<u64, _>(field!(task_ran)).wrapping_sub(task.load(field!(task_ran_before)));
            got(task, now - ran.min(now.saturating_sub(t.since)), false, t);
        }
    }

    /// A thread that was not seen yet, or one that is not looked at; says whether it is to be looked at.
    #[inline(never)]
    fn unusual(prev: *const u8, state: u32, thread: *mut Thread) -> bool {
        // SAFETY: a map value.
        let t = unsafe { &mut *thread };
        if t.state == STATE_UNSEEN {
            if state & TASK_DEAD != 0 {
                return false;
            }
            adopt(prev, true, Program::WaitSwitch);
        }
        if t.slot > SLOT_KERNEL {
            return true;
        }
        if state & TASK_DEAD != 0 {
            forget(Kernel(prev).load(field!(task_pid)), thread);
        }
        false
    }

    /// A thread goes to sleep: why, and is this wait sampled?
    #[inline(always)]
    fn block(ctx: &BtfTracePointContext, prev: Kernel, state: u32, t: &mut Thread) {
        let regs = Regs::noted(prev, t.regs);
        let (nr, argument) = (regs.nr(), regs.arg0());
        t.remembered = 0;
        let plain = state & SPECIAL == 0
            && prev.load::<u32, _>(field!(task_flags)) & PF_IO_WORKER == 0
            && !prev.in_iowait();
        let recalled = if plain { behind::recall(nr, argument, t) } else { None };
        t.cause = match recalled {
            Some(cause) => cause,
            None => classify(prev.0, state, t) as u8,
        };
        if u32::from(t.cause) == Cause::Idle as u32 {
            return;
        }
        let forecast = forecast(t, sample::site(regs, nr));
        if forecast < t.credit {
            t.credit -= forecast;
            return;
        }
        choose(sample::raw(ctx), prev.0, forecast, t);
    }

    /// A thread's credit is used up: takes a sample.
    #[inline(never)]
    fn choose(ctx: *mut c_void, prev: *const u8, expect: u32, t: &mut Thread) {
        if !sampled(t.tgid) {
            return;
        }
        t.sample_expect = expect;
        t.sample_mean = t.credit_mean;
        draw(t);
        let prev = Kernel(prev);
        let regs = Regs::of(prev);
        behind::check(prev, regs, t);
        let tid: u32 = prev.load(field!(task_pid));
        t.sample = (u64::from(tid) << 32 | t.since & 0xffff_ffff) & !SAMPLE_FLAGS | 1;
        let what = What {
            program: Program::WaitSwitch,
            level: Level::Switch,
            kind: StackKind::Wait,
            slot: t.slot,
            pid: t.tgid,
            tid,
            cause: u32::from(t.cause) | if prev.in_memstall() { FOR_MEMORY } else { 0 },
            nr: regs.nr(),
            weight: t.sample,
            kernel: true,
        };
        // One that is stopped may be on its way out of a call.
        if sample::take(ctx, &what) && what.nr >= 0 && prev.load::<u32, _>(field!(task_state)) & SPECIAL == 0 {
            t.sample |= SAMPLE_SHORT;
        }
    }

    /// Why a thread goes to sleep, where it is not remembered.
    #[inline(never)]
    fn classify(prev: *const u8, state: u32, t: &mut Thread) -> u32 {
        let prev = Kernel(prev);
        // Every thread comes here at least once in so many waits.
        renew(t);
        if state & SPECIAL != 0 {
            return Cause::Other as u32;
        }
        let iowait = prev.in_iowait();
        if prev.load::<u32, _>(field!(task_flags)) & PF_IO_WORKER != 0 {
            return if iowait { Cause::Disk as u32 } else { Cause::Idle as u32 };
        }
        let regs = Regs::noted(prev, t.regs);
        let nr = regs.nr();
        if nr < 0 {
            return Cause::Fault as u32;
        }
        let class = WAIT_CLASSES.get(nr as u32).copied().unwrap_or(0);
        let cause = match class {
            CLASS_IDLE => Cause::Idle,
            CLASS_SLEEP => Cause::Sleep,
            CLASS_LOCK => Cause::Lock,
            CLASS_IPC => Cause::Ipc,
            _ if iowait => Cause::Disk,
            CLASS_DISK => Cause::Disk,
            CLASS_FD => behind::cause(prev, nr, regs.arg0(), t),
            _ => Cause::Other,
        };
        cause as u32
    }

    #[inline(always)]
    fn switch_in(next: Kernel, now: u64) {
        let tid: u32 = next.load(field!(task_pid));
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
        if t.slot > SLOT_KERNEL {
            got(next, now, true, t);
        }
    }

    /// A thread has got a CPU: what it waited for. `inside`: it is still in the call in which it waited.
    #[inline(always)]
    fn got(next: Kernel, now: u64, inside: bool, t: &mut Thread) {
        let queued: u64 = next.load(field!(task_last_queued));
        let new = t.state == STATE_NEW;
        if new && queued != 0 {
            // The clock of the creating CPU may be a tick old; when it was queued is exact.
            t.since = queued;
        }
        let off = now.saturating_sub(t.since);
        let mut runqueue = next.load::<u64, _>(field!(task_run_delay)).wrapping_sub(t.run_delay);
        if new {
            runqueue = 0;
        }
        if queued != 0 {
            runqueue = runqueue.wrapping_add(now.saturating_sub(queued));
        }
        if runqueue > off {
            runqueue = off;
        }
        let blocked = off - runqueue;
        if inside && blocked >= behind::CHECKED {
            behind::check_late(next.0, t);
        }
        t.since = now;
        t.state = STATE_ON;
        let hists = WAIT_HISTS.get_ptr_mut(t.slot & (MAX_SLOTS - 1));
        let cause = t.cause as usize;
        if cause == Cause::Runqueue as usize {
            t.wait_ns[Cause::Runqueue as usize] += off;
            if let Some(hists) = hists {
                // SAFETY: map value, constant index.
                tally(unsafe { (&raw mut (*hists).causes).cast() }, off);
            }
            return;
        }
        t.wait_ns[Cause::Runqueue as usize] += runqueue;
        if cause >= Cause::COUNT {
            return;
        }
        t.wait_ns[cause] += blocked;
        crate::probes::stall::bpf::waited(next, t, cause, blocked);
        if let Some(hists) = hists {
            // SAFETY: map value, the index is below the array's length.
            unsafe {
                tally((&raw mut (*hists).causes).cast::<[u32; BUCKETS]>().add(cause), blocked);
                tally((&raw mut (*hists).causes).cast(), runqueue);
            }
        }
        if cause == Cause::Idle as usize {
            return;
        }
        learn(t, blocked);
        if t.sample != 0 {
            done(t, blocked);
        }
    }

    /// A sampled wait is over, or one after it in the same call.
    #[inline(never)]
    fn done(t: &mut Thread, blocked_ns: u64) {
        if t.sample & SAMPLE_AGAIN != 0 {
            return;
        }
        let id = t.sample & !SAMPLE_FLAGS;
        // Only where the end of its call will be seen, be its beginning as it may.
        let window = if t.sample & SAMPLE_SHORT != 0 { tuning().map_or(0, |tuning| tuning.window) } else { 0 };
        emit(
            &WaitDone {
                kind: EVENT_WAIT_DONE,
                expect: t.sample_expect,
                mean: t.sample_mean,
                again: window & 1,
                sample: id,
                blocked_ns,
            },
            Program::WaitSwitch,
        );
        t.sample = if window & 1 == 1 { id | SAMPLE_AGAIN } else { 0 };
        t.sample_expect = window;
    }

    /// The last switch of a thread: what it did is folded into its slot.
    #[inline(never)]
    fn end(prev: *const u8, thread: *mut Thread) {
        let prev = Kernel(prev);
        let tid: u32 = prev.load(field!(task_pid));
        // SAFETY: map values.
        unsafe {
            let t = &*thread;
            let (id, tgid) = (t.slot, t.tgid);
            if let Some(slot) = slot(id) {
                let dead = &raw mut (*slot).dead;
                add(&raw mut (*dead).cpu_ns, t.cpu_ns);
                add(&raw mut (*dead).ran_ns, prev.load(field!(task_ran)));
                let mut cause = 0;
                while cause < Cause::COUNT {
                    add((&raw mut (*dead).wait_ns).cast::<u64>().add(cause), t.wait_ns[cause]);
                    cause += 1;
                }
                add(&raw mut (*dead).utime, prev.load(field!(task_utime)));
                add(&raw mut (*dead).stime, prev.load(field!(task_stime)));
                add(&raw mut (*dead).min_flt, prev.load(field!(task_min_flt)));
                add(&raw mut (*dead).maj_flt, prev.load(field!(task_maj_flt)));
                let live: u32 = prev.follow(field!(task_signal)).load(field!(signal_live));
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
