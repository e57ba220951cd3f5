//! Frames of CPython: from the code objects that the kernel side found to functions and lines.
//!
//! The interpreter calls Python functions within one frame of its own as far as it can, so the frames of a stack belong
//! together in runs: each run is what one native frame of the interpreter's loop stands for, and takes its place.

mod find;
mod layout;
mod lines;
mod memory;
mod merge;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::frames::bare;
use super::lru::Lru;
use super::name::Names;
use super::process::ProcessKey;
use super::{Frame, PythonFrame, PythonStack};
use layout::Layout;
use memory::Memory;

pub(super) use find::Interpreters;
pub use find::NoFrames;
pub(super) use merge::{Runs, is_loop};

/// Module of the frames.
pub(super) const MODULE: &str = "[python]";
/// Bytes of the interpreter's loop within which it has entered its frame in the list of frames: 166 in 3.12.1.
pub(super) const ENTERS: u64 = 256;
/// Function and file of the code that calls `__init__` for the interpreter itself (since 3.12).
const INIT: &str = "__init__";
/// Code objects of all processes that are remembered.
const MAX_CODES: usize = 16_384;
/// Lines of each.
const MAX_LINES: usize = 64;
/// Bytes of a code object in which everything is that is read of it.
const CODE: usize = 144;

/// What a code object says of itself: others at the same address differ in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    file: u64,
    name: u64,
    lines: u64,
    first_line: u32,
}

/// A code object that was read.
#[derive(Debug)]
struct Code {
    identity: Identity,
    /// The last batch in which it was seen to be still the same.
    checked: u64,
    function: Option<Arc<str>>,
    file: Option<Arc<str>>,
    lines: BTreeMap<u32, u32>,
}

/// Code objects, by process and address.
#[derive(Debug)]
pub(super) struct Codes {
    known: Lru<(ProcessKey, u64), Code>,
    /// How many were found to be others than before.
    changes: u64,
    module: Arc<str>,
}

impl Default for Codes {
    fn default() -> Self {
        Self {
            known: Lru::new(MAX_CODES),
            changes: 0,
            module: MODULE.into(),
        }
    }
}

/// Whose code objects, and what they are read from.
#[derive(Debug)]
pub(super) struct Source {
    key: ProcessKey,
    /// None where the process is gone: what is known of it stays right.
    memory: Option<Memory>,
}

impl Source {
    pub(super) fn new(proc: &Path, key: ProcessKey, alive: bool) -> Self {
        Self {
            key,
            memory: alive.then(|| Memory::open(proc, key.1)).flatten(),
        }
    }
}

impl Codes {
    /// Looks whether the known code objects of a stack are still the same, once a batch; the answer changes when any is not.
    pub(super) fn version(&mut self, source: &Source, stack: &PythonStack, batch: u64) -> u64 {
        let (Some(layout), Some(memory)) = (layout::of(stack.minor), &source.memory) else {
            return self.changes;
        };
        for frame in &stack.frames {
            let key = (source.key, frame.code);
            let Some(code) = self.known.get(&key).filter(|code| code.checked != batch) else {
                continue;
            };
            code.checked = batch;
            if identity(memory, layout, frame.code) != Some(code.identity) {
                self.known.remove(&key);
                self.changes += 1;
            }
        }
        self.changes
    }

    /// Names the frames of a stack; also tells whether all have names. [`Self::version`] goes before.
    pub(super) fn runs(
        &mut self,
        source: &Source,
        names: &mut Names,
        stack: &PythonStack,
        batch: u64,
    ) -> (Runs, bool) {
        let (mut runs, mut all) = (Runs::default(), true);
        let Some(layout) = layout::of(stack.minor) else {
            return (runs, all);
        };
        if stack.returned && !stack.frames.is_empty() {
            runs.runs.push_back(Vec::new());
        }
        let (mut run, mut whole) = (Vec::new(), stack.whole);
        for frame in &stack.frames {
            let offset = u64::from(frame.instruction) * 2 + u64::from(layout.process.code_instructions);
            let base = bare(&self.module, frame.code.wrapping_add(offset));
            let named = self.named(source, names, layout, frame, batch);
            all &= named.is_some();
            // What is no code object, or no more, says nothing of what is behind it.
            if named.is_none() && source.memory.is_some() {
                whole = false;
                break;
            }
            let (function, file, line) = named.unwrap_or_default();
            if (function.as_deref(), file.as_deref()) != (Some(INIT), Some(INIT)) {
                run.push(Frame {
                    function,
                    file,
                    line,
                    ..base
                });
            }
            if frame.entry {
                runs.runs.push_back(std::mem::take(&mut run));
            }
        }
        // A list that ends within a run was read while it was changed, or is longer than what is read.
        runs.cut = !stack.frames.is_empty() && (!whole || !run.is_empty());
        if runs.cut {
            runs.runs.push_back(run);
        }
        (runs, all)
    }

    fn named(
        &mut self,
        source: &Source,
        names: &mut Names,
        layout: &Layout,
        frame: &PythonFrame,
        batch: u64,
    ) -> Option<Named> {
        let key = (source.key, frame.code);
        if !self.known.contains(&key) {
            let memory = source.memory.as_ref()?;
            let identity = identity(memory, layout, frame.code)?;
            let code = Code {
                identity,
                checked: batch,
                function: names.share_as_is(&memory.text(identity.name, layout)?),
                file: names.share_as_is(&memory.text(identity.file, layout)?),
                lines: BTreeMap::new(),
            };
            self.known.insert(key, code);
        }
        let code = self.known.get(&key)?;
        let line = match (code.lines.get(&frame.instruction), &source.memory) {
            (Some(line), _) => *line,
            (None, None) => 0,
            (None, Some(memory)) => {
                let line = line(memory, code.identity, frame.instruction);
                if code.lines.len() >= MAX_LINES {
                    code.lines.clear();
                }
                code.lines.insert(frame.instruction, line);
                line
            }
        };
        Some((code.function.clone(), code.file.clone(), line))
    }
}

/// Function, file and line of a frame.
type Named = (Option<Arc<str>>, Option<Arc<str>>, u32);

/// Reads a code object; `None` for anything else.
fn identity(memory: &Memory, layout: &Layout, address: u64) -> Option<Identity> {
    let code: [u8; CODE] = memory.read(address)?;
    let word = |at: usize| Some(u64::from_ne_bytes(code.get(at..at + 8)?.try_into().ok()?));
    if !memory.is_type_of_code(word(8)?) {
        return None;
    }
    Some(Identity {
        file: word(layout.code_file)?,
        name: word(layout.code_name)?,
        lines: word(layout.code_lines)?,
        first_line: u32::from_ne_bytes(code.get(layout.code_line..)?.first_chunk().copied()?),
    })
}

/// The line of an instruction, 0 where that is not known. Before the first instruction a function begins.
fn line(memory: &Memory, code: Identity, instruction: u32) -> u32 {
    if instruction.cast_signed() < 0 {
        return code.first_line;
    }
    let table = memory.bytes(code.lines).unwrap_or_default();
    lines::line(&table, code.first_line, instruction).unwrap_or(0)
}
