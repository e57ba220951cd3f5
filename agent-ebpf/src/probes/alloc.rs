//! Allocations of chosen processes, by probes in their allocators' functions.
//!
//! Which instruction a probe sits on is the agent's choice: the first of the function that the kernel emulates, with the
//! arguments still in their registers. What the function does is in the probe's cookie.

use crate::{
    offsets::Field,
    probe::{Attach, Hook, Probe},
};

/// What it is.
pub const PROBE: Probe = Probe {
    name: "alloc",
    help: "Allocations of chosen services by code, sampled by bytes, and those that live on.",
    hooks: &[
        Hook { program: "alloc_enter", attach: Attach::UprobeMulti },
        Hook { program: "alloc_return", attach: Attach::UprobeMulti },
        Hook { program: "alloc_free", attach: Attach::UprobeMulti },
    ],
    fields: &[
        Field::TaskPid,
        Field::TaskTgid,
        Field::RegsIp,
        Field::RegsSp,
        Field::RegsFp,
    ],
    metrics: &[
        "tieback_alloc_bytes_total",
        "tieback_alloc_objects_total",
        "tieback_alloc_live_bytes",
        "tieback_code_alloc_bytes_total",
        "tieback_code_alloc_live_bytes",
    ],
};

#[cfg(target_arch = "bpf")]
pub(super) use bpf::clocked;

#[cfg(target_arch = "bpf")]
mod bpf {
    use aya_ebpf::{
        btf_maps::{Array, HashMap},
        helpers::{bpf_probe_read_user, generated::bpf_get_attach_cookie},
        macros::{btf_map, uprobe},
        programs::ProbeContext,
    };

    use crate::{
        bpf::{
            count::{add, lost, run},
            random::exponential,
            sample::{self, Level, What},
            state::thread,
            task::{Kernel, Regs, Word as _, current, now, field},
        },
        wire::{
            ALLOC_RANGES, AllocCall, AllocClock, AllocCounts, AllocTarget, COOKIE_FORWARDS_ALIGNED,
            COOKIE_FORWARDS_NULL, COOKIE_LAST, COOKIE_LIVE,
            LiveKey, LiveValue, Lost, MAX_ALLOC_CLOCKS, MAX_ALLOC_LIVE, MAX_ALLOC_TARGETS, Program, SLOT_KERNEL, StackKind,
            Thread, alloc_sample, cookie_argument, cookie_call, cookie_pushed, cookie_target, cookie_word,
        },
    };

    /// Watched allocators; one entry while none is.
    #[btf_map]
    static ALLOC_TARGETS: Array<AllocTarget, { MAX_ALLOC_TARGETS as usize }> = Array::new();

    /// What they did.
    #[btf_map]
    static ALLOC_COUNTS: Array<AllocCounts, { MAX_ALLOC_TARGETS as usize }> = Array::new();

    /// Sampled allocations that were not freed; one entry while none is watched.
    #[btf_map]
    static ALLOC_LIVE: HashMap<LiveKey, LiveValue, { MAX_ALLOC_LIVE as usize }> = HashMap::new();

    /// Processes whose slowdown is measured.
    #[btf_map]
    static ALLOC_CLOCKS: HashMap<u32, AllocClock, { MAX_ALLOC_CLOCKS as usize }> = HashMap::new();

    /// The instruction of a breakpoint.
    const BREAKPOINT: u8 = 0xcc;
    /// Length of the longest instruction.
    const LONGEST: u64 = 15;
    /// Where the kernel has programs step over instructions: the last page of their memory.
    const STEPS: u64 = 0x7fff_ffff_e000;

    /// Mark of an address in [`Thread::alloc_out`] that was learned before the function's end.
    const LEARNED: u64 = 1;

    /// Alignment of every allocation: glibc's `MALLOC_ALIGNMENT`, and what `max_align_t` asks of the others.
    const ALIGNED_ANYWAY: u64 = 16;

