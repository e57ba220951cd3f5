//! pid → process → container → service and release.

pub mod service;
pub use service::{Service, ServiceInfo};

/// What later stages need of `decode`: stages import only their neighbour.
pub use crate::decode::model::{Cause, SlotId, StackDetail, StackKind, StackSample};
