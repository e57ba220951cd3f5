//! Copies of the memory maps of processes, kept so that samples of a process that is gone can still be resolved.

mod gone;

use std::collections::HashMap;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::lru::Lru;
use super::maps::{self, Mapping};
use super::module::ModuleId;
use super::perf_map::PerfMap;
use super::{Outcome, SlotId, SymbolizerConfig};

/// A process image: the slot changes with `exec`, the id with `fork`.
pub(super) type ProcessKey = (SlotId, u32);

/// Largest `/proc/PID/maps` that is read, in bytes.
const MAX_MAPS: u64 = 32 << 20;
/// The least time between two reads caused by an address that the copy does not cover (JIT runtimes have many).
const REREAD_EVERY: Duration = Duration::from_millis(250);
/// In place of the start time of a process that was gone before it was known.
const GONE: u64 = 0;

/// What is known of one process image.
#[derive(Debug)]
pub(super) struct Process {
    /// Changes when the mappings change; unique over all processes.
    pub(super) generation: u64,
    pub(super) mappings: Vec<Mapping>,
    /// Path of the executable as `/proc/PID/exe` has it.
    pub(super) executable: Option<Arc<str>>,
    /// The file behind the mapping that starts at an address.
    pub(super) modules: HashMap<u64, Result<ModuleId, Outcome>>,
    pub(super) perf_map: PerfMap,
    pub(super) alive: bool,
    /// Nobody read its map: its mappings came with its samples.
    captured: bool,
    start_time: u64,
    /// When its map was read first.
    met: Instant,
    read: Instant,
    batch: u64,
}

impl Process {
    fn new(
        generation: u64,
        mappings: Vec<Mapping>,
        executable: Option<Arc<str>>,
        start_time: u64,
        batch: u64,
    ) -> Self {
        Self {
            generation,
            mappings,
            executable,
            modules: HashMap::new(),
            perf_map: PerfMap::default(),
            alive: start_time != GONE,
            captured: false,
            start_time,
            met: Instant::now(),
            read: Instant::now(),
            batch,
        }
    }
}

/// The processes seen last.
#[derive(Debug)]
pub(super) struct Processes {
    known: Lru<ProcessKey, Process>,
    /// The process of each slot that was read last.
    of_slot: HashMap<SlotId, u32>,
    next_generation: u64,
    pub(super) maps_read: u64,
}

