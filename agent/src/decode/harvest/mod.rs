//! The tick's harvest: reads what the kernel side summed and turns it into differences since the tick before.
//!
//! Order matters: what ended threads left behind is read before the iterator visits the live ones, so a thread that
//! ends in between is missing for one tick (its share shows in the next), and is never counted twice.

mod difference;
mod read;
mod recycle;
mod scale;
mod unix;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{SystemTime, UNIX_EPOCH};

use agent_ebpf::wire::{MAX_SLOTS, SLOT_KERNEL, Slot, Sums, WaitHists};
use anyhow::{Context as _, Result};
use aya::maps::{Array, MapData};

pub use self::read::{counter_by_cpu, counters, runs};
pub use self::scale::Windows;
use self::{
    difference::difference,
    read::{connections, disk, syscalls},
};
use super::descriptors::visited;
use super::model::{Histogram, SlotId, Tick, Totals};
use crate::load::{Loaded, Plain};

pub(super) const PAGE: u64 = 4096;

/// Reads the kernel side's sums.
pub struct Harvest {
    /// What each slot had at the last tick; nothing yet for new ones.
    slots: BTreeMap<u32, Option<Box<Last>>>,
    closed: HashSet<u32>,
    brief: unix::Brief,
    at_unix_ns: u64,
}

#[derive(Default)]
struct Last {
    totals: Totals,
    utime: u64,
    stime: u64,
}

struct View {
    absolute: Box<Totals>,
    cpu_ns: u64,
    ran_ns: u64,
    utime: u64,
    stime: u64,
}

/// Unix time in nanoseconds now.
#[must_use]
pub fn unix_ns() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(0))
}

fn array<'a, T: Copy>(loaded: &'a mut Loaded, name: &str) -> Result<Array<&'a mut MapData, Plain<T>>> {
    Ok(Array::try_from(
        loaded
            .maps()
            .map_mut(name)
            .with_context(|| format!("the object has no map {name}"))?,
    )?)
}

impl Default for Harvest {
    fn default() -> Self {
        Self::new()
    }
}

impl Harvest {
    /// Starts with the kernel's own slot only.
    #[must_use]
    pub fn new() -> Self {
        Self {
            slots: BTreeMap::from([(SLOT_KERNEL, None)]),
            closed: HashSet::new(),
            brief: unix::Brief::default(),
            at_unix_ns: unix_ns(),
        }
    }

    /// A slot began.
    pub fn opened(&mut self, slot: SlotId) {
        self.slots.entry(slot.0).or_default();
    }

    /// A slot's last thread ended: it is read once more and then given back. Saying so twice changes nothing.
    pub fn closed(&mut self, slot: SlotId) {
        if slot.0 != SLOT_KERNEL && self.slots.contains_key(&slot.0) {
            self.closed.insert(slot.0);
        }
    }

    /// Whether a slot is still to be read.
    #[must_use]
    pub fn holds(&self, slot: SlotId) -> bool {
        self.slots.contains_key(&slot.0)
    }

