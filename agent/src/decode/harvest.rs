//! The tick's harvest: reads what the kernel side summed and turns it into differences since the tick before.
//!
//! Order matters: what ended threads left behind is read before the iterator visits the live ones, so a thread that
//! ends in between is missing for one tick (its share shows in the next), and is never counted twice.

use std::collections::{BTreeMap, HashMap};
use std::time::{SystemTime, UNIX_EPOCH};

use agent_ebpf::wire::{
    ConnKey, ConnStats, DiskKey, DiskStats, Hist, MAX_SLOTS, SLOT_KERNEL, Slot, Sums, SyscallKey, WaitHists,
};
use anyhow::{Context as _, Result};
use aya::maps::{Array, HashMap as BpfMap, MapData, PerCpuArray, Queue};

use super::{
    keys::{histogram, peer},
    model::{Cause, DiskOp, Histogram, SlotId, Tick, Totals},
};
use crate::load::{Loaded, Plain};

const PAGE: u64 = 4096;

/// Reads the kernel side's sums.
pub struct Harvest {
    slots: BTreeMap<u32, Last>,
    closed: Vec<u32>,
    at_unix_ns: u64,
}

#[derive(Default)]
struct Last {
    totals: Totals,
    utime: u64,
    stime: u64,
}

struct View {
    absolute: Totals,
    cpu_ns: u64,
    utime: u64,
    stime: u64,
}

fn unix_ns() -> u64 {
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

fn hash<'a, K: Copy, V: Copy>(
    loaded: &'a mut Loaded,
    name: &str,
) -> Result<BpfMap<&'a mut MapData, Plain<K>, Plain<V>>> {
    Ok(BpfMap::try_from(
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
            slots: BTreeMap::from([(SLOT_KERNEL, Last::default())]),
            closed: Vec::new(),
            at_unix_ns: unix_ns(),
        }
    }

    /// A slot began.
    pub fn opened(&mut self, slot: SlotId) {
        self.slots.entry(slot.0).or_default();
    }

    /// A slot's last thread ended: it is read once more and then given back. Saying so twice changes nothing.
    pub fn closed(&mut self, slot: SlotId) {
        if slot.0 != SLOT_KERNEL && self.slots.contains_key(&slot.0) && !self.closed.contains(&slot.0) {
            self.closed.push(slot.0);
        }
    }

    /// Whether a slot is still to be read.
    #[must_use]
    pub fn holds(&self, slot: SlotId) -> bool {
        self.slots.contains_key(&slot.0)
    }

    /// Harvests. `syscall_ratio` is the share of the tick during which system calls were counted.
    pub fn tick(&mut self, loaded: &mut Loaded, syscall_ratio: f64) -> Result<Tick> {
        let ids: Vec<u32> = self.slots.keys().copied().collect();
        let mut dead = HashMap::new();
        {
            let slots = array::<Slot>(loaded, "SLOTS")?;
            for id in &ids {
                dead.insert(*id, slots.get(&(id & (MAX_SLOTS - 1)), 0)?.0.dead);
            }
        }
        loaded.set_tuning(|tuning| tuning.round = tuning.round.wrapping_add(1))?;
        let round = loaded.tuning().round;
        let iterators: Vec<&str> = loaded.iterators().collect();
        for program in iterators {
            loaded.visit(program)?;
        }
        let mut views = self.views(loaded, &ids, &dead, round)?;
        syscalls(loaded, &mut views)?;
        disk(loaded, &mut views)?;
        connections(loaded, &mut views)?;

        let at_unix_ns = unix_ns();
        let mut tick = Tick {
            at_unix_ns,
            length_ns: at_unix_ns.saturating_sub(self.at_unix_ns).max(1),
            slots: Vec::with_capacity(ids.len()),
        };
        self.at_unix_ns = at_unix_ns;
        for id in ids {
            let (Some(view), Some(last)) = (views.remove(&id), self.slots.get_mut(&id)) else {
                continue;
            };
            let totals = difference(view, last, syscall_ratio);
            tick.slots.push((SlotId(id), totals));
        }
        self.give_back(loaded)?;
        Ok(tick)
    }

    fn views(
        &self,
        loaded: &mut Loaded,
        ids: &[u32],
        dead: &HashMap<u32, Sums>,
        round: u32,
    ) -> Result<HashMap<u32, View>> {
        let mut views = HashMap::new();
        let slots = array::<Slot>(loaded, "SLOTS")?;
        for id in ids {
            let slot = slots.get(&(id & (MAX_SLOTS - 1)), 0)?.0;
            let dead = dead.get(id).copied().unwrap_or_default();
            let live = if slot.round == round {
                slot.live
            } else {
                Sums::default()
            };
            views.insert(*id, view(&slot, &dead, &live, round));
        }
        let hists = array::<WaitHists>(loaded, "WAIT_HISTS")?;
        for (id, view) in &mut views {
            let wait = hists.get(&(id & (MAX_SLOTS - 1)), 0)?.0;
            for (to, from) in view.absolute.wait.iter_mut().zip(&wait.causes) {
                *to = histogram(from);
            }
        }
        Ok(views)
    }

    /// Empties closed slots and offers their places again, under the next generation of their ids.
    fn give_back(&mut self, loaded: &mut Loaded) -> Result<()> {
        if self.closed.is_empty() {
            return Ok(());
        }
        let closed = std::mem::take(&mut self.closed);
        forget(&mut hash::<SyscallKey, u64>(loaded, "SYSCALL_COUNTS")?, |key| {
            closed.contains(&key.slot)
        })?;
        forget(&mut hash::<SyscallKey, Hist>(loaded, "SYSCALL_HISTS")?, |key| {
            closed.contains(&key.slot)
        })?;
        forget(&mut hash::<DiskKey, DiskStats>(loaded, "DISK_STATS")?, |key| {
            closed.contains(&key.slot)
        })?;
        forget(&mut hash::<ConnKey, ConnStats>(loaded, "CONN_STATS")?, |key| {
            closed.contains(&key.slot)
        })?;
        {
            let mut hists = array::<WaitHists>(loaded, "WAIT_HISTS")?;
            for id in &closed {
                hists.set(id & (MAX_SLOTS - 1), Plain(WaitHists::default()), 0)?;
            }
        }
        {
            let mut slots = array::<Slot>(loaded, "SLOTS")?;
            for id in &closed {
                slots.set(id & (MAX_SLOTS - 1), Plain(Slot::EMPTY), 0)?;
            }
        }
        let mut free: Queue<_, u32> = Queue::try_from(
            loaded
                .maps()
                .map_mut("FREE_SLOTS")
                .context("the object has no map FREE_SLOTS")?,
        )?;
        for id in closed {
            self.slots.remove(&id);
            free.push(id.wrapping_add(MAX_SLOTS), 0)?;
        }
        Ok(())
    }
}

