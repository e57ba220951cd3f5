//! Unwind tables: from the call frame information of an executable to rows that the kernel side searches.

mod ahead;
mod arena;
mod cfi;
mod code;
mod effect;
mod entries;
mod files;
mod frames;
mod functions;
mod large;
mod loader;
mod merge;
mod python;
mod read;
mod rules;
mod table;
mod tables;
#[cfg(test)]
mod tests;
mod unsupported;

pub(super) use files::Files;
pub use large::{Job, Made};
pub use loader::{Loader, LoaderStats};
pub use read::{Built, Refused, build};
pub use rules::Rules;
pub use table::Table;
pub use tables::{Mapped, Sink, Tables};
pub use unsupported::{Unsupported, UnsupportedRows};
