//! What the agent says of itself after each tick.

use std::collections::BTreeMap;
use std::time::Instant;

use agent_ebpf::wire::{Lost, Program};
use anyhow::Result;

use super::Reader;
use crate::decode::harvest::{counters, runs};
use crate::telemetry::{ProbeTelemetry, Telemetry};

/// What was lost, by probe and reason. Several programs of a probe, and both sides of the agent, may lose for the same reason.
#[derive(Default)]
struct Losses(BTreeMap<(String, String), u64>);

impl Losses {
    fn add(&mut self, probe: &str, reason: &str, count: u64) {
        *self.0.entry((probe.to_owned(), reason.to_owned())).or_default() += count;
    }
}

impl Reader {
    pub(super) fn telemetry(
        &mut self,
        ratio: f64,
        openings: bool,
        length_ns: u64,
        began: Instant,
    ) -> Result<Telemetry> {
        let missed = self.loaded.missed(&self.host);
        let runs = runs(&mut self.loaded)?;
        let lost_counts = counters(&mut self.loaded, "LOST")?;
        let mut probes: BTreeMap<String, ProbeTelemetry> = BTreeMap::new();
        let mut lost = Losses::default();
        for program in Program::ALL {
            let name = program.as_str();
            let probe = name.split('_').next().unwrap_or(name).to_owned();
            let entry = probes.entry(probe.clone()).or_insert_with(|| ProbeTelemetry {
                sampling_ratio: match &*probe {
                    "syscall" => ratio,
                    "opener" => f64::from(u8::from(openings)),
                    _ => 1.0,
                },
                ..ProbeTelemetry::default()
            });
            let count = runs.get(program.index()).copied().unwrap_or(0);
            entry.runs += count;
            entry.cost_seconds += self.governor.cost_seconds(*program, count);
            for why in Lost::ALL {
                let at = program.index() * 16 + why.index();
                let count = lost_counts.get(at).copied().unwrap_or(0);
                if count > 0 {
                    lost.add(&probe, why.as_str(), count);
                }
            }
        }
        for (probe, count) in missed {
            let seen = runs.get(Program::ConnNested.index()).copied().unwrap_or(0);
            let seen = if probe == "conn" { seen } else { 0 };
            // What happens between the two looks makes it less, once.
            let most = self.missed.entry(probe).or_default();
            *most = count.saturating_sub(seen).max(*most);
            lost.add(probe, "recursion", *most);
        }
        lost.add("ring", "malformed", self.events.malformed);
        lost.add("process", "modules_full", self.events.captured().dropped);
        lost.add("wait", "unmatched", self.events.waits().unmatched);
        lost.add("alloc", "samples_full", self.watching.lost());
        lost.add("opener", "stacks_full", self.descriptors.descriptors.dropped);
        for (probe, losses) in [
            ("attribute", self.attributor.stats().lost()),
            ("pool", self.pools.lost()),
            ("listen", self.listeners.lost()),
        ] {
            for (reason, count) in losses {
                lost.add(probe, reason, count);
            }
        }
        let hooks: f64 = probes.values().map(|probe| probe.cost_seconds).sum();
        let cpu_seconds = self.host.own_cpu_seconds().unwrap_or(0.0);
        self.governor
            .account(&mut self.loaded, hooks + cpu_seconds, length_ns)?;
        let tables = self.unwinding.telemetry();
        let seconds = began.elapsed().as_secs_f64();
        self.tick_seconds_total += seconds;
        let mut governor = self.governor.telemetry();
        governor.killed = self.killed;
        Ok(Telemetry {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel: self.host.kernel_release().unwrap_or_default(),
            probes,
            lost: lost.0,
            unwind: self
                .unwound
                .iter()
                .map(|(result, count)| (result.as_str().to_owned(), *count))
                .collect(),
            wait_samples: self.wait_samples,
            wait_sample_budget: self.governor.wait_budget(),
            cpu_seconds,
            memory_limit_bytes: self.config.memory_limit_bytes,
            bpf_map_bytes: self.loaded.map_bytes(&self.host) + tables.row_bytes,
            first_stacks: self.first_stacks.telemetry(),
            unwind_tables: tables,
            start_unix_seconds: self.start_unix_seconds,
            ticks: self.ticks,
            tick_seconds: seconds,
            tick_seconds_total: self.tick_seconds_total,
            governor,
            alloc: self.watching.telemetry(&mut self.attributor),
            ..Telemetry::default()
        })
    }
}

/// The C library keeps a heap for each few threads, and learns to hold on to ever larger buffers: both for the speed of
/// programs that allocate all the time. The agent does so ten times a minute, and kept a third of its memory for nothing.
/// Call it before there are threads.
pub(crate) fn keep_little_freed_memory() {
    #[cfg(target_env = "gnu")]
    {
        const KEPT: libc::c_int = 128 << 10;
        // SAFETY: mallopt only sets parameters; a value that the library does not take changes nothing.
        unsafe {
            libc::mallopt(libc::M_ARENA_MAX, 2);
            libc::mallopt(libc::M_MMAP_THRESHOLD, KEPT);
            libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT);
        }
    }
}

/// The C library keeps freed memory for later; here somebody else is to have it now.
pub(super) fn give_back_freed_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim may be called at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}
