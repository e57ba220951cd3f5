//! Who opens the descriptors that stay open.
//!
//! A hook on every system call costs each of them (COST.md 2.1), and there is no stable hook on descriptors alone. So this one
//! is attached for a share of the time only, and only while some process has more and more descriptors: the iterator of `fd`
//! finds out. What it samples is charged to its code when the iterator still finds the very same descriptor ticks later,
//! so that code which closes what it opens is not blamed.

use crate::{
    offsets::Field,
    probe::{Attach, Hook, Probe},
};

/// What it is.
pub const PROBE: Probe = Probe {
    name: "opener",
    help: "Code that opens descriptors which stay open, in processes that have ever more of them; attached when needed.",
    hooks: &[Hook { program: "opener_exit", attach: Attach::TpBtf(&["sys_exit"]) }],
    fields: &[
        Field::TaskPid,
        Field::TaskTgid,
        Field::TaskFiles,
        Field::FilesFdt,
        Field::FdtMax,
        Field::FdtFd,
        Field::RegsNr,
        Field::RegsArg0,
        Field::RegsArg1,
        Field::RegsArg3,
        Field::RegsIp,
        Field::RegsSp,
        Field::RegsFp,
    ],
    metrics: &["tieback_code_fd_growth_total", "tieback_code_open_fds"],
};

#[cfg(target_arch = "bpf")]
pub(crate) mod bpf {
    use aya_ebpf::{
        btf_maps::{Array, HashMap},
        helpers::{bpf_probe_read_user, generated::bpf_get_prandom_u32},
        macros::{btf_map, btf_tracepoint},
        programs::BtfTracePointContext,
    };

    use crate::{
        offsets::MARK_FLAGS,
        bpf::{
            count::{lost, run},
            file::File,
            sample::{self, Level, What},
            state::{sampled, thread, tuning},
            task::{Kernel, Regs, current, field, now},
        },
        wire::{
            CALL_ACCEPT, CALL_FCNTL, CALL_PAIR_FIRST, CALL_PAIR_FOURTH, CALL_RETURNS, FD_UNVISITED, Lost, MAX_SYSCALLS, OPENER_BURST, OpenerFd,
            OpenerKey, OpenerRate, Program, SLOT_KERNEL, StackKind, Tuning, WATCHED,
        },
    };

    /// Descriptors whose opening was sampled.
    #[btf_map]
    static OPENER_FDS: HashMap<OpenerKey, OpenerFd, 8192, MARK_FLAGS> = HashMap::new();

    /// How system calls open descriptors, by number.
    #[btf_map]
    static OPENER_CALLS: Array<u32, { MAX_SYSCALLS as usize }> = Array::new();

    /// How this call does.
    #[inline(always)]
    pub(crate) fn opens(nr: u32) -> Option<u32> {
        OPENER_CALLS.get(nr).copied()
    }

    /// The rate of samples.
    #[btf_map]
    static OPENER_RATE: Array<OpenerRate, 1> = Array::new();

    /// fcntl.h.
    const F_DUPFD: u64 = 0;
    const F_DUPFD_CLOEXEC: u64 = 1030;

    /// Whether a process is watched.
    #[inline(always)]
    pub(crate) fn watched(tuning: &Tuning, pid: u32) -> bool {
        let mut found = false;
        let mut at = 0;
        while at < WATCHED {
            found |= tuning.watched[at] == pid;
            at += 1;
        }
        found
    }

    #[btf_tracepoint(function = "sys_exit")]
    fn opener_exit(ctx: BtfTracePointContext) -> i32 {
        run(Program::OpenerExit);
        let Some(tuning) = tuning() else { return 0 };
        let task = current();
        let pid: u32 = task.load(field!(task_tgid));
        let ret = ctx.arg::<u64>(1) as i64;
        if ret < 0 || !watched(tuning, pid) || !sampled(pid) {
            return 0;
        }
        let regs = Regs::at(ctx.arg::<*const u8>(0));
        let Some(call) = opens(regs.nr() as u32) else { return 0 };
        let (fd, second) = match call {
            CALL_RETURNS | CALL_ACCEPT => (ret as u32, None),
            CALL_FCNTL => match regs.arg1() & 0xffff_ffff {
                F_DUPFD | F_DUPFD_CLOEXEC => (ret as u32, None),
                _ => return 0,
            },
            CALL_PAIR_FIRST | CALL_PAIR_FOURTH => {
                let at = if call == CALL_PAIR_FIRST { regs.arg0() } else { regs.arg3() };
                // SAFETY: the helper checks the address.
                let Ok(pair) = (unsafe { bpf_probe_read_user(at as *const [u32; 2]) }) else { return 0 };
                (pair[0], Some(pair[1]))
            }
            _ => return 0,
        };
        opened(&ctx, task, tuning, pid, fd, second);
        0
    }

