//! Pieces that the programs share; BPF target only.

pub(crate) mod adopt;
pub(crate) mod behind;
pub(crate) mod conn;
pub(crate) mod count;
pub(crate) mod file;
pub(crate) mod forecast;
pub(crate) mod listen;
mod measure;
mod modules;
pub(crate) mod python;
pub(crate) mod random;
pub(crate) mod sample;
pub(crate) mod sock;
pub(crate) mod state;
pub(crate) mod tables;
pub(crate) mod task;
pub(crate) mod unix;
pub(crate) mod unwind;
