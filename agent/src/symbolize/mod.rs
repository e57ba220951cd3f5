//! Stacks → frames with names, and the owning frame of each stack.

use std::sync::Arc;

pub mod model;
pub use model::{Frame, Owner, Stack, SymbolizedSample};

/// What later stages need of earlier ones: stages import only their neighbour.
pub use crate::attribute::{Cause, Service, StackDetail, StackKind};

/// A shared, resolved stack.
pub type SharedStack = Arc<Stack>;
