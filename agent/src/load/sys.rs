//! The bpf(2) calls that aya lacks.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

const BPF_MAP_DELETE_ELEM: libc::c_long = 3;

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
