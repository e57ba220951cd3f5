//! Programs that hang on no hook: they are run on demand, to measure what a user stack costs.
//!
//! They return the number of frames; aya's attribute for raw tracepoints would return nothing.

use aya_ebpf::{
    bindings::BPF_F_USER_STACK,
    helpers::{bpf_get_current_pid_tgid, generated::bpf_get_stack},
};
use core::ffi::c_void;

use super::{
    sample::{Level, room},
    task::{Regs, current},
    unwind,
};
use crate::wire::USER_FRAMES;

/// What running a program costs.
#[unsafe(no_mangle)]
#[unsafe(link_section = "raw_tp/measure_nothing")]
extern "C" fn measure_nothing(_ctx: *mut c_void) -> i32 {
    0
}

/// The walk by tables. A stack that was not walked to its end has no frames here.
#[unsafe(no_mangle)]
#[unsafe(link_section = "raw_tp/measure_walk")]
extern "C" fn measure_walk(_ctx: *mut c_void) -> i32 {
    let Some(room) = room(Level::Measure) else {
        return 0;
    };
    let pid = (bpf_get_current_pid_tgid() >> 32) as u32;
    let (len, result) = unwind::walk(room, Regs::of(current()), 0, pid);
    if result.whole() { len as i32 } else { 0 }
}

/// The kernel's own walk by frame pointers.
#[unsafe(no_mangle)]
#[unsafe(link_section = "raw_tp/measure_helper")]
extern "C" fn measure_helper(ctx: *mut c_void) -> i32 {
    let Some(room) = room(Level::Measure) else {
        return 0;
    };
    // SAFETY: the frames are an array of more than `USER_FRAMES` in a map value.
    let bytes = unsafe {
        bpf_get_stack(
            ctx,
            (&raw mut (*room).frames).cast(),
            (USER_FRAMES * 8) as u32,
            u64::from(BPF_F_USER_STACK),
        )
    };
    (bytes / 8) as i32
}
