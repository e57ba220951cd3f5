//! Go programs: what their runtime's own heap profile says, read in turn, at a bounded cost.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::super::clock::monotonic_ns;
use super::Watcher;
use super::process::{Counted, Process};
use crate::attribute::{PythonStack, SlotId, StackDetail, StackKind, StackSample, UnwindResult};
use crate::host::{FileId, Host};
use crate::signals::alloc::{Lives, age_class};
use crate::signals::go_heap::{Amount, Layout, News, Refused, Since};

/// A profile is read no more often.
const EVERY: Duration = Duration::from_secs(1);
/// The same in a recording: its last part is lost with the process.
const EVERY_RECORDED: Duration = Duration::from_millis(100);
/// The same of a program that is about to begin.
const EVERY_EARLY: Duration = Duration::from_millis(20);
/// Time from one reading to the next, for each of all programs, in times of what a reading takes: half a per cent of a CPU.
const REST: u32 = 200;
/// The same in a recording: a twentieth of a CPU.
const REST_RECORDED: u32 = 20;
/// Time at most for readings that a tick waits for.
const LAST: Duration = Duration::from_secs(1);
/// Stacks that are told of a program, the largest ones.
const MOST_STACKS: usize = 4096;
/// Executables that are remembered.
const MOST_FILES: usize = 256;

/// What is known of an executable.
#[derive(Clone, Debug)]
enum Found {
    /// Where its profile is.
    Layout(Layout),
    /// Why nobody knows.
    Refused(String),
    NotGo,
}

/// What is known of executables.
#[derive(Default)]
pub(super) struct GoFiles(HashMap<FileId, Found>);

impl GoFiles {
    fn find(&mut self, host: &Host, pid: u32) -> Option<Found> {
        let id = host.executable(pid).ok()?.id();
        if let Some(known) = self.0.get(&id) {
            return Some(known.clone());
        }
        let found = match Layout::find(host, pid) {
            Ok(layout) => Found::Layout(layout),
            Err(Refused::NotGo) => Found::NotGo,
            Err(Refused::Io(_)) => return None,
            Err(why) => Found::Refused(why.to_string()),
        };
        if self.0.len() >= MOST_FILES {
            self.0.clear();
        }
        self.0.insert(id, found.clone());
        Some(found)
    }
}

/// A Go program.
pub(super) struct GoProcess {
    found: Found,
    since: Since,
    /// What was read: Go's version, the profile's rate; empty until then.
    pub(super) said: String,
    /// Why nothing is read.
    pub(super) refused: Option<String>,
    /// When it may be read next.
    next: Instant,
    /// It is to be read as soon as it may.
    wanted: bool,
    news: GoNews,
}

/// What Go programs say of themselves.
#[derive(Clone, Default)]
pub(in super::super) struct GoNews {
    /// What was allocated since the last tick, by slot.
    pub(in super::super) counted: HashMap<SlotId, Counted>,
    /// The same by stack.
    pub(in super::super) allocated: Vec<StackSample>,
    /// Bytes in use, by slot.
    pub(in super::super) in_use_bytes: HashMap<SlotId, f64>,
    /// The same by stack and age.
    pub(in super::super) in_use: Vec<StackSample>,
}

