//! What a probe in an allocator costs on this host: tried on the agent's own.

use std::hint::black_box;
use std::time::Instant;

use anyhow::{Context as _, Result};

use super::process::Costs;
use crate::host::Host;
use crate::load::{AllocProgram, AllocSide, Place};
use crate::signals::alloc::Allocator;

/// Allocations in a round.
const CALLS: u32 = 500;
/// Rounds: the fastest counts, because everything else that runs only makes it slower.
const ROUNDS: usize = 5;

/// Probes the agent's own `malloc`, where it has one that is understood. No target counts what it allocates: all are off.
pub(super) fn calibrate(side: &AllocSide, host: &Host) -> Result<Costs> {
    let own = std::process::id();
    let mut found = None;
    for mapped in host.mapped_files(own)? {
        let Ok(file) = host.open_mapped(own, &mapped) else {
            continue;
        };
        if let Ok(Some(allocator)) = Allocator::read(&file) {
            found = Some((mapped, allocator));
            break;
        }
    }
    let (mapped, allocator) = found.context("the agent's own allocator is not known")?;
    let malloc = allocator
        .functions
        .iter()
        .find(|function| function.name == "malloc")
        .context("the agent's own malloc is not understood")?;
    let path = std::path::Path::new(&mapped.path);
    let offsets = |addresses: &[u64]| -> Vec<Place> {
        let offset = |address: &u64| allocator.offset(*address);
        addresses
            .iter()
            .filter_map(offset)
            .map(|offset| Place { offset, cookie: 0 })
            .collect()
    };
    let without = fastest();
    let time = |program, places: &[Place]| -> Result<f64> {
        let link = side
            .attach(program, path, places, own)
            .context("probe the agent's own malloc")?;
        let with = fastest();
        drop(link);
        Ok((with - without).max(1e-9))
    };
    let results: Vec<u64> = malloc.sites.results.places().collect();
    let costs = Costs {
        enter: time(AllocProgram::Enter, &offsets(&[malloc.sites.entry]))?,
        leave: time(AllocProgram::Return, &offsets(&results))?,
    };
    tracing::debug!(
        enter_ns = (costs.enter * 1e9).round(),
        return_ns = (costs.leave * 1e9).round(),
        "calibrated probes of allocations"
    );
    Ok(costs)
}

/// Seconds of an allocation in the fastest round.
fn fastest() -> f64 {
    let mut best = f64::INFINITY;
    for _ in 0..ROUNDS {
        let began = Instant::now();
        for _ in 0..CALLS {
            // SAFETY: what malloc returns, null included, may be freed.
            unsafe { libc::free(black_box(libc::malloc(black_box(64)))) };
        }
        best = best.min(began.elapsed().as_secs_f64() / f64::from(CALLS));
    }
    best
}
