//! The maps of unwind tables.

use std::os::fd::{AsFd as _, OwnedFd};

use agent_ebpf::wire::python::PythonProcess;
use agent_ebpf::wire::unwind::{BLOCK_WORDS, Mapping, Module, Page, Rule, SEGMENT_BLOCKS, Space, SpaceKey};
use anyhow::{Context as _, Result, bail};
use aya::maps::{Array, ArrayOfMaps, HashMap, Map, MapData, MapError};

use super::maps::Plain;
use super::sys;

type Block = Plain<[u16; BLOCK_WORDS as usize]>;
type Segment = Array<MapData, Block>;

/// Writes to the maps that the unwinder reads. Independent of [`super::Loaded`], so that a thread of its own can.
pub struct UnwindMaps {
    rows: ArrayOfMaps<MapData, Segment>,
    /// The same map as `rows`, to remove from it.
    outer: OwnedFd,
    segments: Vec<Option<Segment>>,
    pages: Array<MapData, Plain<Page>>,
    modules: Array<MapData, Plain<Module>>,
    rules: Array<MapData, Plain<Rule>>,
    mappings: Array<MapData, Plain<Mapping>>,
    spaces: HashMap<MapData, Plain<SpaceKey>, Plain<Space>>,
    python: HashMap<MapData, u32, Plain<PythonProcess>>,
    generation: Array<MapData, u32>,
    now: u32,
    /// Something changed since the last [`Self::settle`].
    changing: bool,
}

impl UnwindMaps {
    /// Takes the maps out of the object.
    pub(super) fn take(mut take: impl FnMut(&str) -> Result<Map>) -> Result<Self> {
        let rows = take("UNWIND_ROWS")?;
        let Map::ArrayOfMaps(data) = &rows else {
            bail!("UNWIND_ROWS is no array of maps");
        };
        let outer = data.fd().as_fd().try_clone_to_owned()?;
        Ok(Self {
            rows: ArrayOfMaps::try_from(rows)?,
            outer,
            segments: Vec::new(),
            pages: Array::try_from(take("UNWIND_PAGES")?)?,
            modules: Array::try_from(take("UNWIND_MODULES")?)?,
            rules: Array::try_from(take("UNWIND_RULES")?)?,
            mappings: Array::try_from(take("UNWIND_MAPPINGS")?)?,
            spaces: HashMap::try_from(take("UNWIND_SPACES")?)?,
            python: HashMap::try_from(take("PYTHON")?)?,
            generation: Array::try_from(take("UNWIND_GENERATION")?)?,
            now: 0,
            changing: false,
        })
    }

    /// From here on, what walks found before is not to be believed.
    fn change(&mut self) -> Result<()> {
        if self.changing {
            return Ok(());
        }
        self.changing = true;
        self.next_generation()
    }

    /// Ends a series of changes: what walks found meanwhile is not to be believed, either.
    pub fn settle(&mut self) -> Result<()> {
        if !std::mem::take(&mut self.changing) {
            return Ok(());
        }
        self.next_generation()
    }

    fn next_generation(&mut self) -> Result<()> {
        self.now = self.now.wrapping_add(1);
        Ok(self.generation.set(0, self.now, 0)?)
    }

    /// Writes a rule.
    pub fn rule(&mut self, number: u32, rule: Rule) -> Result<()> {
        Ok(self.rules.set(number, Plain(rule), 0)?)
    }

    /// Makes or drops the memory of a segment.
    pub fn segment(&mut self, segment: u32, there: bool) -> Result<()> {
        self.change()?;
        let at = segment as usize;
        if self.segments.len() <= at {
            self.segments.resize_with(at + 1, || None);
        }
        if there {
            let memory = Segment::create(SEGMENT_BLOCKS, 0).context("memory for unwind tables")?;
            self.rows.set(segment, &memory, 0)?;
            self.segments[at] = Some(memory);
        } else {
            sys::clear(self.outer.as_fd(), segment).context("give back memory of unwind tables")?;
            self.segments[at] = None;
        }
        Ok(())
    }

    /// Writes a block of words.
    pub fn block(&mut self, segment: u32, block: u32, words: &[u16; BLOCK_WORDS as usize]) -> Result<()> {
        self.change()?;
        let memory = self
            .segments
            .get_mut(segment as usize)
            .and_then(Option::as_mut)
            .context("no such segment")?;
        Ok(memory.set(block, Plain(*words), 0)?)
    }

    /// Writes a page.
    pub fn page(&mut self, number: u32, page: Page) -> Result<()> {
        self.change()?;
        Ok(self.pages.set(number, Plain(page), 0)?)
    }

    /// Writes a module.
    pub fn module(&mut self, number: u32, module: Module) -> Result<()> {
        self.change()?;
        Ok(self.modules.set(number, Plain(module), 0)?)
    }

    /// Writes a mapping.
    pub fn mapping(&mut self, number: u32, mapping: Mapping) -> Result<()> {
        self.change()?;
        Ok(self.mappings.set(number, Plain(mapping), 0)?)
    }

    /// Sets or removes the mappings of a process.
    pub fn space(&mut self, key: SpaceKey, space: Option<Space>) -> Result<()> {
        self.change()?;
        match space {
            Some(space) => Ok(self.spaces.insert(Plain(key), Plain(space), 0)?),
            None => gone(self.spaces.remove(&Plain(key))),
        }
    }

    /// Sets or removes the interpreter of a slot.
    pub fn python(&mut self, slot: u32, process: Option<PythonProcess>) -> Result<()> {
        match process {
            Some(process) => Ok(self.python.insert(slot, Plain(process), 0)?),
            None => gone(self.python.remove(&slot)),
        }
    }
}

/// What was to be removed need not have been there.
fn gone(removed: Result<(), MapError>) -> Result<()> {
    match removed {
        Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
