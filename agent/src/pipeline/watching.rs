//! Allocations between the thread that watches allocators and the rest of the pipeline.

use std::collections::{BTreeMap, HashMap};

use anyhow::Result;

use super::alloc::{Allocations, Counted, WatchedProcess};
use super::clock::monotonic_ns;
use crate::attribute::{Attributor, SlotId, StackDetail, StackKind, StackSample};
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
    both: Both,
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
            both: Both::default(),
            watched: Vec::new(),
        })
    }

    /// A stack was sampled: of an allocation, it counts as objects, too, and may live on.
    pub(super) fn sampled(&mut self, sample: &StackSample, samples: &mut Vec<StackSample>) {
        if !matches!(sample.detail, StackDetail::Alloc { .. }) {
            return;
        }
        samples.push(StackSample {
            kind: StackKind::AllocObjects,
            detail: StackDetail::None,
            weight: sample.objects(),
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

    /// Lets go of all processes; who is followed later begins anew.
    pub(super) fn forget(&mut self) {
        if let Some(allocations) = &mut self.allocations {
            allocations.forget();
        }
    }

    /// A process ended.
    pub(super) fn gone(&mut self, pid: u32) {
        if let Some(allocations) = &mut self.allocations {
            allocations.gone(pid);
        }
    }

    /// Watches the processes of services that are wanted, and those that they forked. Those that are new: what runtimes say has
    /// to be named, and nobody else may have looked at the process until then.
    pub(super) fn follow(
        &mut self,
        attributor: &Attributor,
        host: &Host,
        config: &Config,
    ) -> Vec<(SlotId, u32)> {
        let mut new = Vec::new();
        let Some(allocations) = &mut self.allocations else {
            return new;
        };
        let wanted = attributor.processes(|service| config.alloc.mode(&service.namespace, &service.name));
        let mut modes = HashMap::new();
        for (slot, pid, mode) in wanted {
            modes.insert(slot, mode);
            if allocations.follow(slot, pid, mode) {
                new.push((slot, pid));
            }
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
        new
    }

    /// Adds what was counted to a tick, and what lives to its samples.
    pub(super) fn finish(&mut self, tick: &mut Tick, samples: &mut Vec<StackSample>) {
        let Some(allocations) = &self.allocations else {
            return;
        };
        let mut taken = allocations.take();
        let (stacks, live) = self.live.read(&taken.live, monotonic_ns());
        samples.extend(stacks);
        let go = &mut taken.go;
        go.in_use_bytes
            .keys()
            .for_each(|slot| self.both.balance(*slot, &mut taken.counted, samples));
        samples.append(&mut go.allocated);
        samples.append(&mut go.in_use);
        for (slot, totals) in &mut tick.slots {
            for counted in [&taken.counted, &go.counted] {
                if let Some(counted) = counted.get(slot) {
                    totals.alloc_bytes += counted.bytes.round() as u64;
                    totals.alloc_objects += counted.objects.round() as u64;
                }
            }
            let live = [&live, &go.in_use_bytes].map(|live| live.get(slot).copied().unwrap_or_default());
            totals.alloc_live_bytes = live.iter().sum::<f64>().round() as u64;
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
            for allocator in &process.allocators {
                say(|entry| &mut entry.allocators, allocator.clone());
            }
            if let Some(why) = &process.refused {
                say(|entry| &mut entry.refused, why.clone());
            }
            for function in &process.not_understood {
                say(|entry| &mut entry.not_understood, function.clone());
            }
            entry.from.extend(&process.from);
        }
        services.into_values().collect()
    }
}

/// Programs with figures of two sources: those of cgo, which allocate by Go's runtime and by an allocator.
#[derive(Default)]
struct Both {
    /// What was counted by probes while no sample of them came.
    waiting: HashMap<SlotId, Counted>,
}

impl Both {
    /// All samples of a program are scaled to all that it allocated, so those of probes must stand for what probes counted; what
    /// was counted without a sample waits for one.
    fn balance(&mut self, slot: SlotId, counted: &mut HashMap<SlotId, Counted>, samples: &mut [StackSample]) {
        let waiting = self.waiting.remove(&slot).unwrap_or_default();
        let counted = counted.entry(slot).or_default();
        counted.bytes += waiting.bytes;
        counted.objects += waiting.objects;
        for (kind, amount) in [
            (StackKind::Alloc, &mut counted.bytes),
            (StackKind::AllocObjects, &mut counted.objects),
        ] {
            let of_kind = |sample: &&mut StackSample| sample.slot == slot && sample.kind == kind;
            let sum: f64 = samples
                .iter_mut()
                .filter(of_kind)
                .map(|sample| sample.weight)
                .sum();
            if sum > 0.0 {
                let scale = *amount / sum;
                samples
                    .iter_mut()
                    .filter(of_kind)
                    .for_each(|sample| sample.weight *= scale);
            } else {
                let kept = self.waiting.entry(slot).or_default();
                let kept = match kind {
                    StackKind::Alloc => &mut kept.bytes,
                    _ => &mut kept.objects,
                };
                *kept = std::mem::take(amount);
            }
        }
    }
}
