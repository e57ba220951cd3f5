//! What a thread that waits for a descriptor waits for. Looking that up costs as much as all the rest of a context switch,
//! so each thread remembers it from one wait to the next.

use super::{
    file::File,
    task::{Kernel, Regs},
};
use crate::wire::{Cause, Thread};

/// Waits for a descriptor until it is looked up anew, however short they are.
const REMEMBERED: u32 = 64;

/// A wait from which on what was remembered is to be [checked](check), in nanoseconds: what a stale memory can charge
/// to a wrong cause is at most [`REMEMBERED`] times this after a descriptor was reused.
pub(crate) const CHECKED: u64 = 100_000;

/// Cause of a wait of this thread for a descriptor.
#[inline(always)]
pub(crate) fn cause(task: Kernel, fd: u64, t: &mut Thread) -> u8 {
    if t.kind >> 8 == fd && t.kind_left != 0 {
        t.kind_left -= 1;
        t.remembered = 1;
        return t.kind as u8;
    }
    let cause = File::of(task, fd).map_or(Cause::Other, File::cause);
    learn(fd, cause, t);
    cause as u8
}

/// Looks up after all what was taken from memory, where the descriptor is still open.
#[inline(always)]
pub(crate) fn check(task: Kernel, regs: Regs, t: &mut Thread) {
    if t.remembered == 0 {
        return;
    }
    t.remembered = 0;
    let fd = regs.arg0();
    if let Some(file) = File::of(task, fd) {
        let cause = file.cause();
        learn(fd, cause, t);
        t.cause = cause as u8;
    }
}

#[inline(always)]
fn learn(fd: u64, cause: Cause, t: &mut Thread) {
    t.kind = fd << 8 | cause as u64;
    t.kind_left = REMEMBERED;
}
