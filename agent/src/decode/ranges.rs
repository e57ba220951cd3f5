//! Ranges of addresses that processes gave back or moved.

use agent_ebpf::wire::RangeKey;
use anyhow::{Context as _, Result};
use aya::maps::{HashMap as BpfMap, MapData};

use super::model::Range;
use crate::load::{Loaded, Plain};

/// Takes them out of the kernel side's table, the oldest first.
pub fn take_ranges(loaded: &mut Loaded) -> Result<Vec<Range>> {
    let map = loaded.maps().map_mut("MEMORY_RANGES");
    let mut map: BpfMap<&mut MapData, Plain<RangeKey>, Plain<u64>> =
        BpfMap::try_from(map.context("the object has no map MEMORY_RANGES")?)?;
    let mut ranges = Vec::new();
    let keys: Vec<Plain<RangeKey>> = map.keys().filter_map(Result::ok).collect();
    for key in keys {
        // What is noted between the look-up and the removal is of this tick, too: its time is a few microseconds late.
        let Ok(Plain(at_ns)) = map.get(&key, 0) else {
            continue;
        };
        map.remove(&key)?;
        let RangeKey {
            pid, start, len, to, ..
        } = key.0;
        ranges.push(Range {
            pid,
            start,
            end: start.saturating_add(len),
            to: (to != 0).then_some(to),
            at_ns,
        });
    }
    ranges.sort_by_key(|range| range.at_ns);
    Ok(ranges)
}
