//! Debug information: files that hold it apart from the code, and what keeps a bad one from doing harm.

mod budget;
mod cache;
mod debuginfod;
mod lines;
mod link;
mod minimal;
pub(super) mod nesting;
mod ranges;
mod separate;
mod unpack;

use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::FileExt;

pub(super) use budget::Budget;
pub(super) use unpack::{claimed, unpack};

use debuginfod::Client;

use super::cpu_time::CpuTime;
use super::go::GoTable;
use super::headers::Headers;
use super::image::Image;
use super::layers::Layers;
use super::module::Via;
use super::sections::Sections;
use super::stubs::Stubs;
use super::{DebugFile, Fetched, Outcome, SymbolizerConfig};

/// Finds what belongs to a file, and counts.
#[derive(Debug, Default)]
pub(super) struct DebugFiles {
    pub(super) counts: [u64; DebugFile::ALL.len()],
    client: Option<Client>,
}

impl DebugFiles {
    /// Starts fetching, where servers are named.
    pub(super) fn start(config: &SymbolizerConfig) -> Self {
        let client = (!config.debuginfod.urls.is_empty()).then(|| Client::start(&config.debuginfod));
        let client = client.transpose().unwrap_or_else(|error| {
            tracing::warn!(%error, "debug files are not fetched: no thread for it");
            None
        });
        Self {
            client,
            ..Self::default()
        }
    }

    /// Build ids whose debug files have come since the last call.
    pub(super) fn fetched(&self) -> HashSet<String> {
        self.client.as_ref().map(Client::fetched).unwrap_or_default()
    }

    /// Requests so far, by result.
    pub(super) fn requests(&self) -> [u64; Fetched::ALL.len()] {
        let count = |result| self.client.as_ref().map_or(0, |client| client.count(result));
        Fetched::ALL.map(count)
    }

    /// A file's own copy together with what its debug file and its packed symbols add to it.
    pub(super) fn complete(
        &mut self,
        config: &SymbolizerConfig,
        via: Via<'_>,
        file: &File,
        headers: &Headers,
        own: Image,
        until: CpuTime,
    ) -> Layers {
        let wanted = Wanted {
            symbols: !headers.has(".symtab"),
            lines: !headers.has(".debug_info"),
        };
        let mut layers = Layers::new(own, Sections::of(headers));
        layers.add_stubs(Stubs::read(file, headers, until));
        let mut symbols = !wanted.symbols;
        if wanted.symbols || wanted.lines {
            match separate::find(self, config, via, file, headers, wanted, until) {
                Some((image, has_symbols)) => {
                    symbols |= has_symbols;
                    layers.add_first(image);
                }
                None => self.count(DebugFile::None),
            }
        }
        if !symbols {
            match minimal::read(config, file, headers, until) {
                Ok(Some(image)) => {
                    self.count(DebugFile::DebugData);
                    layers.add_last(image);
                }
                Ok(None) => {}
                Err(why) => self.count(DebugFile::of(why)),
            }
        }
        layers
    }

    /// Counts what the search for a table of Go's came to.
    pub(super) fn count_go(&mut self, table: &Result<Option<GoTable>, Outcome>) {
        match table {
            Ok(Some(_)) => self.count(DebugFile::GoTable),
            Ok(None) => {}
            Err(why) => self.count(DebugFile::of(*why)),
        }
    }

    fn count(&mut self, what: DebugFile) {
        self.counts[what as usize] += 1;
    }
}

/// What a mapped file lacks.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    symbols: bool,
    lines: bool,
}

impl Wanted {
    /// Whether a file has any of it.
    fn in_file(self, headers: &Headers) -> bool {
        (self.symbols && headers.has(".symtab")) || (self.lines && headers.has(".debug_info"))
    }
}

/// What a small section holds.
fn section(file: &File, headers: &Headers, name: &str, max: u64) -> Option<Vec<u8>> {
    let (offset, size) = headers.range(name).filter(|(_, size)| *size <= max)?;
    let mut bytes = vec![0; usize::try_from(size).ok()?];
    file.read_exact_at(&mut bytes, offset).ok()?;
    Some(bytes)
}

impl DebugFile {
    /// Why a file could not be used.
    fn of(why: Outcome) -> Self {
        match why {
            Outcome::TooLarge => Self::TooLarge,
            Outcome::TooSlow => Self::TooSlow,
            _ => Self::Malformed,
        }
    }
}