    /// Harvests; `windows` says how system calls were counted.
    pub fn tick(&mut self, loaded: &mut Loaded, windows: Windows) -> Result<Tick> {
        let ids: Vec<u32> = self.slots.keys().copied().collect();
        let mut dead = Vec::with_capacity(ids.len());
        {
            let slots = array::<Slot>(loaded, "SLOTS")?;
            for id in &ids {
                dead.push(slots.get(&(id & (MAX_SLOTS - 1)), 0)?.0.dead);
            }
        }
        loaded.set_tuning(|tuning| tuning.round = tuning.round.wrapping_add(1))?;
        let round = loaded.tuning().round;
        let accepted = unix::accepted(loaded)?;
        let iterators: Vec<&str> = loaded.iterators().collect();
        let mut written = Vec::new();
        for program in iterators {
            loaded.visit(program, &mut written)?;
        }
        let brief = self.brief.step(&accepted, &unix::accepted(loaded)?);
        let mut views = self.views(loaded, &ids, &dead, round)?;
        syscalls(loaded, &mut views)?;
        disk(loaded, &mut views)?;
        loaded.settle()?;
        connections(loaded, &mut views)?;

        let (processes, unix) = visited(&written);
        let at_unix_ns = unix_ns();
        let mut tick = Tick {
            at_unix_ns,
            length_ns: at_unix_ns.saturating_sub(self.at_unix_ns).max(1),
            slots: Vec::with_capacity(ids.len()),
            processes,
            unix,
            unix_brief: Vec::new(),
        };
        self.at_unix_ns = at_unix_ns;
        for id in ids {
            let (Some(view), Some(last)) = (views.remove(&id), self.slots.get_mut(&id)) else {
                continue;
            };
            let (totals, factor) = difference(view, last.get_or_insert_default(), windows);
            let brief = brief.get(&id).into_iter().flatten();
            tick.unix_brief.extend(brief.map(|brief| brief.scaled(factor)));
            tick.slots.push((SlotId(id), totals));
            if self.closed.contains(&id) {
                // Thousands of brief processes are not to cost memory twice.
                *last = None;
            }
        }
        self.give_back(loaded)?;
        Ok(tick)
    }

    /// `dead` is of the same slots as `ids`.
    fn views(
        &self,
        loaded: &mut Loaded,
        ids: &[u32],
        dead: &[Sums],
        round: u32,
    ) -> Result<HashMap<u32, View>> {
        let mut views = HashMap::with_capacity(ids.len());
        let slots = array::<Slot>(loaded, "SLOTS")?;
        for (id, dead) in ids.iter().zip(dead) {
            let slot = slots.get(&(id & (MAX_SLOTS - 1)), 0)?.0;
            let live = if slot.round == round {
                slot.live
            } else {
                Sums::default()
            };
            views.insert(*id, view(&slot, dead, &live, round));
        }
        let hists = array::<WaitHists>(loaded, "WAIT_HISTS")?;
        for (id, view) in &mut views {
            let wait = hists.get(&(id & (MAX_SLOTS - 1)), 0)?.0;
            for (to, from) in view.absolute.wait.iter_mut().zip(&wait.causes) {
                *to = Histogram::new(from.map(u64::from), to.sum_ns);
            }
        }
        Ok(views)
    }
}

fn view(slot: &Slot, dead: &Sums, live: &Sums, round: u32) -> View {
    let mut totals = Box::<Totals>::default();
    for (i, wait) in totals.wait_ns.iter_mut().enumerate() {
        *wait = dead.wait_ns[i] + live.wait_ns[i];
        totals.wait[i].sum_ns = wait.saturating_sub(live.lasting_ns[i]);
    }
    totals.memory_growth_bytes = slot.growth_pages * PAGE;
    totals.memory_returned_bytes = slot.returned_pages * PAGE;
    totals.faults_minor = dead.min_flt + live.min_flt;
    totals.faults_major = dead.maj_flt + live.maj_flt;
    (totals.stall_ns, totals.stalls) = (slot.stall_ns, slot.stalls);
    totals.oom_kills = slot.oom_kills;
    if slot.round == round {
        totals.resident_bytes = slot.rss_pages.map(|pages| pages * PAGE);
        totals.fd_limit = slot.fd_limit;
        totals.processes = slot.processes;
        totals.threads = slot.threads;
    }
    if slot.fds_round == u64::from(round) {
        totals.fds = slot.fds;
    }
    View {
        absolute: totals,
        cpu_ns: dead.cpu_ns + live.cpu_ns,
        // Below 0 while a thread is missing that had run before it was this slot's: it ended between the two readings.
        ran_ns: dead
            .ran_ns
            .wrapping_add(live.ran_ns)
            .cast_signed()
            .max(0)
            .cast_unsigned(),
        utime: dead.utime + live.utime,
        stime: dead.stime + live.stime,
    }
}
