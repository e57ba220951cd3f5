//! How long a thread's wait will be, by where it blocks; and the thresholds of sampling.

use aya_ebpf::helpers::generated::bpf_get_prandom_u32;

use super::{random::exponential, state::tuning};
use crate::wire::{FORECAST_BITS, FORECAST_MAX, SITES, Thread};

/// Forecast of a place that was never seen: 20 ms, so that a long first wait has a fair chance.
const FIRST: u32 = 20_000_000 / 1024;

/// The thread's forecast for a blocking place, in units of 1024 ns; notes where it is.
#[inline(always)]
pub(crate) fn forecast(t: &mut Thread, tag: u8) -> u32 {
    let entry = t.forecast[t.site as usize & (SITES - 1)];
    if entry >> FORECAST_BITS == u32::from(tag) && entry & FORECAST_MAX != 0 {
        return entry & FORECAST_MAX;
    }
    find(t, u32::from(tag))
}

/// Finds the forecast of another place than the last one. A place has an entry of its own (but for one in 256): were a rare
/// long wait and a frequent short one to share a forecast, the long one would hardly be chosen, and the few times it is would
/// weigh far too much.
#[inline(never)]
fn find(t: &mut Thread, tag: u32) -> u32 {
    let mut empty = SITES;
    let mut at = 0;
    while at < SITES {
        let entry = t.forecast[at];
        if entry == 0 {
            empty = at;
            break;
        }
        if entry >> FORECAST_BITS == tag {
            t.site = at as u8;
            return if entry & FORECAST_MAX == 0 {
                FIRST
            } else {
                entry & FORECAST_MAX
            };
        }
        at += 1;
    }
    if empty == SITES {
        // SAFETY: the helper has no preconditions.
        empty = unsafe { bpf_get_prandom_u32() } as usize;
    }
    let at = empty & (SITES - 1);
    t.site = at as u8;
    t.forecast[at] = tag << FORECAST_BITS;
    FIRST
}

/// Takes a finished wait into the forecast of its place.
#[inline(always)]
pub(crate) fn learn(t: &mut Thread, blocked_ns: u64) {
    let site = t.site as usize & (SITES - 1);
    let length = (blocked_ns >> 10).clamp(1, u64::from(FORECAST_MAX)) as u32;
    let entry = t.forecast[site];
    let old = entry & FORECAST_MAX;
    let new = if old == 0 {
        length
    } else {
        (old - old / 4 + length / 4).max(1)
    };
    t.forecast[site] = entry & !FORECAST_MAX | new;
}

/// Draws a thread's threshold anew where the mean has changed since. Exponential thresholds have no memory, so a new draw at
/// any time keeps the sampling unbiased.
#[inline(always)]
pub(crate) fn renew(t: &mut Thread) {
    if tuning().is_some_and(|tuning| tuning.wait_mean != t.credit_mean) {
        draw(t);
    }
}

/// Draws a thread's threshold: exponential, with the mean of the tuning.
#[inline(always)]
pub(crate) fn draw(t: &mut Thread) {
    let Some(tuning) = tuning() else { return };
    t.credit_mean = tuning.wait_mean;
    t.credit = exponential(t.credit_mean).min(u64::from(u32::MAX)) as u32;
}
