//! Brings the tables of sampled processes to the kernel side.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use agent_ebpf::wire::unwind::{GENERATED, Rule, SpaceKey, UnwindResult};
use anyhow::Result;

use super::super::lru::Lru;
use super::super::maps::Mapping;
use super::super::python::Interpreters;
use super::super::{SlotId, SymbolizerConfig};
use super::ahead::Ahead;
use super::files::{FileKey, Files};
use super::large::{Job, Large, Made};
use super::tables::{Mapped, Sink, Tables};
use super::{Built, Refused, Rules, UnsupportedRows, build, python, unsupported};

/// The least time between the first two looks at the mappings of a process: a program that starts loads its libraries one by
/// one, and with each later look it is twice as long, up to the second.
const FIRST_AGAIN: Duration = Duration::from_millis(50);
/// The least time between two looks, in the end.
const AGAIN: Duration = Duration::from_secs(1);
/// How often the mappings of a process are looked at again while it is sampled.
const REFRESH: Duration = Duration::from_secs(30);
/// Turns after which processes are looked for whose end was not heard of.
const SWEEP: u64 = 60;
/// Seconds for which a table that no process maps is kept: a program that is started again and again needs it soon.
const KEEP: u64 = 60;
/// Files without a table that are remembered.
const MAX_REFUSED: usize = 4096;
/// Turns after which a table that found no room is built again.
const ROOM_AGAIN: u64 = 60;

/// Bytes of call frame information from which on a file is a large one: they take about 50 ms.
const LARGE: u64 = 1 << 20;

/// What was done so far.
#[derive(Clone, Debug, Default)]
pub struct LoaderStats {
    /// Tables built.
    pub built: u64,
    /// Files without a table by reason.
    pub refused: HashMap<Refused, u64>,
    /// Functions whose information could not be read.
    pub broken_functions: u64,
    /// Rows with rules that the kernel side does not know, by reason.
    pub unsupported_rows: UnsupportedRows,
    /// Tables and mappings that found no room.
    pub full: u64,
    /// CPU time spent on building.
    pub build_time: Duration,
    /// Bytes of kernel memory for rows.
    pub row_bytes: u64,
    /// Program images with CPython by whether its frames are walked, or why not.
    pub interpreters: HashMap<&'static str, u64>,
}

#[derive(Debug)]
struct Process {
    looked: Instant,
    /// The least time until the next look for more mappings.
    again: Duration,
    /// The least time until the next look for other ones.
    suspect: Duration,
    mappings: Vec<Mapping>,
}

/// Builds tables and keeps the kernel side's maps of them.
#[derive(Debug)]
pub struct Loader<S> {
    files: Files,
    pub(super) sink: S,
    pub(super) tables: Tables<FileKey>,
    rules: Rules,
    interpreters: Interpreters,
    processes: HashMap<SpaceKey, Process>,
    refused: Lru<FileKey, Refused>,
    /// Tables that found no room, and the turn from which on they are tried again.
    no_room: Lru<FileKey, u64>,
    pub(super) large: Large,
    /// Too many files waited, or an interpreter could not be read: what was looked at last is to be looked at again.
    missed: bool,
    /// What a file costs from which on it is a large one.
    pub(super) large_from: u64,
    ahead: Ahead,
    /// Bytes of tables up to which programs get theirs before they are sampled: the rest is for those that are.
    ahead_bytes: u64,
    stats: LoaderStats,
    turns: u64,
}

impl<S: Sink> Loader<S> {
    /// Nothing is there yet; at most `max_bytes` of rows will be.
    pub fn new(config: SymbolizerConfig, sink: S, max_bytes: u64) -> Self {
        Self {
            files: Files::new(config),
            sink,
            tables: Tables::new(max_bytes),
            rules: Rules::default(),
            interpreters: Interpreters::default(),
            processes: HashMap::new(),
            refused: Lru::new(MAX_REFUSED),
            no_room: Lru::new(MAX_REFUSED),
            large: Large::default(),
            missed: false,
            large_from: LARGE,
            ahead: Ahead::new(Instant::now()),
            ahead_bytes: max_bytes / 4 * 3,
            stats: LoaderStats::default(),
            turns: 0,
        }
    }

    /// What was done so far.
    #[must_use]
    pub fn stats(&self) -> LoaderStats {
        LoaderStats {
            row_bytes: self.tables.row_bytes(),
            interpreters: self.interpreters.results().clone(),
            ..self.stats.clone()
        }
    }

