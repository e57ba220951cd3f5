//! Userspace logic of those signals that need any, one folder each.

pub mod alloc;
pub mod conn;
pub mod fd;
pub mod go_heap;
pub mod growth;
