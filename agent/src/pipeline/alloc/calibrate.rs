//! What a probe in an allocator costs on this host: tried on the agent's own.

use std::hint::black_box;
use std::time::Instant;

use agent_ebpf::wire::AllocTarget;
use anyhow::{Context as _, Result};

use super::process::Costs;
use crate::host::Host;
use crate::load::{AllocProgram, AllocSide, Place};
use crate::signals::alloc::Allocator;

/// Allocations in a round.
const CALLS: usize = 1000;
/// Of so many bytes, one after the other.
const SIZES: [usize; 7] = [48, 1000, 24, 2000, 200, 100, 600];
/// As many live at a time.
const HELD: usize = 64;
/// Bytes of each that are written.
const WRITTEN: usize = 128;
/// Rounds: the fastest counts, because everything else that runs only makes it slower.
const ROUNDS: usize = 5;

/// Probes the agent's own `malloc`, where it has one that is understood, as the target `index`, which is nobody's yet.
pub(super) fn calibrate(side: &mut AllocSide, host: &Host, index: u32) -> Result<Costs> {
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
    let places = |addresses: &[u64], cookie| -> Vec<Place> {
        let offset = |address: &u64| allocator.offset(*address);
        addresses
            .iter()
            .filter_map(offset)
            .map(|offset| Place { offset, cookie })
            .collect()
    };
    let without = fastest();
    let time = |side: &AllocSide, program, places: &[Place]| -> Result<f64> {
        let link = side
            .attach(program, path, places, own)
            .context("probe the agent's own malloc")?;
        let with = fastest();
        drop(link);
        Ok((with - without).max(1e-9))
    };
    let results: Vec<u64> = malloc.sites.results.places().collect();
    let site = malloc.site(index, false);
    side.set_target(
        index,
        AllocTarget {
            on: 1,
            // A sample costs more than a hit.
            mean: u32::MAX,
            ..AllocTarget::default()
        },
    )?;
    let enter = time(
        side,
        AllocProgram::Enter,
        &places(&[malloc.sites.entry], site.cookie()),
    );
    side.set_target(index, AllocTarget::default())?;
    let costs = Costs {
        enter: enter?,
        leave: time(side, AllocProgram::Return, &places(&results, 0))?,
    };
    tracing::debug!(
        enter_ns = (costs.enter * 1e9).round(),
        return_ns = (costs.leave * 1e9).round(),
        "calibrated probes of allocations"
    );
    Ok(costs)
}

/// Seconds of an allocation in the fastest round. Sizes differ, memory is written to and lives for a while, so that a trap disturbs
/// caches and branches as it does those of programs: 496 to 546 ns in seven starts, and 462 to 507 in four of a loop that allocated and
/// freed the same block.
fn fastest() -> f64 {
    let mut best = f64::INFINITY;
    let mut held = [std::ptr::null_mut(); HELD];
    for _ in 0..ROUNDS {
        let began = Instant::now();
        for call in 0..CALLS {
            let place = &mut held[call % HELD];
            let size = SIZES[call % SIZES.len()];
            // SAFETY: each is freed once, null included, and has room for what is written where it is not null.
            unsafe {
                libc::free(*place);
                *place = black_box(libc::malloc(black_box(size)));
                if !place.is_null() {
                    std::ptr::write_bytes(place.cast::<u8>(), 1, size.min(WRITTEN));
                }
            }
        }
        best = best.min(began.elapsed().as_secs_f64() / CALLS as f64);
    }
    // SAFETY: as above, and nothing is used any more.
    held.into_iter().for_each(|block| unsafe { libc::free(block) });
    best
}
