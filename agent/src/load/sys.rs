//! The bpf(2) calls that aya lacks.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

const BPF_MAP_DELETE_ELEM: libc::c_long = 3;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_ITER_CREATE: libc::c_long = 33;
const BPF_TRACE_ITER: u32 = 28;

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

/// The part of `union bpf_attr` that makes a link of an iterator.
#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
    iter_info: u64,
    iter_info_len: u32,
    pad: u32,
}

/// `union bpf_iter_link_info`: for `bpf_map_elem`, the map.
#[repr(C)]
struct IterInfo {
    map_fd: u32,
    rest: [u32; 3],
}

/// The part of `union bpf_attr` that opens an iterator.
#[repr(C)]
struct IterCreate {
    link_fd: u32,
    flags: u32,
}

/// A descriptor that a bpf(2) call returned.
fn descriptor(result: libc::c_long) -> io::Result<OwnedFd> {
    match libc::c_int::try_from(result) {
        // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Ties an iterator over the elements of maps to one map.
pub(super) fn link_over(program: BorrowedFd<'_>, map: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let info = IterInfo {
        map_fd: map.as_raw_fd() as u32,
        rest: [0; 3],
    };
    let create = LinkCreate {
        prog_fd: program.as_raw_fd() as u32,
        target_fd: 0,
        attach_type: BPF_TRACE_ITER,
        flags: 0,
        iter_info: (&raw const info) as u64,
        iter_info_len: size_of::<IterInfo>() as u32,
        pad: 0,
    };
    // SAFETY: the kernel reads `create` and `info`, which live until the call returns.
    descriptor(unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_LINK_CREATE,
            &raw const create,
            size_of::<LinkCreate>(),
        )
    })
}

/// Runs an iterator once and adds what it writes to `bytes`.
pub(super) fn run_iterator(link: BorrowedFd<'_>, bytes: &mut Vec<u8>) -> io::Result<()> {
    let create = IterCreate {
        link_fd: link.as_raw_fd() as u32,
        flags: 0,
    };
    // SAFETY: the kernel reads `create`, which lives until the call returns.
    let iterator = descriptor(unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_ITER_CREATE,
            &raw const create,
            size_of::<IterCreate>(),
        )
    })?;
    // As much as the kernel gathers for one read (eight pages, kernel/bpf/bpf_iter.c).
    let mut part = [0; 32 << 10];
    loop {
        match rustix::io::retry_on_intr(|| rustix::io::read(&iterator, &mut part[..]))? {
            0 => return Ok(()),
            read => bytes.extend_from_slice(&part[..read]),
        }
    }
}
