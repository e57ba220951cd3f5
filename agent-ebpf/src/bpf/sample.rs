//! Sampled stacks: the one interface to user stacks, and their way into the ring buffer.
//!
//! The user half is walked by [`super::unwind`], frames of an interpreter by [`super::python`].

use aya_ebpf::{
    EbpfContext,
    btf_maps::PerCpuArray,
    helpers::generated::{bpf_get_stack, bpf_probe_read_kernel},
    macros::btf_map,
};
use core::ffi::c_void;

use super::{
    count::lost,
    modules::{self, MODULE_WORDS},
    python,
    state::send,
    task::{Regs, current, now},
    unwind::{self, Room},
};
use crate::wire::{
    CONN_WORDS, ConnKey, EVENT_STACK, GROWTH_WORDS, KERNEL_FRAMES, Lost, Program, SLOT_KERNEL, StackHeader,
    StackKind, USER_FRAMES, python::PYTHON_WORDS, unwind::UnwindResult,
};

/// One record under construction, and the walk's working memory.
#[repr(C)]
struct Scratch {
    header: StackHeader,
    room: Room,
    python: python::Walk,
    conn: [u64; CONN_WORDS],
}

/// One element a kind of context: a perf event can interrupt a tracepoint on the same CPU.
#[btf_map]
static SAMPLE_SCRATCH: PerCpuArray<Scratch, 5> = PerCpuArray::new();

/// Which element of the scratch a program uses.
#[derive(Clone, Copy)]
pub(crate) enum Level {
    /// `sched_switch`: interrupts are off.
    Switch = 0,
    /// Task context: system calls, faults, connects.
    Task = 1,
    /// The CPU clock.
    Clock = 2,
    /// What is measured.
    Measure = 3,
    /// Uprobes: these can be preempted, so their samples are [guarded](guarded).
    Uprobe = 4,
}

/// Whether a uprobe of this CPU is taking a sample.
#[btf_map]
static SAMPLE_BUSY: PerCpuArray<u32, 1> = PerCpuArray::new();

/// [`take`] where another thread may run on this CPU before it is done, which then loses its sample.
#[inline(always)]
pub(crate) fn guarded(ctx: *mut c_void, what: &What) {
    let Some(busy) = SAMPLE_BUSY.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: this CPU's element; a program that is preempted here goes on here.
    unsafe {
        if core::ptr::read_volatile(busy) != 0 {
            lost(what.program, Lost::Busy);
            return;
        }
        core::ptr::write_volatile(busy, 1);
        take(ctx, what);
        core::ptr::write_volatile(busy, 0);
    }
}

/// Where a walk of this level happens.
#[inline(always)]
pub(crate) fn room(level: Level) -> Option<*mut Room> {
    let scratch = SAMPLE_SCRATCH.get_ptr_mut(level as u32)?;
    // SAFETY: a field of a map value.
    Some(unsafe { &raw mut (*scratch).room })
}

/// The key of the connection that the next sample of this level is of.
#[inline(always)]
pub(crate) fn conn(level: Level) -> Option<*mut ConnKey> {
    let scratch = SAMPLE_SCRATCH.get_ptr_mut(level as u32)?;
    // SAFETY: a field of a map value, as long as the key.
    Some(unsafe { (&raw mut (*scratch).conn).cast() })
}

/// What a sample says beside its addresses.
#[derive(Clone, Copy)]
pub(crate) struct What {
    pub(crate) program: Program,
    pub(crate) level: Level,
    pub(crate) kind: StackKind,
    pub(crate) slot: u32,
    pub(crate) pid: u32,
    pub(crate) tid: u32,
    pub(crate) cause: u32,
    pub(crate) nr: i32,
    pub(crate) weight: u64,
    pub(crate) kernel: bool,
}

