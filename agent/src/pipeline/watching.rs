//! Allocations between the thread that watches allocators and the rest of the pipeline.

use std::collections::{BTreeMap, HashMap};

use anyhow::Result;

use super::alloc::{Allocations, WatchedProcess};
use crate::attribute::{Attributor, StackDetail, StackKind, StackSample};
use crate::config::Config;
use crate::decode::model::Tick;
use crate::host::Host;
use crate::load::Loaded;
use crate::signals::alloc::Live;
use crate::telemetry::AllocTelemetry;

/// Allocators and reasons that are listed of a service.
const MOST_TEXTS: usize = 8;

/// Does nothing while no service is watched.
pub(super) struct Watching {
    allocations: Option<Allocations>,
    live: Live,
    /// What each watched process was like at the end of the last tick.
    pub(super) watched: Vec<WatchedProcess>,
}

impl Watching {
    pub(super) fn start(loaded: &mut Loaded, host: &Host, config: &Config) -> Result<Self> {
        let allocations = match loaded.alloc_side()? {
            Some(side) => Some(Allocations::start(side, host.clone(), config)?),
            None => None,
        };
        Ok(Self {
            allocations,
            live: Live::default(),
            watched: Vec::new(),
        })
    }

    /// A stack was sampled: of an allocation, it counts as objects, too, and may live on.
    pub(super) fn sampled(&mut self, sample: &StackSample, samples: &mut Vec<StackSample>) {
        let StackDetail::Alloc { size, .. } = sample.detail else {
            return;
        };
        samples.push(StackSample {
            kind: StackKind::AllocObjects,
            detail: StackDetail::None,
            weight: sample.weight / size.max(1) as f64,
            ..sample.clone()
        });
        self.live.sampled(sample);
    }

    /// What a process that ends has not freed counts as live from then on, too. Libraries of `pid` are looked at now: the next
    /// program will have them, too.
    pub(super) fn record(&mut self, pid: Option<u32>) {
        if let Some(allocations) = &mut self.allocations {
            allocations.record(pid);
        }
    }

    /// A process ended.
    pub(super) fn gone(&mut self, pid: u32) {
        if let Some(allocations) = &mut self.allocations {
            allocations.gone(pid);
        }
    }

    /// Watches the processes of services that are wanted, and those that they forked.
    pub(super) fn follow(&mut self, attributor: &Attributor, host: &Host, config: &Config) {
        let Some(allocations) = &mut self.allocations else {
            return;
        };
        let wanted = attributor.processes(|service| config.alloc.mode(&service.namespace, &service.name));
        let mut modes = HashMap::new();
        for (slot, pid, mode) in wanted {
            modes.insert(slot, mode);
            allocations.follow(slot, pid, mode);
        }
        // A child that runs the same program has no slot of its own. One that has become another program has.
        for (pid, slot) in allocations.followed() {
            let Some(mode) = modes.get(&slot) else {
                allocations.gone(pid);
                continue;
            };
            let program = host.program_path(pid).ok();
            for child in host.children(pid).unwrap_or_default() {
                if program.is_some() && host.program_path(child).ok() == program {
                    allocations.follow_child(slot, child, *mode);
                }
            }
        }
    }

    /// Adds what was counted to a tick, and what lives to its samples.
    pub(super) fn finish(&mut self, tick: &mut Tick, samples: &mut Vec<StackSample>) {
        let Some(allocations) = &self.allocations else {
            return;
        };
        let taken = allocations.take();
        let (stacks, live) = self.live.read(&taken.live, monotonic_ns());
        samples.extend(stacks);
        for (slot, totals) in &mut tick.slots {
            if let Some(counted) = taken.counted.get(slot) {
                totals.alloc_bytes += counted.bytes.round() as u64;
                totals.alloc_objects += counted.objects.round() as u64;
            }
            totals.alloc_live_bytes = live.get(slot).copied().unwrap_or_default().round() as u64;
        }
        self.watched = taken.watched;
    }

    /// Samples for which there was no room.
    pub(super) fn lost(&self) -> u64 {
        self.live.lost
    }

    /// How services are watched.
    pub(super) fn telemetry(&self, attributor: &mut Attributor) -> Vec<AllocTelemetry> {
        let mut services: BTreeMap<(String, String), AllocTelemetry> = BTreeMap::new();
        for process in &self.watched {
            let service = attributor.service_of(process.slot);
            let key = (service.namespace.clone(), service.name.clone());
            let entry = services.entry(key).or_insert_with(|| AllocTelemetry {
                service: service.name.clone(),
                namespace: service.namespace.clone(),
                mode: process.mode.as_str().to_owned(),
                slowdown: 1.0,
                ..AllocTelemetry::default()
            });
            let known = entry.processes as f64;
            entry.duty = (entry.duty * known + process.duty) / (known + 1.0);
            entry.processes += 1;
            entry.slowdown = entry.slowdown.max(process.slowdown);
            entry.memory_limit_bytes = match (entry.memory_limit_bytes, process.memory_limit_bytes) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
            let mut say = |list: fn(&mut AllocTelemetry) -> &mut Vec<String>, text: String| {
                let list = list(entry);
                if !list.contains(&text) && list.len() < MOST_TEXTS {
                    list.push(text);
                }
            };
            for (family, path) in &process.allocators {
                say(|entry| &mut entry.allocators, format!("{family} ({path})"));
            }
            if let Some(why) = &process.refused {
                say(|entry| &mut entry.refused, why.clone());
            }
        }
        services.into_values().collect()
    }
}

fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
}
