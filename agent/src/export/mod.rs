//! export
pub mod profile;
