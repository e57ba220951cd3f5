//! Which tables and mappings the kernel side has, and where.

use std::collections::HashMap;
use std::hash::Hash;

use agent_ebpf::wire::python::PythonProcess;
use agent_ebpf::wire::unwind::{
    BLOCK_WORDS, MAX_MAPPINGS, MAX_MODULES, MAX_PAGES, MAX_SEGMENTS, Mapping, Module, Page, Rule,
    SEGMENT_BLOCKS, SEGMENT_WORDS, Space, SpaceKey,
};
use anyhow::Result;

use super::arena::Arena;
use super::table::Table;

const SEGMENT_BYTES: u64 = SEGMENT_WORDS as u64 * size_of::<u16>() as u64;

/// Words of a run of pages at most.
const RUN_WORDS: u32 = SEGMENT_WORDS / 8;

/// Where tables are written to: the maps of the kernel side.
pub trait Sink {
    /// Writes a rule.
    fn rule(&mut self, number: u32, rule: Rule) -> Result<()>;
    /// Makes or drops the memory of a segment.
    fn segment(&mut self, segment: u32, there: bool) -> Result<()>;
    /// Writes a block of words.
    fn block(&mut self, segment: u32, block: u32, words: &[u16; BLOCK_WORDS as usize]) -> Result<()>;
    /// Writes a page.
    fn page(&mut self, number: u32, page: Page) -> Result<()>;
    /// Writes a module.
    fn module(&mut self, number: u32, module: Module) -> Result<()>;
    /// Writes a mapping.
    fn mapping(&mut self, number: u32, mapping: Mapping) -> Result<()>;
    /// Sets or removes the mappings of a process.
    fn space(&mut self, key: SpaceKey, space: Option<Space>) -> Result<()>;
    /// Sets or removes the interpreter of a slot.
    fn python(&mut self, slot: u32, process: Option<PythonProcess>) -> Result<()> {
        let _nobody = (slot, process);
        Ok(())
    }
    /// A series of changes has ended, well or not.
    fn settle(&mut self) -> Result<()> {
        Ok(())
    }
}

/// Where a table is.
#[derive(Debug, Default)]
struct Placed {
    module: u32,
    first_page: u32,
    pages: u32,
    /// Segment, first block, blocks.
    runs: Vec<(u32, u32, u32)>,
    /// Processes that have it mapped.
    users: usize,
    /// When the last of them went, counted in turns.
    idle_since: u64,
}

/// A mapping of a process, and the file behind it where that has a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapped<K> {
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// To add to an address of the process for that of the file.
    pub bias: u64,
    /// The file.
    pub file: Option<K>,
}

/// The mappings of a process, and the tables behind them.
#[derive(Debug)]
struct Used<K> {
    space: Space,
    files: Vec<K>,
    /// Files whose tables are to come.
    wanted: Vec<K>,
}

/// A mapping whose table is to come: its process, its number, and what it says.
type Wanted = (SpaceKey, u32, Mapping);

/// All that is on the kernel side.
#[derive(Debug)]
pub struct Tables<K> {
    placed: HashMap<K, Placed>,
    spaces: HashMap<SpaceKey, Used<K>>,
    wanted: HashMap<K, Vec<Wanted>>,
    segments: Vec<Option<Arena>>,
    max_segments: u32,
    pages: Arena,
    modules: Arena,
    mappings: Arena,
    rules: u32,
    turn: u64,
}

impl<K: Clone + Eq + Hash> Tables<K> {
    /// None yet; at most `max_bytes` of them.
    #[must_use]
    pub fn new(max_bytes: u64) -> Self {
        let segments = max_bytes / SEGMENT_BYTES;
        Self {
            placed: HashMap::new(),
            spaces: HashMap::new(),
            wanted: HashMap::new(),
            segments: Vec::new(),
            max_segments: u32::try_from(segments).unwrap_or(u32::MAX).clamp(1, MAX_SEGMENTS),
            pages: Arena::new(MAX_PAGES),
            modules: Arena::new(MAX_MODULES),
            mappings: Arena::new(MAX_MAPPINGS),
            rules: 0,
            turn: 0,
        }
    }

    /// Whether this file's table is there.
    #[must_use]
    pub fn has(&self, file: &K) -> bool {
        self.placed.contains_key(file)
    }