impl GoNews {
    /// Takes what a reading of one process says.
    fn read(&mut self, news: News, slot: SlotId, pid: u32) {
        let sample = |kind, stack: Vec<u64>, detail, weight| StackSample {
            slot,
            pid,
            tid: pid,
            kind,
            detail,
            weight,
            own: 0.0,
            user: stack,
            interrupted: 0,
            unfolded: true,
            kernel: Vec::new(),
            python: PythonStack::default(),
            unwind: UnwindResult::Complete,
        };
        let (allocated, all) = largest(news.allocated);
        let counted = self.counted.entry(slot).or_default();
        counted.bytes += all.bytes;
        counted.objects += all.objects;
        for (stack, amount) in allocated {
            let objects = sample(
                StackKind::AllocObjects,
                stack.clone(),
                StackDetail::None,
                amount.objects,
            );
            self.allocated.push(objects);
            self.allocated
                .push(sample(StackKind::Alloc, stack, StackDetail::None, amount.bytes));
        }
        let mut in_use: HashMap<(Vec<u64>, u8), Lives> = HashMap::new();
        let mut bytes = 0.0;
        for (stack, age_ns, amount) in news.in_use {
            let lives = in_use.entry((stack, age_class(age_ns))).or_default();
            lives.add(amount.bytes, amount.objects, age_ns);
            bytes += amount.bytes;
        }
        self.in_use_bytes = HashMap::from([(slot, bytes)]);
        let mut in_use: Vec<_> = in_use.into_iter().collect();
        in_use.sort_by(|(_, a), (_, b)| b.bytes.total_cmp(&a.bytes));
        in_use.truncate(MOST_STACKS);
        let live = in_use.into_iter().map(|((stack, class), lives)| {
            sample(StackKind::AllocLive, stack, lives.detail(class), lives.bytes)
        });
        self.in_use = live.collect();
    }

    /// Adds another's: what was allocated is moved, what is in use stays there, too.
    pub(super) fn take(&mut self, other: &mut Self) {
        for (slot, counted) in other.counted.drain() {
            let sum = self.counted.entry(slot).or_default();
            sum.bytes += counted.bytes;
            sum.objects += counted.objects;
        }
        self.allocated.append(&mut other.allocated);
        for (slot, bytes) in &other.in_use_bytes {
            *self.in_use_bytes.entry(*slot).or_default() += bytes;
        }
        self.in_use.extend_from_slice(&other.in_use);
    }
}

/// Sums what belongs together; the largest of it, and the sum of all.
fn largest(amounts: Vec<(Vec<u64>, Amount)>) -> (Vec<(Vec<u64>, Amount)>, Amount) {
    let mut sums: HashMap<Vec<u64>, Amount> = HashMap::new();
    let mut all = Amount::default();
    for (key, amount) in amounts {
        for sum in [sums.entry(key).or_default(), &mut all] {
            sum.objects += amount.objects;
            sum.bytes += amount.bytes;
        }
    }
    let mut sums: Vec<_> = sums.into_iter().collect();
    sums.sort_by(|(_, a), (_, b)| b.bytes.total_cmp(&a.bytes));
    sums.truncate(MOST_STACKS);
    (sums, all)
}

impl Watcher {
    /// A process is watched from now on: a Go program begins to be read.
    pub(super) fn look_for_go(&mut self, pid: u32) {
        let Some(process) = self.processes.get(&pid) else {
            return;
        };
        // Go programs do not fork: what has the program of another is about to become something else, and has its memory.
        let slot = process.slot;
        let forked = |(other, process): (&u32, &Process)| *other != pid && process.slot == slot;
        if self.processes.iter().any(forked) {
            return;
        }
        let Some(found) = self.go_files.find(&self.host, pid) else {
            return;
        };
        let refused = match &found {
            Found::NotGo => return,
            Found::Refused(why) => Some(why.clone()),
            Found::Layout(_) => None,
        };
        if let Some(process) = self.processes.get_mut(&pid) {
            process.go = Some(GoProcess {
                found,
                since: Since::new(self.begun_ns),
                said: String::new(),
                refused,
                next: Instant::now(),
                wanted: true,
                news: GoNews::default(),
            });
        }
    }

    /// Programs to be read, and when.
    fn due(&self) -> impl Iterator<Item = (Instant, u32)> {
        self.processes.iter().filter_map(|(pid, process)| {
            let go = process.go.as_ref()?;
            (go.wanted && matches!(go.found, Found::Layout(_))).then_some((go.next, *pid))
        })
    }

    /// When a program is read next.
    pub(super) fn next_go(&self) -> Option<Instant> {
        self.due().map(|(next, _)| next).min()
    }

    /// Reads one program whose turn it is.
    pub(super) fn turn_go(&mut self, now: Instant) {
        let due = self.due().min();
        if let Some((_, pid)) = due.filter(|(next, _)| *next <= now) {
            self.read_go(pid);
        }
    }

