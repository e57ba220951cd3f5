//! Programs with known answers: each prints the truth about itself as JSON.

mod anon;
pub mod confined;
pub mod conn;
pub mod cpu;
pub mod crowd;
pub mod disk;
pub mod fds;
pub mod gate;
pub mod handover;
pub mod link;
pub mod loops;
pub mod memory;
pub mod mixture;
pub mod net;
pub mod openers;
pub mod pool;
pub mod process;
pub mod raw;
pub mod syscalls;
pub mod unix;
pub mod wait;
