//! Logic of single signals between decode and attribute.

pub mod conn;
