//! Programs with known answers: each prints the truth about itself as JSON.

pub mod cpu;
pub mod disk;
pub mod gate;
pub mod memory;
pub mod raw;
pub mod syscalls;
pub mod wait;