    fn read_go(&mut self, pid: u32) {
        let all = self
            .processes
            .values()
            .filter(|process| process.go.is_some())
            .count();
        let recorded = self.ended.keep;
        let Some(process) = self.processes.get_mut(&pid) else {
            return;
        };
        let slot = process.slot;
        let Some(go) = &mut process.go else { return };
        let Found::Layout(layout) = &go.found else {
            return;
        };
        let began = Instant::now();
        let result = layout.read(&self.host, pid);
        go.wanted = recorded;
        let (every, rest) = if recorded {
            (EVERY_RECORDED, REST_RECORDED)
        } else {
            (EVERY, REST)
        };
        let rest = began
            .elapsed()
            .saturating_mul(rest * u32::try_from(all).unwrap_or(1));
        go.next = began + every.max(rest);
        match result {
            Ok(heap) => {
                go.refused = None;
                let part = if heap.complete {
                    ""
                } else {
                    ", of which only a part is read"
                };
                go.said = format!(
                    "{} (runtime profile, a sample for each {}{part})",
                    heap.version,
                    period(heap.rate)
                );
                let news = go.since.read(&heap, monotonic_ns());
                go.news.read(news, slot, pid);
            }
            Err(Refused::Early) => {
                go.wanted = true;
                go.next = began + EVERY_EARLY;
            }
            // It is about to end, or has.
            Err(Refused::Io(_)) => {}
            Err(why) => {
                let why = why.to_string();
                if go.refused.as_ref() != Some(&why) {
                    tracing::warn!(pid, reason = why, "heap profile of a Go program not read");
                    go.refused = Some(why);
                }
            }
        }
    }

    /// What Go programs said since the last tick. All are read anew after it; in a recording at once, this may be its end.
    pub(super) fn take_go(&mut self) -> GoNews {
        let began = Instant::now();
        if self.ended.keep {
            let mut due: Vec<(Instant, u32)> = self.due().collect();
            due.sort_unstable();
            for (_, pid) in due {
                if began.elapsed() < LAST {
                    self.read_go(pid);
                }
            }
        }
        let mut news = GoNews::default();
        news.take(&mut self.ended.go);
        for process in self.processes.values_mut() {
            if let Some(go) = &mut process.go {
                news.take(&mut go.news);
                go.wanted = true;
            }
        }
        news
    }

    /// A process ended: what it had allocated counts. In a recording what it had in use stays.
    pub(super) fn end_go(&mut self, go: &mut GoProcess) {
        if !self.ended.keep {
            go.news.in_use.clear();
            go.news.in_use_bytes.clear();
        }
        self.ended.go.take(&mut go.news);
    }
}

/// Bytes as people would say them.
fn period(bytes: u64) -> String {
    match bytes {
        bytes if bytes >= 1024 && bytes % 1024 == 0 => format!("{} KiB", bytes / 1024),
        bytes => format!("{bytes} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signals::alloc::living;

    #[test]
    fn what_is_in_use_has_objects_and_ages() {
        const SECOND: u64 = 1_000_000_000;
        let of = |stack, age_ns, objects, bytes| (vec![stack], age_ns, Amount { objects, bytes });
        let news = News {
            allocated: Vec::new(),
            in_use: vec![
                of(1, 7 * SECOND, 1.0, 100.0),
                of(2, 0, 50.0, 50.0),
                of(1, 5 * SECOND, 3.0, 300.0),
                of(1, 8 * SECOND, 2.0, 20.0),
            ],
        };
        let mut told = GoNews::default();
        told.read(news, SlotId(5), 7);
        assert_eq!(told.in_use_bytes, HashMap::from([(SlotId(5), 470.0)]));
        let found: Vec<_> = told
            .in_use
            .iter()
            .map(|sample| (sample.user[0], sample.detail, sample.weight))
            .collect();
        assert_eq!(
            found,
            [
                (1, living(3, 400, [500, 550, 700]), 400.0),
                (2, living(0, 5_000, [0; 3]), 50.0),
                (1, living(4, 200, [800; 3]), 20.0)
            ]
        );
    }
}
