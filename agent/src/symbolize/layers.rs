//! The files that together say what is at an address: the mapped one, its debug file, what is packed in it.

use std::path::Path;

use super::Outcome;
use super::engine::{self, Engine, Found, Part};
use super::go::GoTable;
use super::image::Image;
use super::sections::Sections;
use super::stubs::{Stubs, Target};

/// Copies of the files of one module, the most telling first.
#[derive(Debug)]
pub(super) struct Layers {
    images: Vec<Image>,
    /// Which of them is of the mapped file itself.
    own: usize,
    /// Where the sections of that file are.
    sections: Sections,
    stubs: Stubs,
    /// Go's own table, where nothing else has lines.
    go: Option<GoTable>,
}

impl Layers {
    pub(super) fn new(own: Image, sections: Sections) -> Self {
        Self {
            images: vec![own],
            own: 0,
            sections,
            stubs: Stubs::default(),
            go: None,
        }
    }

    /// Adds a copy of the file's debug file, which tells more than the file itself.
    pub(super) fn add_first(&mut self, image: Image) {
        self.images.insert(0, image);
        self.own += 1;
    }

    /// Adds one that tells less.
    pub(super) fn add_last(&mut self, image: Image) {
        self.images.push(image);
    }

    /// Adds the stubs of the file.
    pub(super) fn add_stubs(&mut self, stubs: Stubs) {
        self.stubs = stubs;
    }

    /// Whether any of them has debug information.
    pub(super) fn has_debug(&self) -> bool {
        self.images.iter().any(|image| image.debug)
    }

    /// Adds Go's own table.
    pub(super) fn add_go(&mut self, table: GoTable) {
        self.go = Some(table);
    }

    /// Bytes of memory they take.
    pub(super) fn bytes(&self) -> u64 {
        let images: u64 = self.images.iter().map(|image| image.bytes).sum();
        let go = self.go.as_ref().map_or(0, GoTable::bytes);
        images + self.sections.bytes() + self.stubs.bytes() + go
    }

    /// How many have debug sections that are not used.
    pub(super) fn debug_skipped(&self) -> u64 {
        let skipped = self.images.iter().filter(|image| image.debug_skipped.is_some());
        skipped.count() as u64
    }

    /// What is at an address. `debug` allows for debug information where there is some.
    pub(super) fn look_up(
        &self,
        engine: &mut Engine,
        proc: &Path,
        debug: bool,
        address: u64,
    ) -> Result<Vec<Part>, Outcome> {
        if let Some(target) = self.stubs.at(address)
            && let Some(part) = self.stub(engine, proc, target)
        {
            return Ok(vec![part]);
        }
        // Before the symbol table, which has neither lines nor inlined functions.
        if let Some(go) = &self.go
            && let Some(parts) = go.look_up(&mut engine.names, address)
        {
            return Ok(parts);
        }
        let mut best: Result<Found, Outcome> = Err(Outcome::NoSymbol);
        for image in &self.images {
            match engine.elf(&image.path(proc), debug && image.debug, address) {
                // Where its section ends, so does a symbol without a size.
                Ok(found) if found.unsure && !self.sections.share(address, found.start) => {}
                // Each file leaves out what another has (the packed symbols leave out the exported ones), so the nearest
                // of two guesses is the right one.
                Ok(found) if found.unsure => {
                    if best.as_ref().map_or(true, |best| best.start < found.start) {
                        best = Ok(found);
                    }
                }
                Ok(found) => return Ok(found.parts),
                Err(Outcome::Panic) => return Err(Outcome::Panic),
                Err(why) if self.images.len() == 1 => best = Err(why),
                Err(_) => {}
            }
        }
        best.map(|found| found.parts).map_err(|why| {
            let failed = self.stubs.failed(address);
            failed.filter(|_| why == Outcome::NoSymbol).unwrap_or(why)
        })
    }

    /// A stub by what it leads to, as debuggers write it.
    fn stub(&self, engine: &mut Engine, proc: &Path, target: Target) -> Option<Part> {
        let name = match target {
            Target::Symbol(symbol) => {
                engine::demangled(&self.stubs.name(self.images.get(self.own)?, symbol)?)?
            }
            Target::Chosen(by) => self.images.iter().find_map(|image| {
                let found = engine.elf(&image.path(proc), false, by).ok()?;
                let function = found.parts.last()?.function.as_deref().map(str::to_owned);
                function.filter(|_| found.start == by)
            })?,
        };
        Some(Part {
            function: engine.names.share_stub(&name),
            file: None,
            line: 0,
            inlined: false,
        })
    }

    /// Drops what was parsed of them.
    pub(super) fn forget(&self, engine: &mut Engine, proc: &Path) {
        for image in &self.images {
            engine.forget(&image.path(proc));
        }
    }
}
