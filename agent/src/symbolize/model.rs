//! What the symbolizer hands on.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use super::{Service, SharedStack, StackDetail, StackKind};

/// One resolved frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Demangled function; `None` when no symbol covers the address.
    pub function: Option<Arc<str>>,
    /// Source file, as the debug information writes it.
    pub file: Option<Arc<str>>,
    /// Source line, 0 when unknown.
    pub line: u32,
    /// Path of the module as the process sees it, `[kernel]`, `[vdso]`, `[jit]`, or `[unknown]`.
    pub module: Arc<str>,
    /// Build id of the module in hex.
    pub build_id: Option<Arc<str>>,
    /// Address in the module's own address space: file address for ELF (offset in the file while the file cannot be
    /// read), else the address in the process. Of a caller it is within the call, one byte before the return address.
    pub address: u64,
    /// Inlined into the next outer frame.
    pub inlined: bool,
    /// A kernel frame.
    pub kernel: bool,
}

/// Where two frames are the same here, they almost always are; whole stacks are hashed, frame by frame.
impl Hash for Frame {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.address, self.line, self.inlined).hash(state);
    }
}

/// The frame that answers "which code of the service did it".
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Owner {
    /// Function, or `(unknown)`.
    pub function: Arc<str>,
    /// Base path of the source file, else the module; empty only when nothing at all is known.
    pub file: Arc<str>,
}

/// A resolved stack.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Stack {
    /// Innermost first: kernel frames, then user frames. Those of the symbolizer are shared by all stacks that have them.
    pub frames: Box<[Arc<Frame>]>,
    /// The owning frame.
    pub owner: Owner,
    /// The waiting is idleness (a condition variable, a parked worker, a thread join) although the kernel saw a futex.
    pub idle: bool,
    /// The walk did not reach the thread's entry.
    pub truncated: bool,
}

impl Stack {
    /// The line at which the owning frame is: that of the innermost frame with its name; 0 where nobody knows.
    #[must_use]
    pub fn owner_line(&self) -> u32 {
        let owner = Some(&self.owner.function);
        let mut frames = self.frames.iter();
        frames
            .find(|frame| frame.function.as_ref() == owner)
            .map_or(0, |frame| frame.line)
    }
}

/// A stack sample, attributed and resolved.
#[derive(Clone, Debug)]
pub struct SymbolizedSample {
    /// Whose.
    pub service: Arc<Service>,
    /// What it tells about.
    pub kind: StackKind,
    /// More on it.
    pub detail: StackDetail,
    /// Weight in the unit of the kind.
    pub weight: f64,
    /// The part of `weight` that was measured on this very event.
    pub own: f64,
    /// The stack.
    pub stack: SharedStack,
}
