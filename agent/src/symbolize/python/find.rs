//! Which processes run CPython, and where it has its threads: for the kernel side.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use agent_ebpf::wire::python::{PYTHON_PROCESSES, PythonProcess};
use agent_ebpf::wire::unwind::SpaceKey;
use anyhow::Result;

use super::super::headers::{FileIdentity, Headers};
use super::super::lru::Lru;
use super::super::maps::Mapping;
use super::super::unwind::{Files, Sink};
use super::layout::{self, OLDEST};
use super::memory::Memory;

/// Tables of symbols larger than this are none of an interpreter's: those of 3.11 to 3.13 have 50 KB.
const MAX_TABLE: u64 = 4 << 20;
/// Size of an entry of the table.
const SYMBOL: usize = 24;
/// The result where frames are walked.
const WALKED: &str = "walked";
/// Files whose symbols are remembered.
const MAX_FILES: usize = 256;

/// Why frames of an interpreter cannot be walked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NoFrames {
    /// It does not say its version: older than 3.11.
    Old,
    /// A version whose layout is not known.
    Version(u8, u8),
    /// It says that it has another layout than its version has, or no global lock.
    Layout,
    /// Its memory cannot be read.
    Memory,
}

impl NoFrames {
    /// As a label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Old => "old",
            Self::Version(..) => "version",
            Self::Layout => "layout",
            Self::Memory => "memory",
        }
    }
}

impl fmt::Display for NoFrames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Old => write!(f, "older than 3.{OLDEST}"),
            Self::Version(major, minor) => write!(f, "the layout of {major}.{minor} is not known"),
            Self::Layout => write!(f, "another layout than that of its version, or no global lock"),
            Self::Memory => write!(f, "its memory cannot be read"),
        }
    }
}

/// Addresses of an interpreter's file.
#[derive(Clone, Copy, Debug)]
struct Symbols {
    runtime: u64,
    version: Option<u64>,
}

/// The interpreters of all programs that were looked at.
#[derive(Debug)]
pub(in super::super) struct Interpreters {
    /// What their files export.
    files: Lru<FileIdentity, Option<Symbols>>,
    /// Slots with an interpreter, and why its frames are not walked.
    slots: HashMap<u32, Result<(), NoFrames>>,
    /// How often each of these came of a program image.
    results: HashMap<&'static str, u64>,
}

impl Default for Interpreters {
    fn default() -> Self {
        Self {
            files: Lru::new(MAX_FILES),
            slots: HashMap::new(),
            results: HashMap::new(),
        }
    }
}

impl Interpreters {
    /// Looks for an interpreter among the mappings of a process until there is one whose frames can be walked; tells whether
    /// there is one that has to be looked at again.
    pub(in super::super) fn look<S: Sink>(
        &mut self,
        files: &mut Files,
        sink: &mut S,
        key: SpaceKey,
        mappings: &[Mapping],
    ) -> Result<bool> {
        if self.slots.get(&key.slot) == Some(&Ok(())) || self.slots.len() >= PYTHON_PROCESSES as usize {
            return Ok(false);
        }
        let found = mappings
            .iter()
            .filter(|mapping| may_be(&mapping.path))
            .find_map(|mapping| self.interpreter(files, key.pid, mapping));
        let Some(found) = found else {
            return Ok(false);
        };
        let why = found.map(|_| ());
        if self.slots.insert(key.slot, why) != Some(why) {
            let result = why.map_or_else(NoFrames::as_str, |()| WALKED);
            *self.results.entry(result).or_default() += 1;
            if let Err(why) = why {
                tracing::debug!(pid = key.pid, %why, "frames of Python are not walked");
            }
        }
        match found {
            Ok(process) => sink.python(key.slot, Some(process)).map(|()| false),
            // A program that still loads its libraries can look like that, but then it will have other mappings. What cannot
            // be read now may be without.
            Err(why) => Ok(why == NoFrames::Memory),
        }
    }

