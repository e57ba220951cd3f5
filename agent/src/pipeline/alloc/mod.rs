//! The thread that watches the allocators of chosen processes: it attaches and detaches, which takes milliseconds each time,
//! and counts in windows.

mod calibrate;
mod ended;
mod go;
mod handle;
mod process;
mod status;

pub(super) use handle::{Allocations, WatchedProcess};
pub(super) use process::Counted;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use agent_ebpf::wire::LiveKey;
use anyhow::Result;

use self::calibrate::calibrate;
use self::ended::Ended;
use self::go::GoFiles;
use self::handle::{Order, Taken};
use self::process::{Costs, Process, Target};
use super::clock::monotonic_ns;
use crate::attribute::SlotId;
use crate::config::AllocMode;
use crate::host::{Host, MappedFile};
use crate::load::AllocSide;
use crate::signals::alloc::{Allocator, Duty};

/// How often the mappings of watched processes are looked at again: an allocator may come with a library.
const LOOK: Duration = Duration::from_secs(2);
/// The same while one of them was begun to be watched a moment ago: its loader may still map its libraries.
const LOOK_EARLY: Duration = Duration::from_millis(5);
/// Files that are remembered.
const MOST_FILES: usize = 256;
/// Windows of all processes together have at least this much time each: closing one takes 25 to 40 ms.
const BETWEEN: Duration = Duration::from_millis(100);

/// A file by inode, size and time, with what is in it.
type Files = HashMap<(u64, u64, i64), Result<Option<Arc<Allocator>>, String>>;

struct Watcher {
    side: AllocSide,
    host: Host,
    period: u32,
    limit: f64,
    slowest: f64,
    costs: Costs,
    files: Files,
    processes: BTreeMap<u32, Process>,
    /// Executables, and which of them are Go programs.
    go_files: GoFiles,
    /// Since when anything is watched, in nanoseconds of the monotonic clock.
    begun_ns: u64,
    /// Indexes of targets that nobody has.
    free: Vec<u32>,
    looked: Instant,
    ended: Ended,
}

