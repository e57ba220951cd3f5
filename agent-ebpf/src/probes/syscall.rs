//! System calls: exact counts and errors while attached, durations and callers of a sample.

use crate::{
    offsets::Field,
    probe::{Attach, Hook, Probe},
};

/// What it is.
pub const PROBE: Probe = Probe {
    name: "syscall",
    help: "System calls by number: counts and errors while attached, durations and callers of a sample.",
    hooks: &[
        Hook { program: "syscall_enter", attach: Attach::TpBtf(&["sys_enter"]) },
        Hook { program: "syscall_exit", attach: Attach::TpBtf(&["sys_exit"]) },
    ],
    fields: &[Field::TaskPid, Field::RegsNr, Field::RegsArg0, Field::RegsIp, Field::RegsSp, Field::RegsFp],
    metrics: &[
        "tieback_syscalls_total",
        "tieback_syscall_errors_total",
        "tieback_syscall_duration_seconds",
        "tieback_code_syscalls_total",
    ],
};

#[cfg(target_arch = "bpf")]
mod bpf {
    use core::ffi::c_void;

    use aya_ebpf::{
        btf_maps::HashMap,
        helpers::generated::bpf_get_prandom_u32,
        macros::{btf_map, btf_tracepoint},
        programs::BtfTracePointContext,
    };

    use crate::{
        offsets::MARK_FLAGS,
        bpf::{
            conn::chosen,
            count::{add, lost, observe, run},
            listen,
            sample::{self, Level, What},
            state::{sampled, thread, tuning},
            task::{Regs, current, field, now},
            unix,
        },
        probes::opener::bpf as opener,
        wire::{BUCKETS, CALL_ACCEPT, CALL_CONNECT, Hist, Lost, MAX_SYSCALLS, Program, SAMPLE_AGAIN, SLOT_KERNEL, StackKind, SyscallKey, Thread, Tuning, entered},
    };

    /// Calls and errors.
    #[btf_map]
    static SYSCALL_COUNTS: HashMap<SyscallKey, u64, 16384, MARK_FLAGS> = HashMap::new();

    /// Durations of the timed calls.
    #[btf_map]
    static SYSCALL_HISTS: HashMap<SyscallKey, Hist, 8192, MARK_FLAGS> = HashMap::new();

    #[btf_tracepoint(function = "sys_enter")]
    fn syscall_enter(ctx: BtfTracePointContext) -> i32 {
        let Some(tuning) = tuning() else { return 0 };
        if tuning.window & 1 == 0 {
            return 0;
        }
        run(Program::SyscallEnter);
        let nr: u32 = ctx.arg::<u64>(1) as u32;
        let tid: u32 = current().load(field!(task_pid));
        let Some(thread) = thread(tid) else { return 0 };
        // SAFETY: a map value; only this thread writes these fields.
        let t = unsafe { &mut *thread };
        if t.slot <= SLOT_KERNEL || nr >= MAX_SYSCALLS {
            return 0;
        }
        t.sys_entered = entered(tuning.window, nr);
        t.sys_at = 0;
        if t.sys_skip > 0 {
            t.sys_skip -= 1;
        } else {
            t.sys_skip = skip(tuning.syscall_every);
            t.sys_at = now();
        }
        0
    }

    /// How many calls to pass over: uniform with the mean `every - 1`, so that no pattern of calls resonates with it.
    #[inline(always)]
    fn skip(every: u32) -> u32 {
        if every <= 1 {
            return 0;
        }
        // SAFETY: the helper has no preconditions.
        let random = u64::from(unsafe { bpf_get_prandom_u32() });
        ((random * u64::from(2 * every - 1)) >> 32) as u32
    }

