//! Pools: how the connections of a program with a peer are used, from samples of the open ones.
//!
//! A sample costs about a microsecond for each end of a connection, so their number decides how often one is taken. Between two samples
//! everything is taken to have been as at the later one; samples come at irregular times, so that no period of a program
//! hides between them.

mod listen;
mod names;
mod pace;
mod pools;
mod unix;

pub use listen::Queues;
pub use pace::Pace;
pub use pools::Pools;
pub use unix::UnixConnections;
