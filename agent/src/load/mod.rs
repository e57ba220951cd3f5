//! BPF object → attached probes, one verdict a program.

pub mod status;
