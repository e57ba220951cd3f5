//! aggregate

/// What later stages need of earlier ones: stages import only their neighbour.
pub use crate::symbolize::{Cause, Frame, Owner, Service, SharedStack, Stack, StackDetail, StackKind};
