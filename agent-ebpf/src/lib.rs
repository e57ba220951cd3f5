//! Tieback's kernel side.
//!
//! The library also compiles for the host, where it holds what both sides share: the wire types, the list of kernel
//! fields and the descriptions of the probes. Programs and maps exist for the BPF target only.
#![no_std]
#![cfg_attr(
    target_arch = "bpf",
    feature(asm_experimental_arch, core_intrinsics),
    expect(
        internal_features,
        reason = "the non-returning atomic add exists as an intrinsic only"
    )
)]
#![cfg_attr(
    target_arch = "bpf",
    expect(
        clippy::needless_pass_by_value,
        reason = "aya's attributes want contexts by value"
    )
)]
#![cfg_attr(
    target_arch = "bpf",
    expect(
        clippy::needless_borrows_for_generic_args,
        reason = "a key or value by value is one more copy on a stack of 512 bytes"
    )
)]

#[cfg(target_arch = "bpf")]
mod bpf;
pub mod classes;
pub mod offsets;
pub mod probe;
pub mod probes;
pub mod wire;
