//! Brings the tables of sampled processes to the kernel side.

use std::collections::HashMap;
use std::fs::File;
use std::time::{Duration, Instant};

use agent_ebpf::wire::unwind::{MAX_MODULES, SpaceKey, UnwindResult};
use anyhow::Result;

use super::super::headers::{FileIdentity, Headers};
use super::super::lru::Lru;
use super::super::maps::{self, Mapping};
use super::super::module::{Via, open, own_vdso};
use super::super::segments::Segments;
use super::super::{SlotId, SymbolizerConfig};
use super::ahead::Ahead;
use super::tables::{Mapped, Sink, Tables};
use super::{Refused, Rules, build, python};

/// Largest `/proc/PID/maps` that is read, in bytes.
const MAX_MAPS: u64 = 32 << 20;
/// Mappings of a process at most: as many as the kernel side searches.
const MAX_MAPPINGS: usize = 4095;
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
/// Files whose headers are remembered: as many as there are tables.
const MAX_KNOWN: usize = MAX_MODULES as usize;
/// Turns after which a table that found no room is built again.
const ROOM_AGAIN: u64 = 60;

/// What tells executables apart: the build id where there is one, because the same file is another one in each container.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum FileKey {
    /// Build id.
    Build(String),
    /// Device, inode, size and time of the last change.
    Identity(FileIdentity),
    /// None: trampolines of CPython.
    Trampolines,
}

