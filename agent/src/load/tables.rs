//! The tables that the programs read.

use agent_ebpf::{
    classes::class_of,
    wire::{MAX_SLOTS, MAX_SYSCALLS, SLOT_FIRST, opens},
};
use anyhow::{Context as _, Result};
use aya::{
    Ebpf,
    maps::{Array, Queue},
};

use super::Environment;

fn quantiles() -> impl Iterator<Item = u32> {
    (1..=1024u32).map(|i| (-(f64::from(i) / 1024.0).ln() * 65_536.0).round() as u32)
}

/// Fills them.
pub(super) fn fill(ebpf: &mut Ebpf, env: &Environment) -> Result<()> {
    let mut free: Queue<_, u32> = Queue::try_from(
        ebpf.map_mut("FREE_SLOTS")
            .context("the object has no map FREE_SLOTS")?,
    )?;
    for id in SLOT_FIRST..MAX_SLOTS {
        free.push(id, 0).context("fill the list of free slots")?;
    }
    by_call(ebpf, env, "WAIT_CLASSES", class_of)?;
    by_call(ebpf, env, "OPENER_CALLS", opens)?;
    let mut table: Array<_, u32> = Array::try_from(
        ebpf.map_mut("QUANTILES")
            .context("the object has no map QUANTILES")?,
    )?;
    for (i, value) in (0u32..).zip(quantiles()) {
        table.set(i, value, 0)?;
    }
    Ok(())
}

fn by_call(ebpf: &mut Ebpf, env: &Environment, map: &str, of: fn(&str) -> u32) -> Result<()> {
    let table = ebpf.map_mut(map);
    let mut table: Array<_, u32> =
        Array::try_from(table.with_context(|| format!("the object has no map {map}"))?)?;
    for (nr, name) in &env.syscalls {
        if u32::from(*nr) < MAX_SYSCALLS {
            table.set(u32::from(*nr), of(name), 0)?;
        }
    }
    Ok(())
}
