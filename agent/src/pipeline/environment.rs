//! The kernel side, loaded as this host needs it.

use std::collections::BTreeSet;

use agent_ebpf::offsets::{Field, MISSING};
use agent_ebpf::probe::Probe;
use anyhow::{Context as _, Result};

use crate::aggregate::names;
use crate::config::{Config, SyscallMode};
use crate::host::Host;
use crate::kernel::{Layout, btf::Btf, layout};
use crate::load::{Environment, Loaded};

/// Loads the kernel side as this host needs it.
pub fn load(host: &Host, config: &Config) -> Result<Loaded> {
    Loaded::new(environment(host, config)?)
}

/// Whether the kernel lacks a field that the probe reads.
fn lacks(layout: &Layout, probe: &Probe) -> bool {
    let mut missing = layout.missing.values();
    missing.any(|(field, _)| probe.fields.contains(field))
}

/// What the kernel side must know of this host.
pub(super) fn environment(host: &Host, config: &Config) -> Result<Environment> {
    let raw = host.btf().context(
        "cannot read the kernel's type information at /sys/kernel/btf/vmlinux: Tieback needs Linux 5.18 or newer with \
         CONFIG_DEBUG_INFO_BTF",
    )?;
    let btf = Btf::parse(&raw)?;
    // For tests: one field of this probe is looked up under a name that no kernel has.
    let bogus = std::env::var("TIEBACK_TEST_BOGUS_FIELD").ok().and_then(|wanted| {
        let probe = agent_ebpf::probes::ALL.iter().find(|probe| probe.name == wanted);
        probe.and_then(|probe| probe.fields.last()).copied()
    });
    let mut disabled: BTreeSet<String> = config
        .probes
        .iter()
        .filter(|(_, on)| !**on)
        .map(|(name, _)| name.clone())
        .collect();
    if config.syscall_mode == SyscallMode::Off {
        disabled.insert("syscall".to_owned());
    }
    let mut layout = layout(&btf, bogus);
    if host.interprets_bpf() {
        // The interpreter cannot call functions of the kernel.
        layout.cast = None;
    }
    // The code of this probe is part of other probes' programs, which leave it out where a field is missing.
    if disabled.contains("unix") || lacks(&layout, &agent_ebpf::probes::unix::PROBE) {
        layout.offsets.set(Field::UnixPeer, MISSING);
    }
    // Without that probe nothing tells what a thread waits for while it frees memory, which the kernel's flag covers, too; samples
    // are not labelled then, either: whoever switches it off does not want to hear of stalls.
    if disabled.contains("stall") || lacks(&layout, &agent_ebpf::probes::stall::PROBE) {
        layout.offsets.set(Field::TaskMemstall, MISSING);
    }
    Ok(Environment {
        host: host.clone(),
        pid_max: host.pid_max().context("read pid_max")?,
        cpus: host.online_cpus().context("read the list of online CPUs")?,
        layout,
        syscalls: names::syscalls().collect(),
        disabled,
        cpu_hz: config.sample_cpu_hz,
        alloc: !config.alloc.0.is_empty(),
        room: room(),
    })
}

/// For tests: maps with room for less, as `TIEBACK_TEST_ROOM=CONNS=64,EVENTS=16384` says.
fn room() -> Vec<(String, u32)> {
    let wanted = std::env::var("TIEBACK_TEST_ROOM").unwrap_or_default();
    let room = |text: &str| {
        let (map, entries) = text.split_once('=')?;
        Some((map.to_owned(), entries.parse().ok()?))
    };
    wanted.split(',').filter_map(room).collect()
}
