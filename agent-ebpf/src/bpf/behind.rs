//! What a thread that waits for a descriptor waits for. Looking that up costs as much as all the rest of a context switch,
//! so each thread remembers it from one wait to the next.

use super::{
    file::File,
    task::{Kernel, Regs},
};
use crate::wire::{Cause, Thread};

/// Waits for a descriptor until it is looked up anew, however short they are.
const REMEMBERED: u16 = 64;

/// A wait from which on what was remembered is to be [checked](check), in nanoseconds: what a stale memory can charge
/// to a wrong cause is at most [`REMEMBERED`] times this after a descriptor was reused.
pub(crate) const CHECKED: u64 = 100_000;

/// Cause of this thread's wait in this call for this descriptor, where it is remembered. That the call does wait for a
/// descriptor is remembered as well.
#[inline(always)]
pub(crate) fn recall(nr: i32, fd: u64, t: &mut Thread) -> Option<u8> {
    if t.kind_of != key(nr, fd) || t.kind_left == 0 {
        return None;
    }
    t.kind_left -= 1;
    t.remembered = 1;
    Some(t.kind as u8)
}

/// Cause of a wait of this thread for a descriptor.
#[inline(always)]
pub(crate) fn cause(task: Kernel, nr: i32, fd: u64, t: &mut Thread) -> Cause {
    let cause = File::of(task, fd).map_or(Cause::Other, File::cause);
    learn(nr, fd, cause, t);
    cause
}

/// Looks up after all what was taken from memory, where the descriptor is still open.
#[inline(always)]
pub(crate) fn check(task: Kernel, regs: Regs, t: &mut Thread) {
    if t.remembered == 0 {
        return;
    }
    t.remembered = 0;
    let (nr, fd) = (regs.nr(), regs.arg0());
    if let Some(file) = File::of(task, fd) {
        let cause = file.cause();
        learn(nr, fd, cause, t);
        t.cause = cause as u8;
    }
}

/// The same for a thread that is still in the call, as a function of its own.
#[inline(never)]
pub(crate) fn check_late(task: *const u8, t: &mut Thread) {
    check(Kernel(task), Regs::of(Kernel(task)), t);
}

#[inline(always)]
fn learn(nr: i32, fd: u64, cause: Cause, t: &mut Thread) {
    t.kind = cause as u16;
    t.kind_of = key(nr, fd);
    t.kind_left = REMEMBERED;
}

/// A call and its descriptor, of which the kernel takes 32 bits, too. No call that exists has a number of more than 16 bits
/// (the x32 calls' mark is above them, and these wait for descriptors where the others do).
#[inline(always)]
fn key(nr: i32, fd: u64) -> u64 {
    fd << 16 | u64::from(nr as u16)
}
