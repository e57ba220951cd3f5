//! The heap profile that Go programs keep of themselves, read from outside: without stopping the program, without writing to it.
//!
//! Go's runtime samples one allocation in 512 KiB (`runtime.MemProfileRate`) and sums them by stack and size in buckets that it
//! never frees (`runtime/mprof.go`). They are read as `runtime.MemProfile` would, and scaled as `runtime/pprof` does. What counts is
//! the state at the end of the last garbage collection but one: what the runtime itself publishes.

mod layout;
mod read;
mod since;
#[cfg(test)]
mod tests;

pub use layout::Layout;
pub use since::{News, Since};

use std::io;

/// Why there is no profile.
#[derive(Debug)]
pub enum Refused {
    /// Not a Go program.
    NotGo,
    /// A Go program without a symbol table.
    NoSymbols,
    /// Its heap profile was never checked with this version of Go.
    Version(String),
    /// The program has no use for heap profiles, so that the linker left them out.
    NotLinked,
    /// The program has switched it off.
    Off,
    /// Go's runtime has not begun yet.
    Early,
    /// What was read makes no sense.
    Malformed(&'static str),
    /// It could not be read.
    Io(io::Error),
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotGo => write!(f, "no Go program"),
            Self::NoSymbols => write!(
                f,
                "a Go program without the symbols of its runtime, by which its heap profile is found"
            ),
            Self::Version(version) => write!(f, "heap profiles of {version} are not known"),
            Self::NotLinked => write!(
                f,
                "Go's linker left heap profiles out: nothing in the program calls runtime.MemProfile, as importing runtime/pprof does"
            ),
            Self::Off => write!(
                f,
                "the program has set runtime.MemProfileRate to 0 and keeps no heap profile"
            ),
            Self::Early => write!(f, "Go's runtime has not begun yet"),
            Self::Malformed(what) => write!(f, "the heap profile makes no sense: {what}"),
            Self::Io(error) => write!(f, "cannot read the process: {error}"),
        }
    }
}

impl std::error::Error for Refused {}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// The heap profile of a process.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GoHeap {
    /// Go's version, like `go1.19.8`.
    pub version: String,
    /// Bytes allocated between two samples, on average.
    pub rate: u64,
    /// When the runtime began, in nanoseconds of the monotonic clock.
    pub began_ns: u64,
    /// By stack and size of the allocations.
    pub buckets: Vec<Bucket>,
    /// All buckets were read; else the bound on their number or on the time was met.
    pub complete: bool,
}

/// What was sampled at one stack, for allocations of one size.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bucket {
    /// Where it is: it stays there.
    pub address: u64,
    /// Size of each allocation.
    pub size: u64,
    /// Return addresses, innermost first; calls that were inlined have entries of their own.
    pub stack: Vec<u64>,
    /// Sampled allocations.
    pub allocs: u64,
    /// Those of them that were freed.
    pub frees: u64,
    /// Bytes of the sampled allocations.
    pub alloc_bytes: u64,
    /// Bytes of those that were freed.
    pub free_bytes: u64,
    /// Allocations that were sampled since, and are not published before a collection has ended.
    pub newer: u64,
}

/// Estimated objects and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Amount {
    /// Objects.
    pub objects: f64,
    /// Bytes.
    pub bytes: f64,
}

impl Bucket {
    /// What a sampled allocation stands for.
    fn one(&self, rate: u64) -> Amount {
        scaled(1, self.size, rate)
    }

    /// What was allocated since the program began.
    #[must_use]
    pub fn allocated(&self, rate: u64) -> Amount {
        scaled(self.allocs, self.alloc_bytes, rate)
    }

    /// What of it is in use.
    #[must_use]
    pub fn in_use(&self, rate: u64) -> Amount {
        let objects = self.allocs.saturating_sub(self.frees);
        scaled(objects, self.alloc_bytes.saturating_sub(self.free_bytes), rate)
    }
}

/// An allocation of S bytes was sampled with the chance 1 - e^(-S/R): each sample stands for the inverse of that.
fn scaled(objects: u64, bytes: u64, rate: u64) -> Amount {
    if objects == 0 || bytes == 0 {
        return Amount::default();
    }
    let (objects, bytes) = (objects as f64, bytes as f64);
    if rate <= 1 {
        return Amount { objects, bytes };
    }
    let chance = -(-(bytes / objects) / rate as f64).exp_m1();
    Amount {
        objects: objects / chance,
        bytes: bytes / chance,
    }
}
