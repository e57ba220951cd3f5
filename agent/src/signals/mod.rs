//! Logic of single signals between decode and attribute.

pub mod conn;
pub mod growth;
