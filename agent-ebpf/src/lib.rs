//! Tieback's kernel side.
//!
//! The library also compiles for the host, where it holds what both sides share: the wire types, the list of kernel
//! fields and the descriptions of the probes. Programs and maps exist for the BPF target only.
#![no_std]
#![cfg_attr(
    target_arch = "bpf",
    expect(
        internal_features,
        reason = "the non-returning atomic add exists as an intrinsic only"
    ),
    feature(core_intrinsics)
)]

#[cfg(target_arch = "bpf")]
mod bpf;
pub mod classes;
pub mod offsets;
pub mod probe;
pub mod probes;
pub mod wire;