    /// Whether this process's mappings are there.
    #[must_use]
    pub fn knows(&self, key: SpaceKey) -> bool {
        self.spaces.contains_key(&key)
    }

    /// Bytes of memory for tables.
    #[must_use]
    pub fn row_bytes(&self) -> u64 {
        self.segments.iter().flatten().count() as u64 * SEGMENT_BYTES
    }

    /// Writes the rules that are new.
    pub fn rules(&mut self, sink: &mut impl Sink, all: &[Rule]) -> Result<()> {
        for rule in all.iter().skip(self.rules as usize) {
            sink.rule(self.rules, *rule)?;
            self.rules += 1;
        }
        Ok(())
    }

    /// Writes a table, whose rules are there already; `false` when there is no room even after unused ones are dropped.
    pub fn place(&mut self, sink: &mut impl Sink, file: K, table: &Table) -> Result<bool> {
        if self.placed.contains_key(&file) {
            return Ok(true);
        }
        let Some(mut placed) = self.room(sink, table)? else {
            return Ok(false);
        };
        let mut page = placed.first_page;
        for pages in runs(table) {
            let words = table.words(pages.clone());
            let taken = match (words.len() as u32).div_ceil(BLOCK_WORDS) {
                0 => Ok(Some((0, 0, 0))),
                blocks => self.take_blocks(sink, blocks),
            };
            let (segment, first, blocks) = match taken {
                Ok(Some(found)) => found,
                other => {
                    self.give_back(&placed);
                    return other.map(|_| false);
                }
            };
            placed.runs.push((segment, first, blocks));
            for (at, chunk) in (first..).zip(words.chunks(BLOCK_WORDS as usize)) {
                let mut block = [0; BLOCK_WORDS as usize];
                block[..chunk.len()].copy_from_slice(chunk);
                sink.block(segment, at, &block)?;
            }
            let mut at = segment * SEGMENT_WORDS + first * BLOCK_WORDS;
            for number in pages {
                let mut place = table.pages[number];
                if place.rules > 0 {
                    place.first = at;
                }
                at += table.words(number..number + 1).len() as u32;
                sink.page(page, place)?;
                page += 1;
            }
        }
        sink.module(
            placed.module,
            Module {
                base: table.base,
                first_page: placed.first_page,
                pages: placed.pages,
            },
        )?;
        placed.idle_since = self.turn;
        for (key, number, mut mapping) in self.wanted.remove(&file).unwrap_or_default() {
            mapping.module = placed.module + 1;
            sink.mapping(number, mapping)?;
            if let Some(used) = self.spaces.get_mut(&key) {
                placed.users += 1;
                used.files.push(file.clone());
            }
        }
        self.placed.insert(file, placed);
        Ok(true)
    }

    /// This file's table will not come.
    pub fn unwanted(&mut self, file: &K) {
        self.wanted.remove(file);
    }

    /// Writes the mappings of a process, in the order of their addresses; those it had before are dropped. Where a file's table
    /// is to come, it is there for them as soon as it is placed. `false` when there is no room.
    pub fn map(&mut self, sink: &mut impl Sink, key: SpaceKey, mappings: &[Mapped<K>]) -> Result<bool> {
        let count = u32::try_from(mappings.len()).unwrap_or(u32::MAX);
        let Some(first) = self.mappings.take(count.max(1)) else {
            return Ok(false);
        };
        let (mut files, mut wanted) = (Vec::new(), Vec::new());
        for (number, mapped) in (first..).zip(mappings) {
            let placed = mapped.file.as_ref().and_then(|file| self.placed.get_mut(file));
            let mapping = Mapping {
                start: mapped.start,
                end: mapped.end,
                bias: mapped.bias,
                module: placed.as_ref().map_or(0, |placed| placed.module + 1),
                pad: 0,
            };
            match (placed, &mapped.file) {
                (Some(placed), Some(file)) => {
                    placed.users += 1;
                    files.push(file.clone());
                }
                (None, Some(file)) => {
                    let waiting = self.wanted.entry(file.clone()).or_default();
                    waiting.push((key, number, mapping));
                    wanted.push(file.clone());
                }
                _ => {}
            }
            sink.mapping(number, mapping)?;
        }
        let space = Space { first, count };
        sink.space(key, Some(space))?;
        let used = Used { space, files, wanted };
        if let Some(old) = self.spaces.insert(key, used) {
            self.release(&old);
        }
        Ok(true)
    }

