//! Processes that ended before anybody read their memory map for their samples.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{GONE, Process, ProcessKey, Processes};
use crate::symbolize::maps::{self, Mapping};
use crate::symbolize::module::ModuleId;
use crate::symbolize::{CapturedCode, CapturedModule, SymbolizerConfig};

/// Mappings of a process that came with its samples, at most.
const MAX_CAPTURED: usize = 256;
/// A process that lives and that was met so long ago is the one that its samples are of: these come within seconds.
const SETTLED: Duration = Duration::from_secs(10);
/// Who is gone has no samples after this time, so a process that has is looked for once more, and again as often.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Processes through which a file is tried to reach.
const MAX_WAYS: usize = 4;

impl Process {
    /// The mapping that has this offset of its file at this address.
    fn maps(&self, start: u64, offset: u64) -> Option<&Mapping> {
        maps::find(&self.mappings, start)
            .filter(|mapping| mapping.offset + (start - mapping.range.start) == offset)
    }

    /// Adds mappings where nothing else is; whether there were any.
    fn add(&mut self, mappings: Vec<(Mapping, Option<ModuleId>)>) -> bool {
        let before = self.mappings.len();
        for (mapping, id) in mappings {
            let range = &mapping.range;
            let at = self
                .mappings
                .partition_point(|known| known.range.end <= range.start);
            let free = self
                .mappings
                .get(at)
                .is_none_or(|known| known.range.start >= range.end);
            if free && self.mappings.len() < MAX_CAPTURED.max(before) {
                if let Some(id) = id {
                    self.modules.insert(range.start, Ok(id));
                }
                self.mappings.insert(at, mapping);
            }
        }
        self.mappings.len() > before
    }
}

impl Processes {
    /// Whether the map of a process was read, and has one of these mappings: else another program has taken its place since. A process
    /// that lives may have mapped them after its map was read; generated code tells nothing of which program it is.
    pub(in super::super) fn was_read(
        &mut self,
        config: &SymbolizerConfig,
        key: ProcessKey,
        batch: u64,
        modules: &[CapturedModule],
    ) -> bool {
        let Some(process) = self.get(config, key, batch) else {
            return false;
        };
        if process.captured {
            return false;
        }
        let of_files: Vec<_> = modules
            .iter()
            .filter(|module| matches!(module.code, CapturedCode::File(_)))
            .collect();
        let there = |processes: &mut Self| {
            let process = processes.known.get(&key);
            process.is_some_and(|process| {
                of_files
                    .iter()
                    .any(|module| process.maps(module.start, module.offset).is_some())
            })
        };
        let settled = process.alive && process.met.elapsed() >= SETTLED;
        let lives = process.alive;
        of_files.is_empty() || settled || there(self) || lives && self.reread(config, key) && there(self)
    }

    /// Looks whether a process that was taken for gone lives: then it has at least one file where it had it before.
    pub(super) fn look_for(&mut self, config: &SymbolizerConfig, key: ProcessKey) {
        let Some(process) = self
            .known
            .get(&key)
            .filter(|gone| gone.met.elapsed() >= LOOK_AGAIN)
        else {
            return;
        };
        process.met = Instant::now();
        let Some(fresh) = self.read(&config.proc.join(key.1.to_string()), 0) else {
            return;
        };
        let Some(process) = self.known.get(&key) else {
            return;
        };
        let there = |old: &Mapping| {
            old.inode != 0
                && fresh
                    .maps(old.range.start, old.offset)
                    .is_some_and(|new| new.inode == old.inode)
        };
        if process.mappings.iter().any(there) {
            let batch = process.batch;
            *process = fresh;
            process.batch = batch;
            self.of_slot.entry(key.0).or_insert(key.1);
        }
    }

    /// Mappings that came with samples of a process whose map can no longer be read.
    pub(in super::super) fn capture(
        &mut self,
        key: ProcessKey,
        batch: u64,
        executable: Option<Arc<str>>,
        modules: Vec<(Mapping, Option<ModuleId>)>,
    ) {
        self.next_generation += 1;
        if self.known.get(&key).is_none_or(|process| !process.captured) {
            let mut process = Process::new(self.next_generation, Vec::new(), None, GONE, batch);
            process.captured = true;
            if self.of_slot.get(&key.0) == Some(&key.1) {
                self.of_slot.remove(&key.0);
            }
            self.insert(key, process);
        }
        let Some(process) = self.known.get(&key) else {
            return;
        };
        process.generation = self.next_generation;
        process.executable = executable.or(process.executable.take());
        process.add(modules);
    }

    /// The modules of a sample that are not in the copy of the process's map: it was copied before they were mapped. The map of a
    /// process that lives is read again instead: it tells the files' paths, too, by which they can always be reached.
    pub(in super::super) fn missing(
        &mut self,
        config: &SymbolizerConfig,
        key: ProcessKey,
        modules: Vec<CapturedModule>,
    ) -> Vec<CapturedModule> {
        let Some(process) = self.known.get(&key) else {
            return Vec::new();
        };
        let missing = |module: &CapturedModule| maps::find(&process.mappings, module.start).is_none();
        let missing: Vec<_> = modules.into_iter().filter(missing).collect();
        if missing.is_empty() || !process.alive {
            return missing;
        }
        self.reread(config, key);
        let lives = self.known.get(&key).is_some_and(|process| process.alive);
        if lives { Vec::new() } else { missing }
    }