    /// A stack of this process was walked, and ended so: brings what was missing.
    pub fn sampled(&mut self, slot: SlotId, pid: u32, result: UnwindResult) -> Result<()> {
        let key = SpaceKey { slot: slot.0, pid };
        let shared = SpaceKey { slot: slot.0, pid: 0 };
        let known = self.processes.get(&key);
        let wanted = match (known, result) {
            // Its slot has mappings, and these were good enough.
            (None, UnwindResult::Complete | UnwindResult::Unsupported) => !self.tables.knows(shared),
            (None, _) => true,
            // It has mapped more since.
            (Some(process), UnwindResult::NoMapping | UnwindResult::NewCode) => {
                process.looked.elapsed() >= process.again
            }
            // Something else may have been mapped in place of what was there.
            (Some(process), UnwindResult::Complete | UnwindResult::Unsupported | UnwindResult::TooDeep) => {
                process.looked.elapsed() >= REFRESH
            }
            (Some(process), _) => process.looked.elapsed() >= process.suspect,
        };
        if wanted { self.look(slot, pid) } else { Ok(()) }
    }

    /// Brings what is missing of the tables of a process as it is now.
    pub fn look(&mut self, slot: SlotId, pid: u32) -> Result<()> {
        let key = SpaceKey { slot: slot.0, pid };
        let shared = SpaceKey { slot: slot.0, pid: 0 };
        self.ahead.done(slot);
        let Some(mappings) = self.files.mappings(pid) else {
            return Ok(());
        };
        self.files.config.seen.keep((slot, pid), &mappings);
        let (mut again, mut suspect) = (FIRST_AGAIN, FIRST_AGAIN);
        if let Some(process) = self.processes.get_mut(&key) {
            process.looked = Instant::now();
            process.again = AGAIN.min(2 * process.again);
            process.suspect = REFRESH.min(2 * process.suspect);
            (again, suspect) = (process.again, process.suspect);
            if process.mappings == mappings {
                return Ok(());
            }
        }
        self.missed = self
            .interpreters
            .look(&mut self.files, &mut self.sink, key, &mappings)?;
        let space = self.space(pid, &mappings)?;
        self.map(key, &space)?;
        if !self.tables.knows(shared) {
            self.map(shared, &space)?;
        }
        let process = Process {
            looked: Instant::now(),
            again,
            suspect,
            mappings: if self.missed { Vec::new() } else { mappings },
        };
        self.processes.insert(key, process);
        Ok(())
    }

    /// Brings the tables of the libraries of a process, for others that will map them.
    pub fn warm(&mut self, pid: u32) -> Result<()> {
        let mappings = self.files.mappings(pid).unwrap_or_default();
        let program = mappings.first().map(|mapping| &mapping.path);
        for mapping in mappings.iter().filter(|mapping| Some(&mapping.path) != program) {
            self.table(pid, mapping)?;
        }
        Ok(())
    }

    /// A program image began, or was found.
    pub fn opened(&mut self, slot: SlotId, pid: u32, now: Instant) {
        self.ahead.opened(slot, pid, now);
    }