    #[uprobe]
    fn alloc_enter(ctx: ProbeContext) -> u32 {
        run(Program::AllocEnter);
        // SAFETY: the helper has no preconditions.
        let cookie = unsafe { bpf_get_attach_cookie(sample::raw(&ctx)) };
        let index = cookie_target(cookie);
        let (Some(target), Some(counts)) = (ALLOC_TARGETS.get(index), ALLOC_COUNTS.get_ptr_mut(index)) else {
            return 0;
        };
        if target.on == 0 {
            // SAFETY: a map value.
            add(unsafe { &raw mut (*counts).missed }, 1);
            return 0;
        }
        // SAFETY: a map value.
        add(unsafe { &raw mut (*counts).hits }, 1);
        let task = current();
        let regs = Regs::of(task);
        let entry = regs.sp().wrapping_add(cookie_pushed(cookie));
        if called_within(target, entry) {
            return 0;
        }
        let tid: u32 = task.load(field!(task_pid));
        let Some(thread) = thread(tid) else { return 0 };
        // SAFETY: a map value; these fields are the running thread's own.
        let t = unsafe { &mut *thread };
        // The last sampled call is over.
        t.alloc_at = 0;
        t.alloc_out = regs.ip();
        let argument = |at| register(&ctx, cookie_argument(cookie, at));
        let (mut old, mut out) = (0, 0);
        let call = cookie_call(cookie);
        let size = if call == AllocCall::Malloc as u32 {
            argument(0)
        } else if call == AllocCall::Calloc as u32 {
            argument(0).wrapping_mul(argument(1))
        } else if call == AllocCall::Realloc as u32 {
            old = argument(0);
            argument(1)
        } else if call == AllocCall::Reallocarray as u32 {
            old = argument(0);
            argument(1).wrapping_mul(argument(2))
        } else if call == AllocCall::Aligned as u32 {
            if cookie & COOKIE_FORWARDS_ALIGNED != 0 && argument(0) <= ALIGNED_ANYWAY {
                return 0;
            }
            argument(1)
        } else {
            if cookie & COOKIE_FORWARDS_ALIGNED != 0 && argument(1) <= ALIGNED_ANYWAY {
                return 0;
            }
            out = argument(0);
            argument(2)
        };
        if old == 0 && cookie & COOKIE_FORWARDS_NULL != 0 {
            return 0;
        }
        if t.slot <= SLOT_KERNEL {
            return 0;
        }
        if old != 0 && cookie & COOKIE_LIVE != 0 {
            freed(t.tgid, old);
        }
        if size == 0 && old != 0 {
            // A way to free it.
            return 0;
        }
        // SAFETY: a map value.
        unsafe {
            add(&raw mut (*counts).bytes, size);
            add(&raw mut (*counts).objects, 1);
        }
        let (mean, epoch) = (target.mean, target.epoch);
        if t.alloc_epoch != epoch {
            // Exponential thresholds have no memory, so a new draw at any time keeps the sampling unbiased.
            t.alloc_epoch = epoch;
            t.alloc_left = threshold(mean);
        }
        if size < u64::from(t.alloc_left) {
            t.alloc_left -= size as u32;
            return 0;
        }
        t.alloc_left = threshold(mean);
        sampled(&ctx, t, tid, size, mean);
        if cookie & COOKIE_LIVE != 0 {
            t.alloc_at = entry;
            t.alloc_out = out;
        }
        0
    }

    /// Bytes until the next sample: some seven times the mean at most, which is no more than 64 MiB.
    #[inline(always)]
    fn threshold(mean: u32) -> u32 {
        exponential(mean) as u32
    }

    #[inline(always)]
    fn sampled(ctx: &ProbeContext, t: &mut Thread, tid: u32, size: u64, mean: u32) {
        t.alloc_count = t.alloc_count.wrapping_add(1);
        let what = What {
            program: Program::AllocEnter,
            level: Level::Uprobe,
            kind: StackKind::Alloc,
            slot: t.slot,
            pid: t.tgid,
            tid,
            cause: mean,
            nr: t.alloc_count as i32,
            weight: size,
            kernel: false,
        };
        sample::guarded(sample::raw(ctx), &what);
    }

    /// Whether a function of the same allocator made this call: `realloc` that calls `malloc`, for example.
    #[inline(always)]
    fn called_within(target: &AllocTarget, entry: u64) -> bool {
        // SAFETY: the helper checks the address.
        let Ok(caller) = (unsafe { bpf_probe_read_user(entry as *const u64) }) else {
            return false;
        };
        let mut at = 0;
        while at < ALLOC_RANGES {
            if at as u32 >= target.ranges {
                return false;
            }
            if caller >= target.from[at] && caller < target.to[at] {
                return true;
            }
            at += 1;
        }
        false
    }