/// What was done so far.
#[derive(Clone, Debug, Default)]
pub struct LoaderStats {
    /// Tables built.
    pub built: u64,
    /// Files without a table by reason.
    pub refused: HashMap<Refused, u64>,
    /// Functions whose information could not be read.
    pub broken_functions: u64,
    /// Rows with rules that the kernel side does not know.
    pub unsupported_rows: u64,
    /// Tables and mappings that found no room.
    pub full: u64,
    /// CPU time spent on building.
    pub build_time: Duration,
    /// Bytes of kernel memory for rows.
    pub row_bytes: u64,
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
    config: SymbolizerConfig,
    pub(super) sink: S,
    pub(super) tables: Tables<FileKey>,
    rules: Rules,
    processes: HashMap<SpaceKey, Process>,
    refused: Lru<FileKey, Refused>,
    /// Tables that found no room, and the turn from which on they are tried again.
    no_room: Lru<FileKey, u64>,
    known: Lru<FileIdentity, (FileKey, Segments)>,
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
            config,
            sink,
            tables: Tables::new(max_bytes),
            rules: Rules::default(),
            processes: HashMap::new(),
            refused: Lru::new(MAX_REFUSED),
            no_room: Lru::new(MAX_REFUSED),
            known: Lru::new(MAX_KNOWN),
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
            (Some(process), UnwindResult::NoMapping) => process.looked.elapsed() >= process.again,
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
        let Some(mappings) = self.mappings(pid) else {
            return Ok(());
        };
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
        self.load(key, pid, &mappings)?;
        if !self.tables.knows(shared) {
            self.load(shared, pid, &mappings)?;
        }
        let looked = Instant::now();
        let process = Process {
            looked,
            again,
            suspect,
            mappings,
        };
        self.processes.insert(key, process);
        Ok(())
    }

    /// Brings the tables of the libraries of a process, for others that will map them.
    pub fn warm(&mut self, pid: u32) -> Result<()> {
        let mappings = self.mappings(pid).unwrap_or_default();
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
        let gone = |key: &&SpaceKey| !self.config.proc.join(key.pid.to_string()).exists();
        let gone: Vec<SpaceKey> = self.processes.keys().filter(gone).copied().collect();
        for key in gone {
            self.exited(SlotId(key.slot), key.pid)?;
        }
        Ok(())
    }

    fn mappings(&self, pid: u32) -> Option<Vec<Mapping>> {
        use std::io::Read as _;
        let mut text = Vec::new();
        let file = File::open(self.config.proc.join(pid.to_string()).join("maps")).ok()?;
        file.take(MAX_MAPS).read_to_end(&mut text).ok()?;
        let mut mappings = maps::parse(&String::from_utf8_lossy(&text));
        // `[vsyscall]` is in the kernel's half of the addresses, which the kernel side's search leaves out.
        mappings.retain(|mapping| mapping.range.start >> 63 == 0);
        mappings.truncate(MAX_MAPPINGS);
        (!mappings.is_empty()).then_some(mappings)
    }

    fn load(&mut self, key: SpaceKey, pid: u32, mappings: &[Mapping]) -> Result<()> {
        let mut space = Vec::with_capacity(mappings.len());
        for mapping in mappings {
            let found = self.table(pid, mapping)?;
            space.push(Mapped {
                start: mapping.range.start,
                end: mapping.range.end,
                bias: found.as_ref().map_or(0, |(_, bias)| *bias),
                file: found.map(|(file, _)| file),
            });
        }
        if !self.tables.map(&mut self.sink, key, &space)? {
            self.stats.full += 1;
        }
        Ok(())
    }

    /// The file behind a mapping, its table being there, and what to add to an address for that of the file.
    fn table(&mut self, pid: u32, mapping: &Mapping) -> Result<Option<(FileKey, u64)>> {
        let Some((file, identity)) = self.open(pid, mapping) else {
            return self.trampolines(pid, mapping);
        };
        let Some((file_key, segments)) = self.headers(&file, identity) else {
            return Ok(None);
        };
        let Some(delta) = segments.delta(mapping.offset) else {
            return Ok(None);
        };
        let bias = mapping
            .offset
            .wrapping_add(delta)
            .wrapping_sub(mapping.range.start);
        if self.tables.has(&file_key) {
            return Ok(Some((file_key, bias)));
        }
        let turns = self.turns;
        if self.refused.get(&file_key).is_some()
            || self.no_room.get(&file_key).is_some_and(|again| turns < *again)
        {
            return Ok(None);
        }
        match build(&file, &mut self.rules, self.config.max_parse) {
            Ok(built) => {
                self.stats.built += 1;
                self.stats.broken_functions += built.broken;
                self.stats.unsupported_rows += built.unsupported;
                self.stats.build_time += built.took;
                self.tables.rules(&mut self.sink, self.rules.all())?;
                if !self
                    .tables
                    .place(&mut self.sink, file_key.clone(), &built.table)?
                {
                    self.stats.full += 1;
                    self.no_room.insert(file_key, turns + ROOM_AGAIN);
                    return Ok(None);
                }
                Ok(Some((file_key, bias)))
            }
            Err(why) => {
                *self.stats.refused.entry(why).or_default() += 1;
                self.refused.insert(file_key, why);
                Ok(None)
            }
        }
    }

    /// What tells a file from others, and how its offsets become addresses. They are read once, and not for each process that has
    /// the file mapped.
    fn headers(&mut self, file: &File, identity: FileIdentity) -> Option<(FileKey, Segments)> {
        if let Some(known) = self.known.get(&identity) {
            return Some(known.clone());
        }
        let headers = Headers::read(file).ok()?;
        let file_key = headers
            .build_id
            .map_or(FileKey::Identity(identity), FileKey::Build);
        let known = (file_key, headers.segments);
        self.known.insert(identity, known.clone());
        Some(known)
    }

    fn trampolines(&mut self, pid: u32, mapping: &Mapping) -> Result<Option<(FileKey, u64)>> {
        if !python::is_trampolines(&self.config.proc, pid, mapping) {
            return Ok(None);
        }
        let found = (FileKey::Trampolines, mapping.range.start.wrapping_neg());
        if self.tables.has(&found.0) {
            return Ok(Some(found));
        }
        let Some(table) = python::table(&mut self.rules) else {
            return Ok(None);
        };
        self.tables.rules(&mut self.sink, self.rules.all())?;
        let placed = self.tables.place(&mut self.sink, FileKey::Trampolines, &table)?;
        self.stats.full += u64::from(!placed);
        Ok(placed.then_some(found))
    }

    fn open(&self, pid: u32, mapping: &Mapping) -> Option<(File, FileIdentity)> {
        if &*mapping.path == "[vdso]" {
            let file = own_vdso(&self.config.proc).ok()?;
            return Some((file, (0, 0, 0, 0, 0)));
        }
        if !mapping.is_file() {
            return None;
        }
        let via = Via {
            pid,
            alive: true,
            mapping,
        };
        open(&self.config, via).ok()
    }
}
