//! Logic of single signals between decode and attribute.

pub mod alloc;
pub mod conn;
pub mod go_heap;
pub mod growth;
