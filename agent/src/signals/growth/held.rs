//! Which samples of growth are still there.

use std::collections::HashMap;

use super::Touched;
use crate::decode::model::{Range, SlotId};
use crate::host::Host;

/// Samples that are kept, of all processes and of one.
const MAX: usize = 32_768;
const MAX_OF_ONE: usize = 4096;
/// Mappings of huge pages begin at multiples of this, wherever the kernel found a place.
const HUGE: u64 = 2 << 20;

/// Samples of growth that are still there, each with what the caller wants to know it by.
#[derive(Debug)]
pub struct Held<T> {
    processes: HashMap<u32, Process<T>>,
    len: usize,
    random: u64,
}

#[derive(Debug)]
struct Process<T> {
    slot: SlotId,
    /// One of how many new samples is kept, so that all weigh about the same.
    every: u64,
    samples: Vec<Sample<T>>,
}

#[derive(Debug)]
struct Sample<T> {
    address: u64,
    /// Where it may be as well, after a move.
    or: Option<u64>,
    at_ns: u64,
    /// When it was first found missing.
    missing_ns: Option<u64>,
    bytes: f64,
    what: T,
}

impl<T> Default for Held<T> {
    fn default() -> Self {
        Self {
            processes: HashMap::new(),
            len: 0,
            random: 0x9e37_79b9_7f4a_7c15,
        }
    }
}

impl<T> Held<T> {
    /// A sample that stands for so many bytes.
    pub fn add(&mut self, touched: &Touched, bytes: f64, what: T) {
        let process = self.processes.entry(touched.pid).or_insert_with(|| Process {
            slot: touched.slot,
            every: 1,
            samples: Vec::new(),
        });
        if process.slot != touched.slot {
            // It became another program.
            self.len -= process.samples.len();
            process.samples.clear();
            (process.slot, process.every) = (touched.slot, 1);
        }
        if !next(&mut self.random).is_multiple_of(process.every) {
            return;
        }
        process.samples.push(Sample {
            address: touched.address & !4095,
            or: None,
            at_ns: touched.at_ns,
            missing_ns: None,
            bytes: bytes * process.every as f64,
            what,
        });
        self.len += 1;
        if process.samples.len() > MAX_OF_ONE {
            self.thin(touched.pid);
        } else if self.len > MAX {
            let most = self
                .processes
                .iter()
                .max_by_key(|(_, process)| process.samples.len());
            if let Some(pid) = most.map(|(pid, _)| *pid) {
                self.thin(pid);
            }
        }
    }

    /// Gives up half of a process's samples, at random; the others stand for twice as much.
    fn thin(&mut self, pid: u32) {
        let Some(process) = self.processes.get_mut(&pid) else {
            return;
        };
        let before = process.samples.len();
        let random = &mut self.random;
        process.every *= 2;
        process.samples.retain_mut(|sample| {
            sample.bytes *= 2.0;
            next(random).is_multiple_of(2)
        });
        self.len -= before - process.samples.len();
    }

    /// A process ended.
    pub fn exited(&mut self, pid: u32) {
        if let Some(process) = self.processes.remove(&pid) {
            self.len -= process.samples.len();
        }
    }

    /// Ranges were given back or moved, the oldest first.
    pub fn apply(&mut self, ranges: &[Range]) {
        for range in ranges {
            let Some(process) = self.processes.get_mut(&range.pid) else {
                continue;
            };
            let within =
                |address: u64, at_ns: u64| (range.start..range.end).contains(&address) && at_ns < range.at_ns;
            let Some(to) = range.to else {
                let before = process.samples.len();
                process
                    .samples
                    .retain(|sample| !within(sample.address, sample.at_ns));
                self.len -= before - process.samples.len();
                continue;
            };
            for sample in &mut process.samples {
                // Where it is of two places may not have been looked up yet.
                let of = [Some(sample.address), sample.or];
                let Some(at) = of.into_iter().flatten().find(|at| within(*at, sample.at_ns)) else {
                    continue;
                };
                let offset = at - range.start;
                sample.address = to.saturating_add(offset);
                sample.missing_ns = None;
                sample.or = to
                    .checked_next_multiple_of(HUGE)
                    .map(|to| to.saturating_add(offset));
            }
        }
    }