/// Takes a sample of the running task; says whether its stack was broken off for want of tables.
#[inline(never)]
pub(crate) fn take(ctx: *mut c_void, what: &What) -> bool {
    let Some(scratch) = SAMPLE_SCRATCH.get_ptr_mut(what.level as u32) else {
        return false;
    };
    // SAFETY: a field of a map value.
    let room = unsafe { &raw mut (*scratch).room };
    let (user_len, result) = unwind::walk(room, Regs::of(current()), what.slot, what.pid);
    let user_len = user_len.min(USER_FRAMES as u32);
    let mut kernel_len = 0;
    if matches!(what.kind, StackKind::Memory) {
        let index = user_len as usize & USER_FRAMES;
        // SAFETY: after at most 127 frames there is room for 64 more words; the helper checks the address.
        unsafe {
            let at = (&raw mut (*room).frames).cast::<u64>().add(index);
            *at = now();
            let bytes = ((GROWTH_WORDS - 1) * 8) as u32;
            if bpf_probe_read_kernel(at.add(1).cast(), bytes, Regs::of(current()).address().cast()) == 0 {
                kernel_len = GROWTH_WORDS as u32;
            }
        }
    }
    // Which it is of those over Unix sockets nobody asks.
    if matches!(what.kind, StackKind::Conn) && what.nr < 0 {
        let index = user_len as usize & USER_FRAMES;
        // SAFETY: after at most 127 frames there is room for 64 more words; both are in a map value.
        unsafe {
            let at = (&raw mut (*room).frames).cast::<u64>().add(index);
            at.cast::<[u64; CONN_WORDS]>().write((*scratch).conn);
        }
        kernel_len = CONN_WORDS as u32;
    }
    if what.kernel {
        let index = user_len as usize & USER_FRAMES;
        // SAFETY: after at most 127 frames there is room for 64 more.
        let bytes = unsafe {
            let at = (&raw mut (*room).frames).cast::<u64>().add(index);
            bpf_get_stack(ctx, at.cast(), (KERNEL_FRAMES * 8) as u32, 0)
        };
        if bytes > 0 {
            kernel_len = (bytes as u32 / 8).min(KERNEL_FRAMES as u32);
        }
    }
    let start = (user_len & 0x7f) + (kernel_len & 0x7f);
    // SAFETY: fields of a map value.
    let (python_len, python_minor) = unsafe {
        let words = (&raw mut (*room).frames).cast::<u64>();
        python::walk(&raw mut (*scratch).python, words, start, what.slot, what.tid)
    };
    // No mappings: nobody has looked at the process yet, and it may be gone when the agent looks by itself.
    // SAFETY: as above.
    let unknown = what.slot != SLOT_KERNEL && unsafe { !(*room).has_mappings() };
    // Or it has mapped more since: a program that begins has its libraries some milliseconds later.
    let incomplete = what.slot != SLOT_KERNEL && matches!(result, UnwindResult::NoMapping);
    // An interpreter is known where its frames are: modules take their place in the record.
    let modules = if (unknown || incomplete) && python_len == 0 {
        modules::capture(room, user_len, kernel_len, what.program)
    } else {
        0
    };
    // SAFETY: a map value of this program's level.
    unsafe {
        (*scratch).header = StackHeader {
            kind: EVENT_STACK,
            slot: what.slot,
            pid: what.pid,
            tid: what.tid,
            stack_kind: what.kind as u32,
            cause: what.cause,
            nr: what.nr,
            user_len: user_len as u16,
            kernel_len: kernel_len as u16,
            unwind: result as u32,
            python_len: python_len as u8,
            python_minor: python_minor as u8,
            modules: modules as u16,
            weight: what.weight,
        };
    }
    let words = (user_len & 0x7f)
        + (kernel_len & 0x7f)
        + (python_len & 0x7f) * PYTHON_WORDS as u32
        + (modules & 0xf) * MODULE_WORDS;
    let len = size_of::<StackHeader>() as u64 + u64::from(words * 8);
    send(scratch.cast_const().cast(), len, what.program, unknown);
    unknown || matches!(result, UnwindResult::NoMapping | UnwindResult::NoRule)
}

/// A context as the helpers want it.
#[inline(always)]
pub(crate) fn raw(ctx: &impl EbpfContext) -> *mut c_void {
    ctx.as_ptr()
}

/// A hash of where a thread blocks: the place in the code and the depth of its stack.
#[inline(always)]
pub(crate) fn site(regs: Regs, nr: i32) -> u8 {
    let mixed = (regs.ip() ^ regs.sp().rotate_left(21) ^ nr as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (mixed >> 56) as u8
}
