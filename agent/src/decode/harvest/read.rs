//! Reads the tables of system calls, block I/O and connections into the views of their slots.

use std::collections::HashMap;

use agent_ebpf::wire::{ConnKey, ConnStats, DiskKey, DiskStats, Hist, Program, SyscallKey};
use anyhow::{Context as _, Result};
use aya::maps::{MapData, PerCpuArray};

use super::{View, hash};
use crate::decode::{
    keys::{histogram, peer},
    model::DiskOp,
};
use crate::load::{Loaded, Plain};

pub(super) fn syscalls(loaded: &mut Loaded, views: &mut HashMap<u32, View>) -> Result<()> {
    for entry in &hash::<SyscallKey, u64>(loaded, "SYSCALL_COUNTS")? {
        let (Plain(key), Plain(count)) = entry?;
        let Some(view) = views.get_mut(&key.slot) else {
            continue;
        };
        let call = view.absolute.syscalls.entry(key.nr).or_default();
        if key.errno == 0 {
            call.count = count;
        } else {
            call.errors.insert(key.errno, count);
        }
    }
    for entry in &hash::<SyscallKey, Hist>(loaded, "SYSCALL_HISTS")? {
        let (Plain(key), Plain(hist)) = entry?;
        if let Some(view) = views.get_mut(&key.slot) {
            view.absolute.syscalls.entry(key.nr).or_default().duration = histogram(&hist);
        }
    }
    Ok(())
}

pub(super) fn disk(loaded: &mut Loaded, views: &mut HashMap<u32, View>) -> Result<()> {
    for entry in &hash::<DiskKey, DiskStats>(loaded, "DISK_STATS")? {
        let (Plain(key), Plain(stats)) = entry?;
        let (Some(view), Some(op)) = (views.get_mut(&key.slot), DiskOp::from_index(key.op)) else {
            continue;
        };
        let disk = &mut view.absolute.disk[op.index()];
        disk.bytes = stats.bytes;
        disk.duration = histogram(&stats.latency);
    }
    Ok(())
}

/// Most connections that were open at once during a round, as far as one was opened in it. The next round may have begun.
fn peak(stats: &ConnStats, round: u64) -> u64 {
    match stats.round {
        now if now == round => stats.peak,
        next if next == round + 1 => stats.peak_before.max(stats.peak),
        _ => 0,
    }
}

pub(super) fn connections(loaded: &mut Loaded, views: &mut HashMap<u32, View>) -> Result<()> {
    // The round that counts was over when this harvest began the next one.
    let round = u64::from(loaded.tuning().round).saturating_sub(1);
    for entry in &hash::<ConnKey, ConnStats>(loaded, "CONN_STATS")? {
        let (Plain(key), Plain(stats)) = entry?;
        let (Some(view), Some(whom)) = (views.get_mut(&key.slot), peer(&key)) else {
            continue;
        };
        let conn = view.absolute.conns.entry(whom).or_default();
        conn.open = (stats.opened + stats.adopted).saturating_sub(stats.closed);
        conn.opened = stats.opened;
        conn.closed = stats.closed;
        conn.failures = stats.failures;
        conn.ended = stats.ended;
        conn.exchanges = stats.exchanges;
        conn.once = stats.once;
        conn.peak = peak(&stats, round).max(conn.open);
        conn.sent_bytes = stats.sent;
        conn.received_bytes = stats.received;
        conn.retransmits = stats.retransmits;
        conn.connect = histogram(&stats.connect);
        conn.age = histogram(&stats.age);
    }
    Ok(())
}

/// Runs of all programs, by their index.
pub fn runs(loaded: &mut Loaded) -> Result<Vec<u64>> {
    let mut runs = counters(loaded, "RUNS")?;
    if let Some(runs) = runs.get_mut(Program::WaitSwitch.index()) {
        *runs = loaded.switches();
    }
    Ok(runs)
}

fn per_cpu<'a>(loaded: &'a mut Loaded, name: &str) -> Result<PerCpuArray<&'a mut MapData, u64>> {
    let map = loaded.maps().map_mut(name);
    let map = map.with_context(|| format!("the object has no map {name}"))?;
    Ok(PerCpuArray::try_from(map)?)
}

/// Per-CPU counters of the kernel side, summed over CPUs.
pub fn counters(loaded: &mut Loaded, name: &str) -> Result<Vec<u64>> {
    let map = per_cpu(loaded, name)?;
    (0..map.len()).map(|i| Ok(map.get(&i, 0)?.iter().sum())).collect()
}

/// One counter of a per-CPU array, by CPU.
pub fn counter_by_cpu(loaded: &mut Loaded, name: &str, index: u32) -> Result<Vec<u64>> {
    let map = per_cpu(loaded, name)?;
    Ok(map.get(&index, 0)?.to_vec())
}
