//! Allocations: which allocator a process has, where to probe it, how long the probes may stay, and what lives on.

mod code;
mod duty;
mod functions;
mod live;
mod module;
mod results;
mod slowdown;
#[cfg(test)]
mod tests;

pub use code::Sites;
pub use duty::{Duty, Scale, Windows};
pub use functions::Family;
pub use live::{Live, age_class};
pub use module::{Allocator, Function};
pub use slowdown::Slowdown;

use crate::decode::model::{ALLOC_RANGES, AllocCall};