    /// Forgets what is not there any more. `known_ns`: ranges that were noted until then have been applied. What is missing `now_ns`
    /// may have been moved since, so it is kept until that is known, too.
    pub fn check(&mut self, host: &Host, known_ns: u64, now_ns: u64) {
        self.processes.retain(|pid, process| {
            let Ok(pages) = host.pages(*pid) else { return false };
            process.samples.retain_mut(|sample| {
                let at = [Some(sample.address), sample.or];
                if let Some(at) = at.into_iter().flatten().find(|at| pages.holds(*at)) {
                    (sample.address, sample.or, sample.missing_ns) = (at, None, None);
                    return true;
                }
                *sample.missing_ns.get_or_insert(now_ns) >= known_ns
            });
            if process.samples.len() < MAX_OF_ONE / 4 {
                process.every = (process.every / 2).max(1);
            }
            !process.samples.is_empty()
        });
        self.len = self.processes.values().map(|process| process.samples.len()).sum();
    }

    /// What is there, for how many bytes each sample stands, and when they came (by the monotonic clock).
    pub fn all(&self) -> impl Iterator<Item = (&T, f64, u64)> {
        self.processes
            .values()
            .flat_map(|process| &process.samples)
            .map(|sample| (&sample.what, sample.bytes, sample.at_ns))
    }
}