impl Watcher {
    fn run(mut self, orders: &Receiver<Order>) {
        match calibrate(&mut self.side, &self.host, self.free.last().copied().unwrap_or(0)) {
            Ok(costs) => self.costs = costs,
            Err(error) => {
                // What a trap costs on common hardware (COST.md 1.2).
                self.costs = Costs {
                    enter: 0.4e-6,
                    leave: 1e-6,
                };
                tracing::warn!(
                    error = format!("{error:#}"),
                    "cost of probes of allocations not measured"
                );
            }
        }
        loop {
            let wake = self.next_turn();
            match orders.recv_timeout(wake.saturating_duration_since(Instant::now())) {
                Ok(Order::Follow(slot, pid, mode)) => self.follow(slot, pid, mode),
                Ok(Order::Gone(pid)) => self.gone(pid),
                Ok(Order::Record(pid, reply)) => {
                    self.ended.keep = true;
                    pid.into_iter().for_each(|pid| self.warm(pid));
                    let _ = reply.send(());
                }
                Ok(Order::Forget) => self.begun_ns = monotonic_ns(),
                Ok(Order::Take(reply)) => {
                    // Who asked may have given up.
                    let _ = reply.send(self.take());
                }
                Err(RecvTimeoutError::Timeout) => self.turn(),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn follow(&mut self, slot: SlotId, pid: u32, mode: AllocMode) {
        let Ok(cpu) = self.host.cpu_seconds(pid) else {
            return;
        };
        // One that has ended has no memory, though its parent may not have asked yet.
        if self.host.mapped_files(pid).is_ok_and(|files| files.is_empty()) {
            return;
        }
        let duty = Duty::new(self.limit, self.costs.enter, u64::from(pid));
        let process = Process::new(slot, mode, duty, cpu, Instant::now());
        self.processes.insert(pid, process);
        self.look(pid);
        self.look_for_go(pid);
    }

    fn gone(&mut self, pid: u32) {
        if let Some(mut process) = self.processes.remove(&pid) {
            // That of one that waits for its parent is still known.
            let cpu = self.host.cpu_seconds(pid).unwrap_or(process.cpu);
            self.ended.add(&mut process, &self.side, pid, self.costs, cpu);
            self.side.unclock(pid);
            if let Some(go) = &mut process.go {
                self.end_go(go);
            }
            process.detach();
            self.free
                .extend(process.targets.iter().map(|target| target.index));
            if !self.ended.keep {
                self.forget(|key| key.pid == pid);
            }
        }
    }

    /// Removes live allocations from the kernel side's table.
    fn forget(&mut self, dead: impl Fn(&LiveKey) -> bool) {
        for (key, _) in self.side.live().unwrap_or_default() {
            if dead(&key) {
                self.side.forget(key);
            }
        }
    }

    /// Looks for allocators that a process has mapped since the last time.
    fn look(&mut self, pid: u32) {
        let Ok(mapped) = self.host.mapped_files(pid) else {
            return;
        };
        for file in mapped {
            let known =
                |process: &Process| process.looked.contains_key(&file.inode) || process.stopped.is_some();
            if self.processes.get(&pid).is_none_or(known) {
                continue;
            }
            let found = self.find(pid, &file);
            let Some(process) = self.processes.get_mut(&pid) else {
                return;
            };
            let said = match found {
                Ok(None) => String::new(),
                Ok(Some(target)) => {
                    process.targets.push(target);
                    let at = process.targets.len() - 1;
                    match process.mode {
                        AllocMode::Duty => String::new(),
                        AllocMode::Full => process
                            .watch(&mut self.side, pid, self.period, at)
                            .map_or_else(|error| format!("{error:#}"), |()| String::new()),
                    }
                }
                Err(why) => why,
            };
            if !said.is_empty() {
                tracing::warn!(pid, path = file.path, reason = said, "allocator not watched");
            }
            process.looked.insert(file.inode, said);
        }
    }

    fn find(&mut self, pid: u32, mapped: &MappedFile) -> Result<Option<Target>, String> {
        let file = self
            .host
            .open_mapped(pid, mapped)
            .map_err(|error| error.to_string())?;
        let key = Host::file_state(&file).map_err(|error| error.to_string())?;
        if self.files.len() >= MOST_FILES && !self.files.contains_key(&key) {
            self.files.clear();
        }
        let read = || -> Result<Option<Arc<Allocator>>, String> { Ok(Allocator::read(&file)?.map(Arc::new)) };
        let Some(allocator) = self.files.entry(key).or_insert_with(read).clone()? else {
            return Ok(None);
        };
        if allocator.functions.is_empty() {
            let why: Vec<String> = allocator.not_understood().take(3).collect();
            return Err(format!("none of its functions is understood: {}", why.join(", ")));
        }
        let bias = allocator
            .bias(mapped.start, mapped.offset)
            .ok_or("its code is not mapped as the file says")?;
        let index = *self.free.last().ok_or("too many allocators are watched")?;
        let seen = self.side.counts(index).map_err(|error| format!("{error:#}"))?;
        self.free.pop();
        Ok(Some(Target::new(
            index,
            allocator,
            mapped.path.clone(),
            file,
            bias,
            seen,
        )))
    }

    fn next_turn(&self) -> Instant {
        let windows = self.processes.values().filter(|process| process.windowed());
        windows
            .map(|process| process.next)
            .chain([self.next_look()])
            .chain(self.next_go())
            .min()
            .unwrap_or_else(Instant::now)
    }

    fn next_look(&self) -> Instant {
        let early = self.processes.values().any(Process::early);
        self.looked + if early { LOOK_EARLY } else { LOOK }
    }

    /// Opens and closes windows that are due, and looks for new allocators.
    fn turn(&mut self) {
        let now = Instant::now();
        if now >= self.next_look() {
            self.looked = now;
            for pid in self.processes.keys().copied().collect::<Vec<_>>() {
                self.look(pid);
            }
        }
        self.turn_go(now);
        let windowed = self
            .processes
            .values()
            .filter(|process| process.windowed())
            .count();
        let due = self
            .processes
            .iter_mut()
            .filter(|(_, process)| process.windowed() && process.next <= now)
            .min_by_key(|(_, process)| (!process.open, process.next));
        let Some((&pid, process)) = due else { return };
        let host = &self.host;
        // A process that is gone used none.
        let cpu = || host.cpu_seconds(pid).unwrap_or(0.0);
        let done = if process.open {
            let done = process.close(&mut self.side, cpu);
            process.paid(cpu(), windowed);
            let pause = process.duty.pause().max(BETWEEN * windowed as u32 / 2);
            process.next = Instant::now() + pause;
            done
        } else if !process.paid(cpu(), windowed) {
            process.next = Instant::now() + process.duty.pause();
            Ok(())
        } else {
            let done = process.open(&mut self.side, pid, self.period, cpu);
            process.next = Instant::now() + process.duty.window();
            done
        };
        if let Err(error) = done {
            process.detach();
            process.stopped = Some(format!("{error:#}"));
        }
    }

    fn take(&mut self) -> Taken {
        let mut taken = Taken {
            live: self.side.live().unwrap_or_else(|error| {
                tracing::warn!(error = format!("{error:#}"), "live allocations");
                Vec::new()
            }),
            counted: std::mem::take(&mut self.ended.counted),
            go: self.take_go(),
            watched: self.ended.watched.clone(),
        };
        let mut stopped = Vec::new();
        for (pid, process) in &mut self.processes {
            let cpu = self.host.cpu_seconds(*pid).unwrap_or(process.cpu);
            let counted = process
                .take(&self.side, *pid, self.costs, cpu)
                .unwrap_or_default();
            let sum = taken.counted.entry(process.slot).or_default();
            sum.bytes += counted.bytes;
            sum.objects += counted.objects;
            if process.mode == AllocMode::Full
                && process.stopped.is_none()
                && process.slowdown_least > self.slowest
            {
                let why = format!(
                    "it ran at least {:.0} times slower than without, more than --alloc-slowdown {}",
                    process.slowdown_least, self.slowest
                );
                tracing::warn!(pid, reason = why, "allocations are watched no more");
                process.detach();
                process.stopped = Some(why);
                stopped.push(*pid);
            }
            taken.watched.push(process.status(self.host.memory_limit(*pid)));
        }
        stopped.iter().for_each(|pid| self.side.unclock(*pid));
        if !stopped.is_empty() {
            self.forget(|key| stopped.contains(&key.pid));
        }
        taken
    }
}