    /// Program images with an interpreter, by whether its frames are walked or why not.
    pub(in super::super) fn results(&self) -> &HashMap<&'static str, u64> {
        &self.results
    }

    /// A program image ended.
    pub(in super::super) fn closed<S: Sink>(&mut self, sink: &mut S, slot: u32) -> Result<()> {
        match self.slots.remove(&slot) {
            Some(Ok(())) => sink.python(slot, None),
            _ => Ok(()),
        }
    }

    /// The interpreter that a mapped file is, or why it is of no use; `None` for a file that is none.
    pub(super) fn interpreter(
        &mut self,
        files: &mut Files,
        pid: u32,
        mapping: &Mapping,
    ) -> Option<Result<PythonProcess, NoFrames>> {
        let (file, identity) = files.open(pid, mapping)?;
        let bias = files.headers(&file, identity)?.bias(mapping)?;
        let known = self.files.get(&identity).copied();
        let symbols = known.unwrap_or_else(|| {
            let found = symbols(&file);
            self.files.insert(identity, found);
            found
        })?;
        Some(interpreter(&files.config.proc, pid, symbols, bias))
    }
}

/// Whether a file may be an interpreter's, by its name: `python3.11`, `libpython3.12.so.1.0`.
fn may_be(path: &str) -> bool {
    path.rsplit('/')
        .next()
        .is_some_and(|name| name.contains("python"))
}

/// `bias` is what to subtract from an address of the file.
fn interpreter(proc: &Path, pid: u32, symbols: Symbols, bias: u64) -> Result<PythonProcess, NoFrames> {
    let memory = Memory::open(proc, pid).ok_or(NoFrames::Memory)?;
    let version = symbols.version.ok_or(NoFrames::Old)?.wrapping_sub(bias);
    // `PY_VERSION_HEX`: major, minor, micro and level, a byte each.
    let version = memory
        .read(version)
        .map(u32::from_ne_bytes)
        .ok_or(NoFrames::Memory)?;
    let [major, minor, ..] = version.to_be_bytes();
    let known = Some(minor)
        .filter(|_| major == 3)
        .and_then(|minor| layout::of(minor.into()));
    let layout = known.ok_or(NoFrames::Version(major, minor))?;
    let runtime = symbols.runtime.wrapping_sub(bias);
    if minor >= 13 {
        let told = memory.read(runtime).ok_or(NoFrames::Memory)?;
        if !layout::agrees(layout, &told) {
            return Err(NoFrames::Layout);
        }
    }
    Ok(PythonProcess {
        head: runtime.wrapping_add(layout.head),
        ..layout.process
    })
}

/// What a file exports of an interpreter.
fn symbols(file: &File) -> Option<Symbols> {
    let headers = Headers::read(file).ok()?;
    let read = |name: &str| {
        let (offset, size) = headers.range(name).filter(|(_, size)| *size <= MAX_TABLE)?;
        let mut bytes = vec![0; usize::try_from(size).ok()?];
        file.read_exact_at(&mut bytes, offset).ok()?;
        Some(bytes)
    };
    let (table, names) = (read(".dynsym")?, read(".dynstr")?);
    let mut found: HashMap<&[u8], u64> = HashMap::new();
    for entry in table.chunks_exact(SYMBOL) {
        let name = u32::from_le_bytes(entry.first_chunk().copied().unwrap_or_default());
        let rest = usize::try_from(name)
            .ok()
            .and_then(|at| names.get(at..))
            .unwrap_or_default();
        for wanted in [&b"_PyRuntime"[..], b"Py_Version"] {
            if rest
                .strip_prefix(wanted)
                .is_some_and(|rest| rest.first() == Some(&0))
            {
                let value = entry.get(8..16).and_then(|value| value.try_into().ok());
                // One that is only used has no address.
                let value = value.map(u64::from_le_bytes).filter(|value| *value != 0);
                found.extend(value.map(|value| (wanted, value)));
            }
        }
    }
    Some(Symbols {
        runtime: *found.get(&b"_PyRuntime"[..])?,
        version: found.get(&b"Py_Version"[..]).copied(),
    })
}
