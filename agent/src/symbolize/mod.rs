//! Stacks → frames with names, and the owning frame of each stack.

use std::sync::Arc;

pub mod model;
pub use model::{Frame, Owner, Stack, SymbolizedSample};

/// What later stages need of earlier ones: stages import only their neighbour.
pub use crate::attribute::{
    AttributedTick, Cause, ConnFailure, ConnTotals, Direction, DiskOp, DiskTotals, FdKind, HISTOGRAM_BUCKETS,
    Histogram, MemoryKind, Peer, Service, ServiceInfo, StackDetail, StackKind, SyscallTotals, Totals,
};

/// A shared, resolved stack.
pub type SharedStack = Arc<Stack>;
