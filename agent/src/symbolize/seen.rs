//! Memory maps that the thread for unwind tables read, for the one that names stacks: a process may be gone when that comes
//! to its samples.

use std::sync::{Mutex, PoisonError};

use super::lru::Lru;
use super::maps::Mapping;
use super::process::ProcessKey;

/// Processes whose map is kept.
const MAX: usize = 256;

/// The maps that were read last.
#[derive(Debug)]
pub struct Seen(Mutex<Lru<ProcessKey, Vec<Mapping>>>);

impl Default for Seen {
    fn default() -> Self {
        Self(Mutex::new(Lru::new(MAX)))
    }
}

impl Seen {
    /// Keeps the map of a process.
    pub(super) fn keep(&self, key: ProcessKey, mappings: &[Mapping]) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.insert(key, mappings.to_vec());
    }

    /// The map of a process, once.
    pub(super) fn take(&self, key: ProcessKey) -> Option<Vec<Mapping>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&key)
    }
}
