//! Reads the tables of system calls, block I/O and connections into the views of their slots.

use std::collections::HashMap;

use agent_ebpf::wire::{ConnKey, ConnStats, DiskKey, DiskStats, Hist, Program, SyscallKey};
use anyhow::{Context as _, Result};
use aya::maps::{MapData, PerCpuArray};

use super::View;
use crate::decode::{
    keys::{histogram, peer},
    model::DiskOp,
};
use crate::load::Loaded;

pub(super) fn syscalls(loaded: &Loaded, views: &mut HashMap<u32, View>) -> Result<()> {
    loaded.each("SYSCALL_COUNTS", |key: SyscallKey, count: u64| {
        let Some(view) = views.get_mut(&key.slot) else {
            return;
        };
        let call = view.absolute.syscalls.entry(key.nr).or_default();
        if key.errno == 0 {
            call.count = count;
        } else {
            call.errors.insert(key.errno, count);
        }
    })?;
    loaded.each("SYSCALL_HISTS", |key: SyscallKey, hist: Hist| {
        if let Some(view) = views.get_mut(&key.slot) {
            view.absolute.syscalls.entry(key.nr).or_default().duration = histogram(&hist);
        }
    })
}

pub(super) fn disk(loaded: &Loaded, views: &mut HashMap<u32, View>) -> Result<()> {
    loaded.each("DISK_STATS", |key: DiskKey, stats: DiskStats| {
        let (Some(view), Some(op)) = (views.get_mut(&key.slot), DiskOp::from_index(key.op)) else {
            return;
        };
        let disk = &mut view.absolute.disk[op.index()];
        disk.bytes = stats.bytes;
        disk.duration = histogram(&stats.latency);
    })
}

/// Most connections that were open at once during a round, as far as one was opened in it. The next round may have begun.
fn peak(stats: &ConnStats, round: u64) -> u64 {
    match stats.round {
        now if now == round => stats.peak,
        next if next == round + 1 => stats.peak_before.max(stats.peak),
        _ => 0,
    }
}

pub(super) fn connections(loaded: &Loaded, views: &mut HashMap<u32, View>) -> Result<()> {
    // The round that counts was over when this harvest began the next one.
    let round = u64::from(loaded.tuning().round).saturating_sub(1);
    loaded.each("CONN_STATS", |key: ConnKey, stats: ConnStats| {
        let (Some(view), Some(whom)) = (views.get_mut(&key.slot), peer(&key)) else {
            return;
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
    })
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