    #[btf_tracepoint(function = "sys_exit")]
    fn syscall_exit(ctx: BtfTracePointContext) -> i32 {
        let Some(tuning) = tuning() else { return 0 };
        if tuning.window & 1 == 0 {
            return 0;
        }
        run(Program::SyscallExit);
        let ret = ctx.arg::<u64>(1) as i64;
        let tid: u32 = current().load(field!(task_pid));
        let Some(thread) = thread(tid) else { return 0 };
        // SAFETY: a map value; only this thread writes these fields.
        let t = unsafe { &mut *thread };
        if t.slot <= SLOT_KERNEL {
            return 0;
        }
        // A call counts in the window in which it ends, wherever it began: counting only those that begin and end in one
        // would lose the long ones. Its number is still in the registers, but for rt_sigreturn, which restores them.
        let running = t.sys_entered;
        t.sys_entered = 0;
        let mut nr = Regs::at(ctx.arg::<*const u8>(0)).nr() as u32;
        if running != 0 && running >> 16 == tuning.window & 0xffff {
            nr = (running & 0xffff) - 1;
        } else {
            t.sys_at = 0;
        }
        if nr >= MAX_SYSCALLS {
            return 0;
        }
        let mut key = SyscallKey { slot: t.slot, nr: nr as u16, errno: 0 };
        count(&key);
        if t.sys_at != 0 {
            time(&key, now().saturating_sub(t.sys_at));
            t.sys_at = 0;
        }
        if (-4095..0).contains(&ret) {
            key.errno = -ret as u16;
            count(&key);
        } else {
            let first = || Regs::at(ctx.arg::<*const u8>(0)).arg0() as u32;
            match opener::opens(nr) {
                Some(CALL_ACCEPT) => {
                    listen::accepts(first(), t.slot);
                    unix::accepted(ret as u32, t.slot);
                }
                Some(CALL_CONNECT) if unix::connected(first(), t.slot) => connected(sample::raw(&ctx), tid, t, nr),
                _ => {}
            }
        }
        if t.sample & SAMPLE_AGAIN != 0 {
            // Instead of the caller's stack: where it came before, Linux 6.1 took more than a minute to verify this in the emulator.
            again(sample::raw(&ctx), tid, t, tuning.window);
        } else if t.sys_stack_skip > 0 {
            t.sys_stack_skip -= 1;
        } else {
            caller(&ctx, tid, t, nr, tuning);
        }
        0
    }

    #[inline(always)]
    fn caller(ctx: &BtfTracePointContext, tid: u32, t: &mut Thread, nr: u32, tuning: &Tuning) {
        // The first call of a thread only draws, or short-lived threads would all be sampled.
        let first = t.sys_skip == 0 && t.sys_stack_skip == 0;
        t.sys_stack_skip = skip(tuning.syscall_stack_every);
        if first && tuning.syscall_stack_every > 1 || !sampled(t.tgid) {
            return;
        }
        let what = What {
            program: Program::SyscallExit,
            level: Level::Task,
            kind: StackKind::Syscall,
            slot: t.slot,
            pid: t.tgid,
            tid,
            cause: 0,
            nr: nr as i32,
            weight: u64::from(tuning.syscall_stack_every),
            kernel: false,
        };
        sample::take(sample::raw(ctx), &what);
    }

    /// It opened a connection over a Unix socket.
    #[inline(never)]
    fn connected(ctx: *mut c_void, tid: u32, t: &mut Thread, nr: u32) {
        let Some(tuning) = tuning() else { return };
        if !sampled(t.tgid) {
            return;
        }
        let Some(every) = chosen(t.slot, tuning) else { return };
        let what = What {
            program: Program::SyscallExit,
            level: Level::Task,
            kind: StackKind::Conn,
            slot: t.slot,
            pid: t.tgid,
            tid,
            cause: 0,
            nr: nr as i32,
            weight: every,
            kernel: false,
        };
        sample::take(ctx, &what);
    }

    /// A wait of this call, or of one whose end was not seen, was sampled without tables. They may be there now, and the thread is
    /// where it was: the first call that ends after the wait, in the same window, is the one that waited.
    #[inline(never)]
    fn again(ctx: *mut c_void, tid: u32, t: &mut Thread, window: u32) {
        let id = t.sample;
        t.sample = 0;
        if t.sample_expect != window {
            return;
        }
        let what = What {
            program: Program::SyscallExit,
            level: Level::Task,
            kind: StackKind::Wait,
            slot: t.slot,
            pid: t.tgid,
            tid,
            cause: u32::from(t.cause),
            nr: Regs::of(current()).nr(),
            weight: id,
            kernel: false,
        };
        sample::take(ctx, &what);
    }

    #[inline(always)]
    fn count(key: &SyscallKey) {
        if let Some(counter) = SYSCALL_COUNTS.get_ptr_mut(key) {
            add(counter, 1);
            return;
        }
        // Two CPUs may insert at once: only one wins, and both then add.
        let _ = SYSCALL_COUNTS.insert(key, 0, 1);
        match SYSCALL_COUNTS.get_ptr_mut(key) {
            Some(counter) => add(counter, 1),
            None => lost(Program::SyscallExit, Lost::Counters),
        }
    }

    #[inline(never)]
    fn time(key: &SyscallKey, ns: u64) {
        if SYSCALL_HISTS.get_ptr_mut(key).is_none() {
            let zero = Hist { buckets: [0; BUCKETS], sum_ns: 0 };
            let _ = SYSCALL_HISTS.insert(key, zero, 1);
        }
        match SYSCALL_HISTS.get_ptr_mut(key) {
            Some(hist) => observe(hist, ns),
            None => lost(Program::SyscallExit, Lost::Counters),
        }
    }
}