    /// The process is gone.
    pub fn unmap(&mut self, sink: &mut impl Sink, key: SpaceKey) -> Result<()> {
        if let Some(old) = self.spaces.remove(&key) {
            sink.space(key, None)?;
            self.release(&old);
        }
        Ok(())
    }

    fn release(&mut self, used: &Used<K>) {
        let Space { first, count } = used.space;
        self.mappings.give_back(first, count.max(1));
        for file in &used.wanted {
            if let Some(waiting) = self.wanted.get_mut(file) {
                waiting.retain(|(_, number, _)| !(first..first + count).contains(number));
            }
        }
        for file in &used.files {
            if let Some(placed) = self.placed.get_mut(file) {
                placed.users = placed.users.saturating_sub(1);
                placed.idle_since = self.turn;
            }
        }
    }

    /// Called once a while: no walk that began before the last call is still under way. Segments without rows are dropped.
    pub fn turn(&mut self, sink: &mut impl Sink) -> Result<()> {
        self.turn += 1;
        for arena in [&mut self.pages, &mut self.modules, &mut self.mappings] {
            arena.settle();
        }
        for (segment, arena) in (0..).zip(&mut self.segments) {
            let Some(blocks) = arena else { continue };
            blocks.settle();
            if blocks.room() == SEGMENT_BLOCKS {
                sink.segment(segment, false)?;
                *arena = None;
            }
        }
        Ok(())
    }

    /// Drops the tables that nobody used for so many turns; whether there were any.
    pub fn evict(&mut self, turns: u64) -> bool {
        let now = self.turn;
        let unused: Vec<K> = self
            .placed
            .iter()
            .filter(|(_, placed)| placed.users == 0 && now - placed.idle_since >= turns)
            .map(|(file, _)| file.clone())
            .collect();
        for file in &unused {
            if let Some(placed) = self.placed.remove(file) {
                self.give_back(&placed);
            }
        }
        !unused.is_empty()
    }

    /// Numbers for a module and its pages.
    fn room(&mut self, _sink: &mut impl Sink, table: &Table) -> Result<Option<Placed>> {
        let pages = u32::try_from(table.pages.len()).unwrap_or(u32::MAX);
        let Some(module) = self.modules.take(1) else {
            return Ok(None);
        };
        let Some(first_page) = self.pages.take(pages.max(1)) else {
            self.modules.give_back(module, 1);
            return Ok(None);
        };
        Ok(Some(Placed {
            module,
            first_page,
            pages,
            ..Placed::default()
        }))
    }

    fn take_blocks(&mut self, sink: &mut impl Sink, blocks: u32) -> Result<Option<(u32, u32, u32)>> {
        for (segment, arena) in (0..).zip(&mut self.segments) {
            if let Some(first) = arena.as_mut().and_then(|arena| arena.take(blocks)) {
                return Ok(Some((segment, first, blocks)));
            }
        }
        let dropped = self.segments.iter().position(Option::is_none);
        let segment = dropped.unwrap_or(self.segments.len());
        if segment >= self.max_segments as usize {
            return Ok(None);
        }
        let number = segment as u32;
        sink.segment(number, true)?;
        let mut arena = Arena::new(SEGMENT_BLOCKS);
        let first = arena.take(blocks);
        if dropped.is_none() {
            self.segments.push(None);
        }
        self.segments[segment] = Some(arena);
        Ok(first.map(|first| (number, first, blocks)))
    }

    fn give_back(&mut self, placed: &Placed) {
        self.modules.give_back(placed.module, 1);
        self.pages.give_back(placed.first_page, placed.pages.max(1));
        for (segment, first, blocks) in &placed.runs {
            if let Some(Some(arena)) = self.segments.get_mut(*segment as usize) {
                arena.give_back(*first, *blocks);
            }
        }
    }
}

/// The pages of a table in runs that are each in one segment, and small enough to find room beside others. A page alone always is.
fn runs(table: &Table) -> Vec<std::ops::Range<usize>> {
    let mut runs: Vec<std::ops::Range<usize>> = Vec::new();
    for page in 0..table.pages.len() {
        match runs.last_mut() {
            Some(run) if table.words(run.start..page + 1).len() <= RUN_WORDS as usize => run.end = page + 1,
            _ => runs.push(page..page + 1),
        }
    }
    runs
}