    /// Whether this opening is sampled, and one of how many is.
    #[inline(always)]
    fn draw(tuning: &Tuning) -> Option<u32> {
        let rate = OPENER_RATE.get_ptr_mut(0)?;
        // SAFETY: a map value. CPUs that draw at once may lose a step of each other's, which the next ones make up for; what a
        // sample stands for is remembered with it.
        unsafe {
            if (*rate).round != tuning.round {
                (*rate).round = tuning.round;
                (*rate).taken = 0;
                (*rate).every /= 2;
            }
            let every = (*rate).every.max(1);
            if every > 1 && (u64::from(bpf_get_prandom_u32()) * u64::from(every)) >> 32 != 0 {
                return None;
            }
            (*rate).taken += 1;
            if (*rate).taken >= OPENER_BURST {
                (*rate).taken = 0;
                (*rate).every = (every * 2).min(1 << 20);
            }
            Some(every)
        }
    }

    #[inline(always)]
    fn opened(
        ctx: &BtfTracePointContext,
        task: Kernel,
        tuning: &Tuning,
        pid: u32,
        fd: u32,
        second: Option<u32>,
    ) {
        let tid: u32 = task.load(field!(task_pid));
        let Some(thread) = thread(tid) else { return };
        // SAFETY: a map value.
        let slot = unsafe { (*thread).slot };
        if slot <= SLOT_KERNEL {
            return;
        }
        let every = draw(tuning);
        let at = now();
        // No two openings of a thread have the same time.
        let id = at << 16 | u64::from(tid & 0xffff);
        let mut value = OpenerFd {
            file: 0,
            id,
            at,
            slot,
            round: tuning.round,
            seen: 0,
            every: every.unwrap_or(0),
            kind: FD_UNVISITED,
            pad: 0,
        };
        let mut kept = note(task, pid, fd, &mut value);
        if let Some(second) = second {
            kept |= note(task, pid, second, &mut value);
        }
        if !kept {
            return;
        }
        let what = What {
            program: Program::OpenerExit,
            level: Level::Task,
            kind: StackKind::Fd,
            slot,
            pid,
            tid,
            cause: 0,
            nr: -1,
            weight: id,
            kernel: false,
        };
        sample::take(sample::raw(ctx), &what);
    }

    /// Remembers a descriptor that was sampled, and forgets the one that had its number before.
    #[inline(always)]
    fn note(task: Kernel, pid: u32, fd: u32, value: &mut OpenerFd) -> bool {
        let key = OpenerKey { pid, fd };
        if value.every == 0 {
            let _ = OPENER_FDS.remove(&key);
            return false;
        }
        let Some(file) = File::of(task, fd.into()) else { return false };
        value.file = file.0.0 as u64;
        if OPENER_FDS.insert(&key, &*value, 0).is_err() {
            lost(Program::OpenerExit, Lost::Counters);
            return false;
        }
        true
    }

    /// A descriptor of a watched process was visited.
    #[inline(always)]
    pub(crate) fn visited(tuning: &Tuning, pid: u32, fd: u32, file: Kernel, kind: u32) {
        let key = OpenerKey { pid, fd };
        if let Some(known) = OPENER_FDS.get_ptr_mut(&key) {
            // SAFETY: a map value; only the iterator writes these fields.
            unsafe {
                if (*known).file == file.0 as u64 {
                    (*known).seen = tuning.round;
                    (*known).kind = kind;
                }
            }
        }
    }
}
