//! Counters: runs of programs, losses, atomic sums, histograms.

use aya_ebpf::{btf_maps::PerCpuArray, macros::btf_map};
use core::intrinsics::{AtomicOrdering, atomic_xadd};

use crate::wire::{BUCKETS, Hist, Lost, Program, bucket};

/// Runs by [`Program`].
#[btf_map]
static RUNS: PerCpuArray<u64, 32> = PerCpuArray::new();

/// Losses by [`Program`] and [`Lost`].
#[btf_map]
static LOST: PerCpuArray<u64, 512> = PerCpuArray::new();

/// Entries of `LOST` that each program has.
pub(crate) const LOST_STRIDE: u32 = 16;

/// Counts a run.
#[inline(always)]
pub(crate) fn run(program: Program) {
    if let Some(runs) = RUNS.get_ptr_mut(program as u32) {
        // SAFETY: the pointer is this CPU's element, and BPF programs of one CPU do not interleave here.
        unsafe { *runs += 1 };
    }
}

/// Counts a loss.
#[inline(always)]
pub(crate) fn lost(program: Program, why: Lost) {
    if let Some(count) = LOST.get_ptr_mut(program as u32 * LOST_STRIDE + why as u32) {
        // SAFETY: as in `run`.
        unsafe { *count += 1 };
    }
}

/// Adds to a counter that several CPUs write.
#[inline(always)]
pub(crate) fn add(counter: *mut u64, value: u64) {
    // SAFETY: callers pass a pointer into a map value, 8-byte aligned by its type. The result is not used: the
    // instruction without BPF_FETCH is the one that every kernel has.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(counter, value) };
}

/// Adds one to the bucket of a duration.
#[inline(always)]
pub(crate) fn tally(buckets: *mut [u32; BUCKETS], ns: u64) {
    let bucket = place(ns);
    // SAFETY: `buckets` points into a map value, and the index is below the array's length; else as in `add`.
    unsafe {
        atomic_xadd::<u32, u32, { AtomicOrdering::Relaxed }>(buckets.cast::<u32>().add(bucket), 1);
    }
}

/// The bucket of a duration, by a bound that the verifier sees.
#[inline(always)]
fn place(ns: u64) -> usize {
    bucket(ns).min(BUCKETS - 1)
}

/// Adds a duration to a histogram.
#[inline(always)]
pub(crate) fn observe(hist: *mut Hist, ns: u64) {
    // SAFETY: `hist` points into a map value.
    unsafe {
        add((&raw mut (*hist).buckets).cast::<u64>().add(place(ns)), 1);
        add(&raw mut (*hist).sum_ns, ns);
    }
}
