//! Exponentially distributed thresholds: what makes sampling by quantity unbiased.

use aya_ebpf::{btf_maps::Array, helpers::generated::bpf_get_prandom_u32, macros::btf_map};

/// `-ln(i / 1024)` in 16.16 fixed point for i = 1 to 1024.
#[btf_map]
static QUANTILES: Array<u32, 1024> = Array::new();

/// An exponentially distributed number with this mean.
#[inline(always)]
pub(crate) fn exponential(mean: u32) -> u64 {
    // SAFETY: the helper has no preconditions.
    let random = unsafe { bpf_get_prandom_u32() };
    let quantile = QUANTILES.get(random & 1023).copied().unwrap_or(1 << 16);
    let next = QUANTILES.get((random & 1023) + 1).copied().unwrap_or(0);
    // Between two quantiles a straight line is exact to 1e-3; the low bits of the draw choose the point on it.
    let fraction = u64::from(random >> 10 & 0xffff);
    let value = u64::from(quantile) - ((u64::from(quantile.saturating_sub(next)) * fraction) >> 16);
    (value * u64::from(mean)) >> 16
}
