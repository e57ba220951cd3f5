//! The files that together say what is at an address: the mapped one, its debug file, what is packed in it.

use std::path::Path;

use super::Outcome;
use super::engine::{Engine, Found, Part};
use super::go::GoTable;
use super::image::Image;

/// Copies of the files of one module, the most telling first.
#[derive(Debug)]
pub(super) struct Layers {
    images: Vec<Image>,
    /// Go's own table, where nothing else has lines.
    go: Option<GoTable>,
}

impl Layers {
    pub(super) fn new(images: Vec<Image>) -> Self {
        Self { images, go: None }
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
        images + self.go.as_ref().map_or(0, GoTable::bytes)
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
        // Before the symbol table, which has neither lines nor inlined functions.
        if let Some(go) = &self.go
            && let Some(parts) = go.look_up(&mut engine.names, address)
        {
            return Ok(parts);
        }
        let mut best: Result<Found, Outcome> = Err(Outcome::NoSymbol);
        for image in &self.images {
            match engine.elf(&image.path(proc), debug && image.debug, address) {
                // Each file leaves out what another has (the packed symbols leave out the exported ones), so the nearest
                // of two guesses is the right one.
                Ok(found) if found.unsure => {
                    if best.as_ref().map_or(true, |best| best.start < found.start) {
                        best = Ok(found);
                    }
                }
                Ok(found) => return Ok(found.parts),
                Err(Outcome::Panic) => return Err(Outcome::Panic),
                Err(why) if self.images.len() == 1 => return Err(why),
                Err(_) => {}
            }
        }
        best.map(|found| found.parts)
    }

    /// Drops what was parsed of them.
    pub(super) fn forget(&self, engine: &mut Engine, proc: &Path) {
        for image in &self.images {
            engine.forget(&image.path(proc));
        }
    }
}