/// The next of a row of numbers that look random (Marsaglia's xorshift); its upper half.
fn next(random: &mut u64) -> u64 {
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    *random >> 32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touched(pid: u32, address: u64, at_ns: u64) -> Touched {
        Touched {
            index: 0,
            slot: SlotId(2),
            pid,
            at_ns,
            address,
        }
    }

    fn there(held: &Held<&'static str>) -> Vec<&'static str> {
        let mut all: Vec<&str> = held.all().map(|(what, ..)| *what).collect();
        all.sort_unstable();
        all
    }

    fn range(start: u64, end: u64, to: Option<u64>, at_ns: u64) -> Range {
        Range {
            pid: 1,
            start,
            end,
            to,
            at_ns,
        }
    }

    #[test]
    fn what_is_given_back_is_gone_and_what_came_after_is_not() {
        let mut held = Held::default();
        held.add(&touched(1, 0x1_0fff, 10), 1.0, "old");
        held.add(&touched(1, 0x1_0000, 30), 1.0, "new");
        held.add(&touched(1, 0x3_0000, 10), 1.0, "beside");
        held.add(&touched(2, 0x1_0000, 10), 1.0, "another process");
        held.apply(&[range(0x1_0000, 0x2_0000, None, 20)]);
        assert_eq!(there(&held), ["another process", "beside", "new"]);
        // It moves, and is then given back where it is now; what was there before it is gone, too.
        held.apply(&[
            range(0x3_0000, 0x4_0000, Some(0x8_0000), 40),
            range(0x8_0000, 0x9_0000, None, 50),
        ]);
        assert_eq!(there(&held), ["another process", "new"]);
        held.exited(2);
        assert_eq!((there(&held), held.len), (vec!["new"], 1));
        // A process that became another program.
        let mut other = touched(1, 0x5_0000, 60);
        other.slot = SlotId(3);
        held.add(&other, 1.0, "other program");
        assert_eq!((there(&held), held.len), (vec!["other program"], 1));
    }

    /// The agent may look at the pages before it has heard of the last move.
    #[test]
    fn what_moves_while_it_is_looked_for_is_still_there() {
        let there_now = vec![1u8; 4096];
        let (start, pid) = (there_now.as_ptr() as u64, std::process::id());
        let host = Host::new("/");
        let mut held = Held::default();
        held.add(&touched(pid, 0x1_0000, 1), 1.0, "moved");
        held.check(&host, 5, 10);
        held.apply(&[Range {
            pid,
            ..range(0x1_0000, 0x1_1000, Some(start & !4095), 8)
        }]);
        held.check(&host, 11, 20);
        assert_eq!(there(&held), ["moved"]);
    }

    /// Of two places where a sample may be after a move, nobody has looked up which, and it moves on from the second.
    #[test]
    fn what_moves_again_before_it_is_looked_for_is_followed_from_either_place() {
        let there_now = vec![1u8; 4096];
        let (start, pid) = (there_now.as_ptr() as u64, std::process::id());
        let mut held = Held::default();
        held.add(&touched(pid, 0x1_0000, 1), 1.0, "moved twice");
        let moves = [
            (0x1_0000, 0x30_1000, 5),
            (0x30_1000u64.next_multiple_of(HUGE), start & !4095, 8),
        ];
        held.apply(&moves.map(|(from, to, at)| Range {
            pid,
            ..range(from, from + 0x1000, Some(to), at)
        }));
        held.check(&Host::new("/"), 20, 10);
        assert_eq!(there(&held), ["moved twice"]);
    }

    #[test]
    fn the_list_is_bounded_and_stays_without_bias() {
        let mut held = Held::default();
        let all = 40_000u64;
        for at in 0..all {
            held.add(
                &touched(1, at << 12, at),
                1.0,
                if at % 4 == 0 { "quarter" } else { "rest" },
            );
        }
        assert!(held.len <= MAX_OF_ONE);
        let sum = |wanted: &str| -> f64 {
            held.all()
                .filter(|(what, ..)| **what == wanted)
                .map(|(_, bytes, _)| bytes)
                .sum()
        };
        // About 2,500 samples of 16 each: five standard errors.
        assert!((sum("quarter") - 10_000.0).abs() < 2000.0, "{}", sum("quarter"));
        assert!((sum("rest") - 30_000.0).abs() < 3500.0, "{}", sum("rest"));
        for pid in 2..20 {
            for at in 0..4000u64 {
                held.add(&touched(pid, at << 12, at), 1.0, "many");
            }
        }
        assert!(held.len <= MAX);
        assert_eq!(held.len, held.all().count());
    }

    #[test]
    fn pages_of_this_process_are_there_until_they_are_given_back() {
        let page = 4096;
        let flags = (
            rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE,
            rustix::mm::MapFlags::PRIVATE,
        );
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let start =
            unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), 4 * page, flags.0, flags.1) }.unwrap();
        for at in [0, 1] {
            // SAFETY: inside of the mapping.
            unsafe { start.cast::<u8>().add(at * page).write_volatile(1) };
        }
        let pid = std::process::id();
        let host = Host::new("/");
        let mut held = Held::default();
        for (at, name) in [(0, "first"), (1, "second"), (2, "never touched")] {
            held.add(&touched(pid, start as u64 + (at * page) as u64 + 7, 1), 1.0, name);
        }
        held.check(&host, 1, 0);
        assert_eq!(there(&held), ["first", "second"]);
        // SAFETY: the page is of no use to anybody.
        unsafe { rustix::mm::madvise(start, page, rustix::mm::Advice::LinuxDontNeed) }.unwrap();
        held.check(&host, 20, 30);
        assert_eq!(there(&held), ["first", "second"], "it may have moved before 30");
        held.check(&host, 30, 40);
        assert_eq!(there(&held), ["first", "second"]);
        held.check(&host, 31, 40);
        assert_eq!(there(&held), ["second"]);
        // SAFETY: the mapping is ours.
        unsafe { rustix::mm::munmap(start, 4 * page) }.unwrap();
        held.check(&host, 50, 40);
        assert_eq!(held.len, 0);
    }
}