impl Processes {
    pub(super) fn new(config: &SymbolizerConfig) -> Self {
        Self {
            known: Lru::new(config.max_processes),
            of_slot: HashMap::new(),
            next_generation: 0,
            maps_read: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.known.len()
    }

    /// The process, checked once a batch: is it still the one whose map was copied, and is the copy recent.
    pub(super) fn get(
        &mut self,
        config: &SymbolizerConfig,
        key: ProcessKey,
        batch: u64,
    ) -> Option<&mut Process> {
        let directory = config.proc.join(key.1.to_string());
        if !self.known.contains(&key) {
            let process = self.read(&directory, batch);
            let process = process.or_else(|| self.seen(config, key, batch))?;
            let kin = self.of_slot.get(&key.0).copied();
            // One that lives stays: what it forked may be another program by now, whose map was read in place of its own.
            if !kin.is_some_and(|kin| self.known.get(&(key.0, kin)).is_some_and(|kin| kin.alive)) {
                self.of_slot.insert(key.0, key.1);
            }
            self.insert(key, process);
            return self.known.get(&key);
        }
        let process = self.known.get(&key)?;
        if process.batch != batch {
            process.batch = batch;
            if process.start_time == GONE {
                self.look_for(config, key);
                return self.known.get(&key);
            }
            process.alive = start_time(&directory) == Some(process.start_time);
            if process.alive && process.read.elapsed() >= config.maps_max_age {
                self.reread(config, key);
            }
        }
        self.known.get(&key)
    }

    fn insert(&mut self, key: ProcessKey, process: Process) {
        for ((slot, pid), _) in self.known.insert(key, process) {
            if self.of_slot.get(&slot) == Some(&pid) && (slot, pid) != key {
                self.of_slot.remove(&slot);
            }
        }
    }

    /// The process itself, or one of its slot in place of it: a server's short-lived process may be gone before anybody looked
    /// at it, but what it was forked from has the same mappings. An exec begins another slot; where that came before its map was
    /// read, the map does not have where it ran.
    pub(super) fn itself_or_kin(
        &mut self,
        config: &SymbolizerConfig,
        key: ProcessKey,
        user: &[u64],
        batch: u64,
    ) -> ProcessKey {
        let covers = |process: &Process, address| maps::find(&process.mappings, address).is_some();
        let read = self.get(config, key, batch);
        let innermost = user.first();
        if read.is_some_and(|process| innermost.is_none_or(|address| covers(process, *address))) {
            return key;
        }
        let Some(kin) = self.of_slot.get(&key.0).map(|kin| (key.0, *kin)) else {
            return key;
        };
        // Where the map of the process itself is known, it may have been that of the program before this one; or memory is new.
        let its_own = self.known.contains(&key)
            && !self
                .known
                .get(&kin)
                .is_some_and(|kin| user.iter().all(|address| covers(kin, *address)));
        if its_own { key } else { kin }
    }

    /// Reads the map again for an address that the copy does not cover; true when it changed. Where the process is gone or its map
    /// was read just now, another copy may tell: a program that begins has libraries some milliseconds later.
    pub(super) fn reread_for_address(&mut self, config: &SymbolizerConfig, key: ProcessKey) -> bool {
        match self.known.get(&key) {
            Some(process) if process.alive && process.read.elapsed() >= REREAD_EVERY => {
                self.reread(config, key) || self.complete(config, key)
            }
            Some(_) => self.complete(config, key),
            None => false,
        }
    }

    fn reread(&mut self, config: &SymbolizerConfig, key: ProcessKey) -> bool {
        let fresh = self.read(&config.proc.join(key.1.to_string()), 0);
        let Some(process) = self.known.get(&key) else {
            return false;
        };
        match fresh {
            Some(fresh) if fresh.start_time == process.start_time => {
                process.read = fresh.read;
                if fresh.mappings == process.mappings {
                    return false;
                }
                process.generation = fresh.generation;
                process.mappings = fresh.mappings;
                process.executable = fresh.executable;
                process.modules.clear();
                true
            }
            _ => {
                process.alive = false;
                false
            }
        }
    }

    fn read(&mut self, directory: &Path, batch: u64) -> Option<Process> {
        let before = start_time(directory)?;
        let mut text = Vec::new();
        let maps = std::fs::File::open(directory.join("maps")).ok()?;
        maps.take(MAX_MAPS).read_to_end(&mut text).ok()?;
        self.maps_read += 1;
        let mappings = maps::parse(&String::from_utf8_lossy(&text));
        let executable = std::fs::read_link(directory.join("exe")).ok().map(|path| {
            let path = path.to_string_lossy();
            Arc::from(path.strip_suffix(" (deleted)").unwrap_or(&path))
        });
        // A zombie has no mappings; an id given to another process in between has another start time.
        if mappings.is_empty() || start_time(directory) != Some(before) {
            return None;
        }
        self.next_generation += 1;
        Some(Process::new(
            self.next_generation,
            mappings,
            executable,
            before,
            batch,
        ))
    }
}

/// Field 22 of `/proc/PID/stat`, in clock ticks since boot; field 2 is a name in brackets that may hold anything. A zombie (field 3)
/// has nothing left that could be looked at, and is as one that is gone.
fn start_time(directory: &Path) -> Option<u64> {
    let stat = std::fs::read(directory.join("stat")).ok()?;
    let stat = String::from_utf8_lossy(&stat);
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn write(proc: &Path, pid: u32, start: u64, maps: &str) {
        let dir = proc.join(pid.to_string());
        std::fs::create_dir_all(&dir).unwrap();
        let stat = format!("{pid} (a) b) S{} {start} 0 0", " 0".repeat(18));
        std::fs::write(dir.join("stat"), stat).unwrap();
        std::fs::write(dir.join("maps"), maps).unwrap();
    }

    pub(super) const ONE: &str = "1000-2000 r-xp 00000000 fe:01 1 /a\n";
    pub(super) const TWO: &str = "1000-2000 r-xp 00000000 fe:01 1 /a\n5000-6000 r-xp 00000000 fe:01 2 /b\n";

    pub(super) fn config(proc: &Path) -> SymbolizerConfig {
        SymbolizerConfig {
            proc: proc.into(),
            maps_max_age: Duration::ZERO,
            ..SymbolizerConfig::default()
        }
    }

    #[test]
    fn the_copy_outlives_the_process_and_a_reused_id() {
        let proc = tempfile::tempdir().unwrap();
        let config = config(proc.path());
        let mut processes = Processes::new(&config);
        let key = (SlotId(1), 40);
        write(proc.path(), 40, 700, ONE);
        let first = processes.get(&config, key, 1).unwrap().generation;
        write(proc.path(), 40, 701, TWO);
        let process = processes.get(&config, key, 2).unwrap();
        assert_eq!(
            (process.alive, process.mappings.len(), process.generation),
            (false, 1, first)
        );
        std::fs::remove_dir_all(proc.path().join("40")).unwrap();
        assert_eq!(processes.get(&config, key, 3).unwrap().mappings.len(), 1);
        assert!(processes.get(&config, (SlotId(2), 40), 3).is_none());
    }

    #[test]
    fn a_process_that_is_gone_is_as_it_was_when_its_tables_were_made() {
        let proc = tempfile::tempdir().unwrap();
        let config = config(proc.path());
        let mut processes = Processes::new(&config);
        let key = (SlotId(1), 40);
        assert!(processes.get(&config, key, 1).is_none());
        config.seen.keep(key, &maps::parse(TWO));
        for batch in [2, 3] {
            let process = processes.get(&config, key, batch).unwrap();
            assert_eq!((process.alive, process.mappings.len()), (false, 2));
            assert_eq!(process.executable.as_deref(), Some("/a"));
        }
        // Its id belongs to another process.
        write(proc.path(), 40, 900, ONE);
        assert_eq!(processes.get(&config, key, 4).unwrap().mappings.len(), 2);
    }

    #[test]
    fn a_map_that_was_copied_too_early_is_completed() {
        let proc = tempfile::tempdir().unwrap();
        let config = config(proc.path());
        let mut processes = Processes::new(&config);
        let key = (SlotId(1), 40);
        write(proc.path(), 40, 700, ONE);
        let first = processes.get(&config, key, 1).unwrap().generation;
        assert!(!processes.reread_for_address(&config, key));
        config.seen.keep(key, &maps::parse(TWO));
        std::fs::remove_dir_all(proc.path().join("40")).unwrap();
        assert_eq!(processes.get(&config, key, 2).unwrap().mappings.len(), 1);
        assert!(processes.reread_for_address(&config, key));
        let process = processes.get(&config, key, 2).unwrap();
        assert!(!process.alive && process.generation != first);
        assert_eq!(process.mappings, maps::parse(TWO));
        assert!(!processes.reread_for_address(&config, key));
    }

    #[test]
    fn a_process_that_nobody_saw_is_like_one_of_its_slot() {
        let proc = tempfile::tempdir().unwrap();
        let config = config(proc.path());
        let mut processes = Processes::new(&config);
        write(proc.path(), 40, 700, ONE);
        write(proc.path(), 50, 700, TWO);
        processes.get(&config, (SlotId(1), 40), 1).unwrap();
        processes.get(&config, (SlotId(2), 50), 1).unwrap();
        let mut kin = |slot, pid| processes.itself_or_kin(&config, (SlotId(slot), pid), &[], 2);
        assert_eq!(kin(1, 41), (SlotId(1), 40));
        assert_eq!(kin(1, 50), (SlotId(1), 50));
        assert_eq!(kin(2, 51), (SlotId(2), 50));
        assert_eq!(kin(3, 51), (SlotId(3), 51));
    }

    #[test]
    fn what_ran_before_an_exec_is_like_what_it_was_forked_from() {
        let proc = tempfile::tempdir().unwrap();
        let config = config(proc.path());
        let mut processes = Processes::new(&config);
        write(proc.path(), 40, 700, TWO);
        write(proc.path(), 41, 701, "8000-9000 r-xp 00000000 fe:01 3 /c\n");
        processes.get(&config, (SlotId(1), 40), 1).unwrap();
        let mut of = |user: &[u64]| processes.itself_or_kin(&config, (SlotId(1), 41), user, 2).1;
        assert_eq!(of(&[0x1500, 0x5500]), 40);
        assert_eq!(of(&[0x8500]), 41);
        // Neither has it all.
        assert_eq!(of(&[0x1500, 0x8500]), 41);
        assert_eq!(of(&[0x7500]), 41);
    }

    #[test]
    fn an_old_copy_is_read_again_and_the_generation_tells() {
        let proc = tempfile::tempdir().unwrap();
        let config = config(proc.path());
        let mut processes = Processes::new(&config);
        let key = (SlotId(1), 40);
        write(proc.path(), 40, 700, ONE);
        let first = processes.get(&config, key, 1).unwrap().generation;
        assert_eq!(processes.get(&config, key, 2).unwrap().generation, first);
        write(proc.path(), 40, 700, TWO);
        let process = processes.get(&config, key, 3).unwrap();
        assert!(process.alive && process.generation != first);
        assert_eq!(process.mappings.len(), 2);
        // Its memory is gone: the copy stays.
        write(proc.path(), 40, 700, "");
        assert_eq!(processes.get(&config, key, 4).unwrap().mappings.len(), 2);
        let stat = proc.path().join("40/stat");
        let zombie = std::fs::read_to_string(&stat).unwrap().replace(") S", ") Z");
        std::fs::write(&stat, zombie).unwrap();
        assert!(!processes.get(&config, key, 5).unwrap().alive);
    }
}
