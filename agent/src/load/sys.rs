//! The bpf(2) calls that aya lacks.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

const BPF_MAP_DELETE_ELEM: libc::c_long = 3;
const BPF_PROG_TEST_RUN: libc::c_long = 10;

/// The part of `union bpf_attr` that names an element (linux/bpf.h).
#[repr(C)]
struct Element {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Removes the element of an array of maps.
pub(super) fn clear(map: BorrowedFd<'_>, index: u32) -> io::Result<()> {
    let element = Element {
        map_fd: map.as_raw_fd() as u32,
        pad: 0,
        key: (&raw const index) as u64,
        value: 0,
        flags: 0,
    };
    // SAFETY: the kernel reads `element` and the four bytes of the key, which live until the call returns.
    let done = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_MAP_DELETE_ELEM,
            &raw const element,
            size_of::<Element>(),
        )
    };
    if done < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// The part of `union bpf_attr` that runs a program.
#[repr(C)]
#[derive(Default)]
struct Run {
    prog_fd: u32,
    retval: u32,
    data: [u64; 3],
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    pad: u32,
}

/// Runs a program of a raw tracepoint once, here and now.
pub(super) fn run(program: BorrowedFd<'_>, arguments: [u64; 2]) -> io::Result<()> {
    let mut run = Run {
        prog_fd: program.as_raw_fd() as u32,
        ctx_size_in: size_of_val(&arguments) as u32,
        ctx_in: (&raw const arguments) as u64,
        ..Run::default()
    };
    // SAFETY: the kernel reads `arguments`, and reads and writes `run`; both live until the call returns.
    let done = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_TEST_RUN, &raw mut run, size_of::<Run>()) };
    if done < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