fn forget<K: Copy, V: Copy>(
    map: &mut BpfMap<&mut MapData, Plain<K>, Plain<V>>,
    gone: impl Fn(&K) -> bool,
) -> Result<()> {
    let keys: Vec<Plain<K>> = map
        .keys()
        .filter_map(Result::ok)
        .filter(|key| gone(&key.0))
        .collect();
    for key in keys {
        map.remove(&key)?;
    }
    Ok(())
}

fn view(slot: &Slot, dead: &Sums, live: &Sums, round: u32) -> View {
    let mut totals = Totals::default();
    for (i, wait) in totals.wait_ns.iter_mut().enumerate() {
        *wait = dead.wait_ns[i] + live.wait_ns[i];
    }
    totals.memory_growth_bytes = slot.growth_pages * PAGE;
    totals.faults_minor = dead.min_flt + live.min_flt;
    totals.faults_major = dead.maj_flt + live.maj_flt;
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
        utime: dead.utime + live.utime,
        stime: dead.stime + live.stime,
    }
}

fn syscalls(loaded: &mut Loaded, views: &mut HashMap<u32, View>) -> Result<()> {
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

fn disk(loaded: &mut Loaded, views: &mut HashMap<u32, View>) -> Result<()> {
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

fn connections(loaded: &mut Loaded, views: &mut HashMap<u32, View>) -> Result<()> {
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
        conn.sent_bytes = stats.sent;
        conn.received_bytes = stats.received;
        conn.retransmits = stats.retransmits;
        conn.connect = histogram(&stats.connect);
        conn.age = histogram(&stats.age);
    }
    Ok(())
}

/// What came since the last tick; `last` becomes the new view. A value that is momentarily lower (a thread that ended
/// while it was visited) counts as unchanged until it has caught up.
fn difference(view: View, last: &mut Last, syscall_ratio: f64) -> Totals {
    let mut totals = view.absolute;
    let before = &mut last.totals;
    for cause in Cause::ALL {
        let i = cause.index();
        step(&mut totals.wait_ns[i], &mut before.wait_ns[i]);
        step_histogram(&mut totals.wait[i], &mut before.wait[i]);
    }
    // The exact time on the CPU is split by the kernel's own sampled user and system times, as `times(2)` does.
    let mut cpu = view.cpu_ns;
    step(&mut cpu, &mut before.cpu_user_ns);
    let (mut user, mut system) = (view.utime, view.stime);
    step(&mut user, &mut last.utime);
    step(&mut system, &mut last.stime);
    if user + system == 0 {
        (user, system) = (last.utime, last.stime);
    }
    let share = if user + system == 0 {
        1.0
    } else {
        user as f64 / (user + system) as f64
    };
    totals.cpu_user_ns = (cpu as f64 * share) as u64;
    totals.cpu_system_ns = cpu - totals.cpu_user_ns.min(cpu);
    step(&mut totals.memory_growth_bytes, &mut before.memory_growth_bytes);
    step(&mut totals.faults_minor, &mut before.faults_minor);
    step(&mut totals.faults_major, &mut before.faults_major);
    step(&mut totals.oom_kills, &mut before.oom_kills);
    for (now, before) in totals.disk.iter_mut().zip(&mut before.disk) {
        step(&mut now.bytes, &mut before.bytes);
        step_histogram(&mut now.duration, &mut before.duration);
    }
    let scale = |count: u64| {
        if syscall_ratio >= 1.0 {
            count
        } else {
            (count as f64 / syscall_ratio.max(1e-6)).round() as u64
        }
    };
    for (nr, now) in &mut totals.syscalls {
        let before = before.syscalls.entry(*nr).or_default();
        step(&mut now.count, &mut before.count);
        now.count = scale(now.count);
        for (errno, count) in &mut now.errors {
            step(count, before.errors.entry(*errno).or_default());
            *count = scale(*count);
        }
        step_histogram(&mut now.duration, &mut before.duration);
        stretch(&mut now.duration, now.count);
    }
    for (whom, now) in &mut totals.conns {
        let before = before.conns.entry(*whom).or_default();
        step(&mut now.opened, &mut before.opened);
        step(&mut now.closed, &mut before.closed);
        for (now, before) in now.failures.iter_mut().zip(&mut before.failures) {
            step(now, before);
        }
        step(&mut now.sent_bytes, &mut before.sent_bytes);
        step(&mut now.received_bytes, &mut before.received_bytes);
        step(&mut now.retransmits, &mut before.retransmits);
        step_histogram(&mut now.connect, &mut before.connect);
        step_histogram(&mut now.age, &mut before.age);
    }
    totals
}

fn step(now: &mut u64, before: &mut u64) {
    let absolute = *now;
    *now = absolute.saturating_sub(*before);
    *before = absolute.max(*before);
}

fn step_histogram(now: &mut Histogram, before: &mut Histogram) {
    for (now, before) in now.buckets.iter_mut().zip(&mut before.buckets) {
        step(now, before);
    }
    step(&mut now.sum_ns, &mut before.sum_ns);
}

/// Scales a histogram of a sample of the calls to all of them.
fn stretch(hist: &mut Histogram, count: u64) {
    let sampled: u64 = hist.buckets.iter().sum();
    if sampled == 0 || sampled >= count {
        return;
    }
    let factor = count as f64 / sampled as f64;
    let mut carried = 0.0;
    for bucket in &mut hist.buckets {
        let exact = *bucket as f64 * factor + carried;
        *bucket = exact.round() as u64;
        carried = exact - *bucket as f64;
    }
    hist.sum_ns = (hist.sum_ns as f64 * factor) as u64;
}

/// Per-CPU counters of the kernel side, summed over CPUs.
pub fn counters(loaded: &mut Loaded, name: &str) -> Result<Vec<u64>> {
    let map: PerCpuArray<_, u64> = PerCpuArray::try_from(
        loaded
            .maps()
            .map_mut(name)
            .with_context(|| format!("the object has no map {name}"))?,
    )?;
    (0..map.len()).map(|i| Ok(map.get(&i, 0)?.iter().sum())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dip_is_not_counted_twice() {
        let (mut last, mut sum) = (0, 0);
        for absolute in [10, 25, 20, 25, 31] {
            let mut now = absolute;
            step(&mut now, &mut last);
            sum += now;
        }
        assert_eq!(sum, 31);
    }

    #[test]
    fn a_sampled_histogram_is_scaled_to_the_count() {
        let mut hist = Histogram {
            sum_ns: 300,
            ..Histogram::default()
        };
        hist.buckets[0] = 2;
        hist.buckets[5] = 1;
        stretch(&mut hist, 100);
        assert_eq!(hist.buckets.iter().sum::<u64>(), 100);
        assert_eq!(hist.buckets[0], 67);
        assert_eq!(hist.sum_ns, 10_000);
    }
}
