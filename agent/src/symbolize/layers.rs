//! The files that together say what is at an address: the mapped one, its debug file, what is packed in it.

use std::path::Path;

use super::Outcome;
use super::engine::{Engine, Found, Part};
use super::image::Image;

/// Copies of the files of one module, the most telling first.
#[derive(Debug)]
pub(super) struct Layers(Vec<Image>);

impl Layers {
    pub(super) fn new(images: Vec<Image>) -> Self {
        Self(images)
    }

    /// Bytes of memory they take.
    pub(super) fn bytes(&self) -> u64 {
        self.0.iter().map(|image| image.bytes).sum()
    }

    /// How many have debug sections that are not used.
    pub(super) fn debug_skipped(&self) -> u64 {
        let skipped = self.0.iter().filter(|image| image.debug_skipped.is_some());
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
        let mut best: Result<Found, Outcome> = Err(Outcome::NoSymbol);
        for image in &self.0 {
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
                Err(why) if self.0.len() == 1 => return Err(why),
                Err(_) => {}
            }
        }
        best.map(|found| found.parts)
    }

    /// Drops what was parsed of them.
    pub(super) fn forget(&self, engine: &mut Engine, proc: &Path) {
        for image in &self.0 {
            engine.forget(&image.path(proc));
        }
    }
}
