//! Allocations: which allocator a process has, where to probe it, how long the probes may stay, and what lives on.

mod ages;
mod code;
mod duty;
mod functions;
mod live;
mod module;
mod results;
mod scale;
mod slowdown;
#[cfg(test)]
mod tests;

#[cfg(test)]
pub(crate) use ages::living;
pub use ages::{Lives, age_class};
pub use code::Sites;
pub use duty::{Duty, windows_cost};
pub use functions::Family;
pub use live::Live;
pub use module::{Allocator, Function};
pub use scale::{Scale, Seen, Windows};
pub use slowdown::Slowdown;

use crate::decode::model::{ALLOC_RANGES, AllocCall, AllocSite};

/// Why a function is not probed of which nothing is missing.
const COUNTS_ELSEWHERE: &str = "it leaves its work to another function, where it counts";

impl Allocator {
    /// Functions of which nothing is seen, and why: what they allocate is missing, and what they free seems to live.
    pub fn not_understood(&self) -> impl Iterator<Item = String> {
        let missing = self.refused.iter().filter(|(_, why)| *why != COUNTS_ELSEWHERE);
        missing.map(|(name, why)| format!("{name}: {why}"))
    }
}

impl Function {
    /// What its probe is told, where it counts for a target; pointers are wanted where allocations are followed (`live`).
    #[must_use]
    pub fn site(&self, target: u32, live: bool) -> AllocSite {
        AllocSite {
            call: self.call,
            pushed: self.sites.pushed,
            target: target as u16,
            forwards_null: self.forwards_null,
            forwards_aligned: self.forwards_aligned,
            live,
            arguments: self.sites.arguments,
        }
    }
}