    /// When [`Self::ahead`] has something to do.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        self.ahead.due()
    }

    /// Brings the tables of one program that was not sampled yet, as long as there is much room.
    pub fn ahead(&mut self, now: Instant) -> Result<()> {
        let Some((slot, pid)) = self.ahead.next(now) else {
            return Ok(());
        };
        let shared = SpaceKey { slot: slot.0, pid: 0 };
        if self.tables.knows(shared) || self.tables.row_bytes() > self.ahead_bytes {
            return Ok(());
        }
        self.look(slot, pid)
    }

    /// A program image ended.
    pub fn closed(&mut self, slot: SlotId) -> Result<()> {
        self.ahead.done(slot);
        self.interpreters.closed(&mut self.sink, slot.0)?;
        let gone: Vec<SpaceKey> = self
            .processes
            .keys()
            .filter(|key| key.slot == slot.0)
            .copied()
            .collect();
        for key in gone.into_iter().chain([SpaceKey { slot: slot.0, pid: 0 }]) {
            self.processes.remove(&key);
            self.tables.unmap(&mut self.sink, key)?;
        }
        Ok(())
    }

    /// A process ended.
    pub fn exited(&mut self, slot: SlotId, pid: u32) -> Result<()> {
        let key = SpaceKey { slot: slot.0, pid };
        self.processes.remove(&key);
        self.tables.unmap(&mut self.sink, key)
    }

    /// To be called after each of the others, whether that failed or not: what the kernel side remembers is renewed.
    pub fn settle(&mut self) -> Result<()> {
        self.sink.settle()
    }

    /// Called each second.
    pub fn turn(&mut self) -> Result<()> {
        self.turns += 1;
        if self.turns.is_multiple_of(SWEEP) {
            self.sweep()?;
        }
        if self.tables.evict(KEEP) {
            self.no_room = Lru::new(MAX_REFUSED);
        }
        self.tables.turn(&mut self.sink)
    }

    /// Where the ring of events was full, nobody said that a process had ended.
    fn sweep(&mut self) -> Result<()> {
        let gone = |key: &&SpaceKey| !self.files.config.proc.join(key.pid.to_string()).exists();
        let gone: Vec<SpaceKey> = self.processes.keys().filter(gone).copied().collect();
        for key in gone {
            self.exited(SlotId(key.slot), key.pid)?;
        }
        Ok(())
    }

    fn space(&mut self, pid: u32, mappings: &[Mapping]) -> Result<Vec<Mapped<FileKey>>> {
        let mut space = Vec::with_capacity(mappings.len());
        for mapping in mappings {
            let found = self.table(pid, mapping)?;
            let other = if mapping.is_memory() { GENERATED } else { 0 };
            space.push(Mapped {
                start: mapping.range.start,
                end: mapping.range.end,
                bias: found.as_ref().map_or(other, |(_, bias)| *bias),
                file: found.map(|(file, _)| file),
            });
        }
        Ok(space)
    }

    fn map(&mut self, key: SpaceKey, space: &[Mapped<FileKey>]) -> Result<()> {
        if !self.tables.map(&mut self.sink, key, space)? {
            self.stats.full += 1;
        }
        Ok(())
    }

    /// The file behind a mapping, its table being there or to come, and what to add to an address for that of the file.
    fn table(&mut self, pid: u32, mapping: &Mapping) -> Result<Option<(FileKey, u64)>> {
        let Some((file, identity)) = self.files.open(pid, mapping) else {
            return self.trampolines(pid, mapping);
        };
        let Some(known) = self.files.headers(&file, identity) else {
            return Ok(None);
        };
        let Some(bias) = known.bias(mapping) else {
            return Ok(None);
        };
        let key = known.key;
        if self.tables.has(&key) || self.large.has(&key) {
            return Ok(Some((key, bias)));
        }
        let turns = self.turns;
        if self.refused.get(&key).is_some() || self.no_room.get(&key).is_some_and(|again| turns < *again) {
            return Ok(None);
        }
        if known.cost >= self.large_from {
            let comes = self.large.push(key.clone(), file, known.cost);
            self.missed |= !comes;
            return Ok(comes.then_some((key, bias)));
        }
        let built = build(&file, &mut self.rules, self.files.config.max_parse);
        Ok(self.place(&key, built)?.then_some((key, bias)))
    }

    /// The next table that takes long, to be made beside everything else and brought by [`Self::made`]. None while one is being
    /// made.
    pub fn job(&mut self) -> Option<Job> {
        self.large.next(&self.rules, self.files.config.max_parse)
    }

    /// Whether tables that take long are to come.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        !self.large.is_empty()
    }

    /// A table that took long is there: those who have its file mapped have it from now on.
    pub fn made(&mut self, made: Made) -> Result<()> {
        let Made {
            key,
            rules,
            mut built,
        } = made;
        self.large.done(&key);
        if let Ok(built) = &mut built {
            let ours = |rule: &Rule| self.rules.number(*rule);
            let numbers: Vec<u16> = rules.all().iter().map(ours).collect();
            built.table.renumber(&numbers);
        }
        let placed = self.place(&key, built);
        if !matches!(placed, Ok(true)) {
            self.tables.unwanted(&key);
        }
        placed.map(|_| ())
    }

    /// Brings a table to the kernel side, if there is one and it finds room.
    fn place(&mut self, key: &FileKey, built: Result<Built, Refused>) -> Result<bool> {
        let built = match built {
            Ok(built) => built,
            Err(why) => {
                *self.stats.refused.entry(why).or_default() += 1;
                self.refused.insert(key.clone(), why);
                return Ok(false);
            }
        };
        self.stats.built += 1;
        self.stats.broken_functions += built.broken;
        unsupported::add(&mut self.stats.unsupported_rows, &built.unsupported);
        self.stats.build_time += built.took;
        self.tables.rules(&mut self.sink, self.rules.all())?;
        let placed = self.tables.place(&mut self.sink, key.clone(), &built.table)?;
        if !placed {
            self.stats.full += 1;
            self.no_room.insert(key.clone(), self.turns + ROOM_AGAIN);
        }
        Ok(placed)
    }

    fn trampolines(&mut self, pid: u32, mapping: &Mapping) -> Result<Option<(FileKey, u64)>> {
        let Some(apart) = python::trampolines(&self.files.config.proc, pid, mapping) else {
            return Ok(None);
        };
        let found = (FileKey::Trampolines(apart), mapping.range.start.wrapping_neg());
        if self.tables.has(&found.0) {
            return Ok(Some(found));
        }
        let Some(table) = python::table(&mut self.rules, apart) else {
            return Ok(None);
        };
        self.tables.rules(&mut self.sink, self.rules.all())?;
        let placed = self.tables.place(&mut self.sink, found.0.clone(), &table)?;
        self.stats.full += u64::from(!placed);
        Ok(placed.then_some(found))
    }
}
