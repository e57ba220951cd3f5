//! Descriptors: which processes have ever more of them, when their limit is reached, and the code that opens those which
//! stay.
//!
//! Counting costs nothing but the visit of each descriptor on the tick. Only of processes whose number grows are openings
//! sampled, a few ticks at a time, and only descriptors that are still open three ticks later are charged to code.

mod trend;
mod watch;

use std::collections::{HashMap, HashSet};

use crate::decode::descriptors::Sampled;
use crate::decode::model::{FdForecast, SlotId, StackSample, Tick, Totals};

pub use self::watch::Plan;
use self::{trend::Trend, watch::Watch};

/// Processes of which the past is known.
const MAX_PROCESSES: usize = 16_384;
/// Stacks of openings that wait to be told.
const MAX_STACKS: usize = 4096;
/// Ticks that a descriptor must outlive to count as one that stays.
const SURVIVED: u32 = 3;

/// What is kept between ticks.
#[derive(Default)]
pub struct Descriptors {
    processes: HashMap<u32, Process>,
    watch: Watch,
    clock_ns: u64,
    ticks: u64,
    /// Stacks of openings whose descriptors were not found to stay yet, and the tick that they came in.
    stacks: HashMap<u64, (StackSample, u64)>,
    /// Ids of stacks that were told.
    told: HashSet<u64>,
    /// Stacks for which there was no room.
    pub dropped: u64,
}

struct Process {
    slot: SlotId,
    trend: Trend,
    /// Most that were open at a tick.
    most: u64,
    seen: u64,
}

/// What is known of the descriptors whose opening was sampled.
#[derive(Debug, Default)]
pub struct Stayed {
    /// Stacks of which it is news that their descriptors stay, with their ids; they weigh descriptors.
    pub stacks: Vec<(u64, StackSample)>,
    /// All descriptors that stay.
    pub open: Vec<Sampled>,
}

impl Descriptors {
    /// An opening was sampled.
    pub fn opened(&mut self, id: u64, sample: StackSample) {
        if self.stacks.len() >= MAX_STACKS {
            self.dropped += 1;
            return;
        }
        self.stacks.insert(id, (sample, self.ticks));
    }

    /// Takes a tick's counts, and adds growth and forecasts to its totals.
    pub fn count(&mut self, tick: &mut Tick) {
        self.ticks += 1;
        self.clock_ns = self.clock_ns.saturating_add(tick.length_ns);
        let mut totals: HashMap<SlotId, &mut Totals> = tick
            .slots
            .iter_mut()
            .map(|(slot, totals)| (*slot, &mut **totals))
            .collect();
        let mut growing = Vec::new();
        for now in &tick.processes {
            if self.processes.len() >= MAX_PROCESSES && !self.processes.contains_key(&now.pid) {
                continue;
            }
            let new = || Process {
                slot: now.slot,
                trend: Trend::default(),
                most: now.open,
                seen: 0,
            };
            let process = self.processes.entry(now.pid).or_insert_with(new);
            if process.slot != now.slot {
                *process = new();
            }
            process.seen = self.ticks;
            process
                .trend
                .add(u32::try_from(now.open).unwrap_or(u32::MAX), self.clock_ns);
            let more = now.open.saturating_sub(process.most);
            process.most += more;
            let forecast = process.trend.growth().map(|growth| FdForecast {
                left_ns: (now.limit.saturating_sub(now.open) as f64 * growth.each_ns) as u64,
                each_ns: growth.each_ns as u64,
                open: now.open,
                limit: now.limit,
                pid: now.pid,
            });
            growing.extend(forecast);
            if let Some(totals) = totals.get_mut(&now.slot) {
                totals.fd_growth += more;
                totals.fd_forecast = FdForecast::first(totals.fd_forecast, forecast);
            }
        }
        let now = self.ticks;
        self.processes.retain(|_, process| process.seen == now);
        self.watch.suspects(growing);
    }

    /// The program image of a process that has descriptors.
    #[must_use]
    pub fn slot_of(&self, pid: u32) -> Option<SlotId> {
        self.processes.get(&pid).map(|process| process.slot)
    }

    /// What is to be watched from now on; nothing may be hooked unless `allowed`.
    pub fn plan(&mut self, allowed: bool) -> Plan {
        let processes = &self.processes;
        self.watch.plan(allowed, |pid| processes.contains_key(&pid))
    }

    /// Takes the sampled descriptors that are open at the end of a tick.
    pub fn open(&mut self, open: Vec<Sampled>) -> Stayed {
        let ids: HashSet<u64> = open.iter().map(|fd| fd.id).collect();
        let mut stayed = Stayed {
            stacks: Vec::new(),
            open: open.into_iter().filter(|fd| fd.ticks >= SURVIVED).collect(),
        };
        let mut weights: HashMap<u64, f64> = HashMap::new();
        for fd in &stayed.open {
            if !self.told.contains(&fd.id) {
                *weights.entry(fd.id).or_default() += f64::from(fd.every);
            }
        }
        for (id, weight) in weights {
            if let Some((mut sample, _)) = self.stacks.remove(&id) {
                sample.weight = weight;
                stayed.stacks.push((id, sample));
            }
            self.told.insert(id);
        }
        stayed.stacks.sort_by_key(|(id, _)| *id);
        self.told.retain(|id| ids.contains(id));
        let now = self.ticks;
        self.stacks
            .retain(|id, (_, came)| ids.contains(id) || *came + 1 >= now);
        self.watch.hold(stayed.open.iter().map(|fd| fd.pid));
        stayed
    }

    /// Forgets everything: what happened meanwhile was not seen.
    pub fn forget(&mut self) {
        *self = Self {
            dropped: self.dropped,
            ..Self::default()
        };
    }
}

#[cfg(test)]
mod tests;
