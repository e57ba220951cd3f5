//! Sampled stacks: the one interface to user stacks, and their way into the ring buffer.
//!
//! The user half is walked by frame pointers over one copy of the top of the stack, which costs a sixth of
//! `bpf_get_stack` (COST.md 2.5); frames beyond the copy are read one by one.

use aya_ebpf::{
    EbpfContext,
    btf_maps::PerCpuArray,
    helpers::{
        bpf_probe_read_user,
        generated::{bpf_get_stack, bpf_loop, bpf_probe_read_user as raw_probe_read_user},
    },
    macros::btf_map,
};
use core::ffi::c_void;

use super::{
    state::send,
    task::{Regs, current},
};
use crate::wire::{EVENT_STACK, KERNEL_FRAMES, Program, StackHeader, StackKind, USER_FRAMES};

/// Bytes of stack copied at once.
const COPY: usize = 2048;

/// One record under construction and the walk's working memory.
#[repr(C)]
struct Scratch {
    header: StackHeader,
    frames: [u64; FRAMES],
    copy: [u64; COPY / 8],
}

/// Room for both halves; a power of two, so that an index can be masked.
const FRAMES: usize = 256;
const _: () = assert!(USER_FRAMES + KERNEL_FRAMES < FRAMES);

/// One element a kind of context: a perf event can interrupt a tracepoint on the same CPU.
#[btf_map]
static SAMPLE_SCRATCH: PerCpuArray<Scratch, 4> = PerCpuArray::new();

/// Which element of the scratch a program uses.
#[derive(Clone, Copy)]
pub(crate) enum Level {
    /// `sched_switch`: interrupts are off.
    Switch = 0,
    /// Task context: system calls, faults, connects.
    Task = 1,
    /// The CPU clock.
    Clock = 2,
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

#[repr(C)]
struct Walk {
    scratch: *mut Scratch,
    /// Address of the first copied byte.
    base: u64,
    /// Copied bytes.
    copied: u64,
    fp: u64,
    len: u32,
    /// 0: reached the end; 1: broken off.
    truncated: u32,
}

const USER_END: u64 = 0x0000_7fff_ffff_f000;

/// One step: return address and caller's frame pointer of the frame that `fp` points at.
unsafe extern "C" fn step(index: u64, ctx: *mut c_void) -> i64 {
    // SAFETY: `user_stack` passes its own `Walk`.
    let walk = unsafe { &mut *ctx.cast::<Walk>() };
    let fp = walk.fp;
    if fp == 0 {
        walk.truncated = 0;
        return 1;
    }
    if fp & 7 != 0 || fp >= USER_END {
        return 1;
    }
    let offset = fp.wrapping_sub(walk.base);
    let (next, ret) = if fp >= walk.base && offset + 16 <= walk.copied && offset + 16 <= COPY as u64 {
        let word = (offset / 8) as usize;
        // The bounds are read back right before use: LLVM drops masks that it thinks redundant.
        // SAFETY: the indexes are masked to the array's length.
        unsafe {
            let first = core::ptr::read_volatile(&raw const word) & (COPY / 8 - 1);
            let second = core::ptr::read_volatile(&raw const word).wrapping_add(1) & (COPY / 8 - 1);
            let copy = (&raw const (*walk.scratch).copy).cast::<u64>();
            (*copy.add(first), *copy.add(second))
        }
    } else {
        // SAFETY: the helper checks the address.
        match unsafe { bpf_probe_read_user(fp as *const [u64; 2]) } {
            Ok([next, ret]) => (next, ret),
            Err(_) => return 1,
        }
    };
    if ret == 0 {
        walk.truncated = 0;
        return 1;
    }
    if ret >= USER_END {
        return 1;
    }
    // The step's number is the frame's: a counter of our own would be a new state for the verifier at each step.
    let frame = index as u32 & USER_FRAMES as u32;
    // SAFETY: the index is masked to the array's length.
    unsafe {
        let at = core::ptr::read_volatile(&raw const frame) as usize & USER_FRAMES;
        *(&raw mut (*walk.scratch).frames).cast::<u64>().add(at + 1) = ret;
    }
    walk.len = frame + 2;
    // Frames only go up; anything else is no chain of frame pointers.
    if next != 0 && next <= fp {
        return 1;
    }
    walk.fp = next;
    0
}

/// Walks the user stack into `scratch.frames`; returns the number of frames and whether it was broken off.
#[inline(always)]
fn user_stack(scratch: *mut Scratch, regs: Regs) -> (u32, u32) {
    let sp = regs.sp();
    // SAFETY: map value; index 0.
    unsafe { *(&raw mut (*scratch).frames).cast::<u64>() = regs.ip() };
    let mut walk = Walk {
        scratch,
        base: sp,
        copied: 0,
        fp: regs.fp(),
        len: 1,
        truncated: 1,
    };
    // SAFETY: the helper checks the address; the destination has `COPY` bytes.
    let copy = unsafe { (&raw mut (*scratch).copy).cast::<c_void>() };
    // SAFETY: as above.
    if unsafe { raw_probe_read_user(copy, COPY as u32, sp as *const c_void) } == 0 {
        walk.copied = COPY as u64;
    }
    // SAFETY: the callback has the signature that the helper wants, and `walk` outlives the call.
    unsafe {
        bpf_loop(
            (USER_FRAMES - 1) as u32,
            step as *mut c_void,
            (&raw mut walk).cast(),
            0,
        )
    };
    (walk.len, walk.truncated)
}

/// Takes a sample of the running task.
#[inline(never)]
pub(crate) fn take(ctx: *mut c_void, what: &What) {
    let Some(scratch) = SAMPLE_SCRATCH.get_ptr_mut(what.level as u32) else {
        return;
    };
    let (user_len, truncated) = user_stack(scratch, Regs::of(current()));
    let user_len = user_len.min(USER_FRAMES as u32);
    let mut kernel_len = 0;
    if what.kernel {
        let index = user_len as usize & USER_FRAMES;
        // SAFETY: after at most 127 frames there is room for 64 more.
        let bytes = unsafe {
            let at = (&raw mut (*scratch).frames).cast::<u64>().add(index);
            bpf_get_stack(ctx, at.cast(), (KERNEL_FRAMES * 8) as u32, 0)
        };
        if bytes > 0 {
            kernel_len = (bytes as u32 / 8).min(KERNEL_FRAMES as u32);
        }
    }
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
            truncated,
            pad: 0,
            weight: what.weight,
        };
    }
    let len = size_of::<StackHeader>() as u64 + u64::from(((user_len & 0x7f) + (kernel_len & 0x7f)) * 8);
    send(scratch.cast_const().cast(), len, what.program);
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
