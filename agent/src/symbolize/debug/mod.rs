//! Debug information: files that hold it apart from the code, and what keeps a bad one from doing harm.

mod budget;
pub(super) mod nesting;
mod unpack;

pub(super) use budget::Budget;
pub(super) use unpack::{claimed, unpack};