    #[uprobe]
    fn alloc_return(ctx: ProbeContext) -> u32 {
        run(Program::AllocReturn);
        let task = current();
        let tid: u32 = task.load(field!(task_pid));
        let Some(thread) = thread(tid) else {
            return 0;
        };
        // SAFETY: a map value; these fields are the running thread's own.
        let t = unsafe { &mut *thread };
        // SAFETY: the helper has no preconditions.
        let cookie = unsafe { bpf_get_attach_cookie(sample::raw(&ctx)) };
        let last = cookie & COOKIE_LAST != 0;
        let regs = Regs::of(task);
        if t.alloc_at == 0 {
            left(t, regs, last);
            return 0;
        }
        // Of another call, or of one that the sampled call made: its own return finds the stack as its entry did.
        if regs.sp().wrapping_add(cookie_pushed(cookie)) != t.alloc_at {
            return 0;
        }
        let mut address = register(&ctx, cookie_word(cookie));
        let before = t.alloc_out;
        if before != 0 && before & LEARNED == 0 {
            if !last {
                return 0;
            }
            t.alloc_at = 0;
            if address != 0 {
                return 0;
            }
            // SAFETY: the helper checks the address.
            address = unsafe { bpf_probe_read_user(before as *const u64) }.unwrap_or(0);
        } else if before == address | LEARNED {
            if last {
                t.alloc_at = 0;
            }
            return 0;
        } else if before != 0 {
            freed(t.tgid, before & !LEARNED);
        }
        if last {
            t.alloc_at = 0;
        }
        t.alloc_out = 0;
        if address == 0 {
            return 0;
        }
        let key = LiveKey { address, pid: t.tgid, pad: 0 };
        let value = LiveValue { sample: alloc_sample(tid, t.alloc_count), since: now() };
        if ALLOC_LIVE.insert(&key, &value, 0).is_err() {
            lost(Program::AllocReturn, Lost::Live);
        }
        if !last {
            t.alloc_out = address | LEARNED;
        }
        0
    }

    /// A register of the program's.
    #[inline(always)]
    fn register(ctx: &ProbeContext, word: u64) -> u64 {
        macro_rules! words {
            ($($word:literal)+) => {
                // SAFETY: the context is the saved registers, of which these words are the general ones. The verifier wants
                // each at a place that it knows.
                match word { $($word => unsafe { u64::load::<{ $word * 8 }>(ctx.regs.cast_const().cast()) },)+ _ => 0 }
            };
        }
        words!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14)
    }

    /// Notes where a thread goes on behind a probe, for [`clocked`](super::clocked): some bytes further at most.
    #[inline(always)]
    fn left(t: &mut Thread, regs: Regs, returns: bool) {
        t.alloc_out = regs.ip();
        if returns {
            // SAFETY: the helper checks the address.
            t.alloc_out = unsafe { bpf_probe_read_user(regs.sp() as *const u64) }.unwrap_or(0).wrapping_sub(1);
        }
    }

    #[uprobe]
    fn alloc_free(ctx: ProbeContext) -> u32 {
        run(Program::AllocFree);
        let task = current();
        let regs = Regs::of(task);
        // SAFETY: the helper has no preconditions.
        let cookie = unsafe { bpf_get_attach_cookie(sample::raw(&ctx)) };
        let address = register(&ctx, cookie_argument(cookie, 0));
        if address != 0 {
            freed(task.load(field!(task_tgid)), address);
        }
        if let Some(thread) = thread(task.load(field!(task_pid))) {
            // SAFETY: a map value; these fields are the running thread's own.
            let t = unsafe { &mut *thread };
            if t.alloc_at == 0 {
                t.alloc_out = regs.ip();
            }
        }
        0
    }

    /// The CPU clock met a thread: counts whether a probe had it, which is the time that the program would not need without. What
    /// interrupts the way into the kernel or back comes when that ends, so it is told by the instruction that is next: the
    /// breakpoint, or what follows where the last probe was.
    #[inline(always)]
    pub(in super::super) fn clocked(task: Kernel, t: &Thread, user: bool) {
        let Some(clock) = ALLOC_CLOCKS.get_ptr_mut(&t.tgid) else {
            return;
        };
        let ip = Regs::of(task).ip();
        let behind = t.alloc_at == 0 && ip.wrapping_sub(t.alloc_out).wrapping_sub(1) < LONGEST;
        let mut here = [0u8; 2];
        if !user {
            // SAFETY: the helper checks the address.
            here = unsafe { bpf_probe_read_user(ip.wrapping_sub(1) as *const [u8; 2]) }.unwrap_or([0; 2]);
        }
        let probes = behind || ip >= STEPS || here[0] == BREAKPOINT || here[1] == BREAKPOINT;
        // SAFETY: a map value.
        unsafe {
            add(&raw mut (*clock).samples, 1);
            add(&raw mut (*clock).probes, u64::from(probes));
        }
    }

    #[inline(always)]
    fn freed(pid: u32, address: u64) {
        let key = LiveKey { address, pid, pad: 0 };
        if ALLOC_LIVE.get_ptr(&key).is_some() {
            let _ = ALLOC_LIVE.remove(&key);
        }
    }
}
