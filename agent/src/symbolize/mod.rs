//! Stacks → frames with names, and the owning frame of each stack.
//!
//! [`Symbolizer`] lives on a thread of its own (it is not `Send`): addresses are looked up in a copy of the process's
//! memory map, the file behind a mapping is copied piece by piece (symbols and debug sections only) into memory that
//! nobody else can change, and blazesym reads that copy. So a file that is truncated, replaced, endless or no file at
//! all costs a counter, not the agent.

use std::sync::Arc;

pub mod model;
pub mod owner;
pub mod unwind;

mod captured;
mod config;
mod cpu_time;
mod debug;
mod engine;
mod frames;
mod go;
mod headers;
mod image;
mod kallsyms;
mod kernel;
mod layers;
mod lru;
mod mangled;
mod maps;
mod module;
mod name;
mod open;
mod perf_map;
mod pool;
mod process;
mod python;
mod reading;
mod resolver;
mod sections;
mod seen;
mod segments;
mod stats;
mod stubs;
#[cfg(test)]
mod tests;

pub use config::{DebuginfodConfig, SymbolizerConfig};
pub use model::{Frame, Owner, Stack, SymbolizedSample};
pub use owner::OwnerRule;
pub use python::NoFrames;
pub use resolver::Symbolizer;
pub use seen::Seen;
pub use stats::{DebugFile, Fetched, Outcome, Owned, SymbolizeStats};

/// What later stages need of earlier ones: stages import only their neighbour.
pub use crate::attribute::{
    AGES, AttributedTick, CapturedCode, CapturedFile, CapturedModule, Cause, ConnEnd, ConnFailure,
    ConnTotals, Direction, DiskOp, DiskTotals, FdForecast, FdKind, HISTOGRAM_BUCKETS, Histogram,
    ListenTotals, Living, MemoryKind, OomVictim, Peer, PoolPeer, PoolTotals, PythonFrame, PythonStack,
    Service, ServiceInfo, SlotId, StackDetail, StackKind, StackSample, Stall, SyscallTotals, Totals,
    UnwindResult,
};

/// A shared, resolved stack.
pub type SharedStack = Arc<Stack>;
