//! Tieback: an eBPF host profiling agent.
//!
//! One way through: kernel event → decode → attribute → symbolize → aggregate → export.

pub mod aggregate;
pub mod attribute;
pub mod cli;
pub mod config;
pub mod decode;
pub mod export;
pub mod governor;
pub mod host;
pub mod kernel;
pub mod load;
pub mod pipeline;
pub mod signals;
pub mod symbolize;
pub mod telemetry;