    /// Adds mappings to the copy of a process's map, where it has none; true when it changed.
    pub(in super::super) fn add(
        &mut self,
        key: ProcessKey,
        mappings: Vec<(Mapping, Option<ModuleId>)>,
    ) -> bool {
        let Some(process) = self.known.get(&key) else {
            return false;
        };
        let added = process.add(mappings);
        if added {
            self.next_generation += 1;
            process.generation = self.next_generation;
        }
        added
    }

    /// What the map of a process lacks, as it was when its unwind tables were made: true when it changed.
    pub(super) fn complete(&mut self, config: &SymbolizerConfig, key: ProcessKey) -> bool {
        let Some(mappings) = config.seen.take(key) else {
            return false;
        };
        self.add(key, mappings.into_iter().map(|mapping| (mapping, None)).collect())
    }

    /// Processes that map a file, and where: those that live first. The map tells another device than the kernel captured where some
    /// filesystems (btrfs, overlayfs) show one of their own: such a process comes after those whose device is the same.
    pub(in super::super) fn that_map(&self, device: &str, inode: u64) -> Vec<(u32, Mapping)> {
        let of = |mapping: &&Mapping| mapping.inode == inode;
        let mut found: Vec<(bool, bool, u32, &Mapping)> = self
            .known
            .iter()
            .filter(|(_, process)| !process.captured)
            .filter_map(|(key, process)| {
                let mapping = process.mappings.iter().find(of)?;
                Some((*mapping.device != *device, !process.alive, key.1, mapping))
            })
            .collect();
        found.sort_by_key(|(other, gone, pid, _)| (*other, *gone, *pid));
        let found = found
            .into_iter()
            .map(|(_, _, pid, mapping)| (pid, mapping.clone()));
        found.take(MAX_WAYS).collect()
    }

    /// A process that is gone, as it was when its unwind tables were made.
    pub(super) fn seen(&mut self, config: &SymbolizerConfig, key: ProcessKey, batch: u64) -> Option<Process> {
        let mappings = config.seen.take(key)?;
        let program = mappings.iter().find(|mapping| mapping.is_file());
        let executable = program.map(|mapping| Arc::clone(&mapping.path));
        self.next_generation += 1;
        Some(Process::new(
            self.next_generation,
            mappings,
            executable,
            GONE,
            batch,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{ONE, TWO, config, write};
    use super::*;
    use crate::symbolize::{CapturedFile, SlotId};

    fn module(start: u64, inode: Option<u64>) -> CapturedModule {
        let file = |inode| CapturedFile {
            device: (0xfe, 1),
            inode,
            generation: 0,
            size: 0,
            mtime: (0, 0),
        };
        CapturedModule {
            start,
            end: start + 0x1000,
            offset: 0,
            code: inode.map_or(CapturedCode::Memory, |inode| CapturedCode::File(file(inode))),
            executable: false,
        }
    }

    #[test]
    fn a_process_that_lives_may_have_mapped_more_since() {
        let proc = tempfile::tempdir().unwrap();
        let config = config(proc.path());
        let mut processes = Processes::new(&config);
        let key = (SlotId(1), 40);
        write(proc.path(), 40, 700, ONE);
        processes.get(&config, key, 1).unwrap();
        let mut read = |modules: &[_]| processes.was_read(&config, key, 1, modules);
        assert!(read(&[module(0x9000, None)]), "generated code");
        assert!(!read(&[module(0x5000, Some(2))]));
        write(proc.path(), 40, 700, TWO);
        assert!(read(&[module(0x5000, Some(2))]), "a library");
        assert!(!read(&[module(0x9000, Some(3))]), "another program");
        let process = processes.known.get(&key).unwrap();
        process.met -= SETTLED;
        assert!(processes.was_read(&config, key, 1, &[module(0x9000, Some(3))]));
    }

    #[test]
    fn who_has_samples_still_is_not_gone() {
        let proc = tempfile::tempdir().unwrap();
        let config = config(proc.path());
        let mut processes = Processes::new(&config);
        let key = (SlotId(1), 41);
        let lost = Mapping {
            path: "".into(),
            ..maps::parse(ONE).remove(0)
        };
        let mut batch = 1;
        let mut lives = |processes: &mut Processes, later: Duration| {
            batch += 1;
            processes.known.get(&key).unwrap().met -= later;
            let process = processes.get(&config, key, batch).unwrap();
            (process.alive, process.mappings.len())
        };
        processes.capture(key, 1, None, vec![(lost, None)]);
        assert_eq!(lives(&mut processes, LOOK_AGAIN), (false, 1));
        write(proc.path(), 41, 700, &TWO.replace("01 1 ", "01 3 "));
        assert_eq!(lives(&mut processes, LOOK_AGAIN), (false, 1), "another program");
        write(proc.path(), 41, 700, TWO);
        assert_eq!(lives(&mut processes, Duration::ZERO), (false, 1), "just now");
        assert_eq!(lives(&mut processes, LOOK_AGAIN), (true, 2));
        std::fs::remove_dir_all(proc.path()).unwrap();
        assert_eq!(lives(&mut processes, LOOK_AGAIN), (false, 2));
    }
}
