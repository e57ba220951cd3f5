//! The bpf(2) calls for uprobe-multi links, which aya neither makes nor loads programs for.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use aya_obj::generated::bpf_insn;

use super::super::sys::bpf;

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_BTF_LOAD: libc::c_long = 18;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_PROG_TYPE_KPROBE: u32 = 2;
const BPF_TRACE_UPROBE_MULTI: u32 = 48;

/// Room for what the verifier says.
const LOG_BYTES: usize = 1 << 20;

/// A descriptor that a bpf(2) call returned.
fn descriptor(result: libc::c_long) -> io::Result<OwnedFd> {
    match libc::c_int::try_from(result) {
        // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The part of `union bpf_attr` that loads type information (linux/bpf.h).
#[repr(C)]
struct BtfLoad {
    btf: u64,
    log: u64,
    size: u32,
    log_size: u32,
    log_level: u32,
    pad: u32,
}

/// Loads type information.
pub(super) fn load_btf(btf: &[u8]) -> io::Result<OwnedFd> {
    let load = BtfLoad {
        btf: btf.as_ptr() as u64,
        log: 0,
        size: btf.len() as u32,
        log_size: 0,
        log_level: 0,
        pad: 0,
    };
    // SAFETY: the kernel reads `load` and the bytes of `btf`.
    descriptor(unsafe { bpf(BPF_BTF_LOAD, &load) })
}

/// The part of `union bpf_attr` that loads a program.
#[repr(C)]
#[derive(Default)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
    prog_btf_fd: u32,
    func_info_rec_size: u32,
    func_info: u64,
    func_info_cnt: u32,
    line_info_rec_size: u32,
    line_info: u64,
    line_info_cnt: u32,
    attach_btf_id: u32,
}

/// A program, ready for the kernel.
pub(super) struct Program<'a> {
    pub(super) name: &'a str,
    pub(super) license: &'a CStr,
    pub(super) instructions: &'a [bpf_insn],
    pub(super) btf: BorrowedFd<'a>,
    /// Records of functions and of lines, each with the size of a record.
    pub(super) functions: (&'a [u8], usize),
    pub(super) lines: (&'a [u8], usize),
}

/// Loads a program for uprobe-multi links; a refusal comes with the end of what the verifier said.
pub(super) fn load(program: &Program<'_>) -> Result<OwnedFd, (io::Error, String)> {
    let mut attr = ProgLoad {
        prog_type: BPF_PROG_TYPE_KPROBE,
        insn_cnt: program.instructions.len() as u32,
        insns: program.instructions.as_ptr() as u64,
        license: program.license.as_ptr() as u64,
        expected_attach_type: BPF_TRACE_UPROBE_MULTI,
        prog_btf_fd: program.btf.as_raw_fd() as u32,
        func_info_rec_size: program.functions.1 as u32,
        func_info: program.functions.0.as_ptr() as u64,
        func_info_cnt: (program.functions.0.len() / program.functions.1.max(1)) as u32,
        line_info_rec_size: program.lines.1 as u32,
        line_info: program.lines.0.as_ptr() as u64,
        line_info_cnt: (program.lines.0.len() / program.lines.1.max(1)) as u32,
        ..ProgLoad::default()
    };
    for (to, from) in attr.prog_name.iter_mut().take(15).zip(program.name.bytes()) {
        *to = from;
    }
    // SAFETY: the kernel reads `attr` and what it points to, all of which lives until the call returns.
    let first = match descriptor(unsafe { bpf(BPF_PROG_LOAD, &attr) }) {
        Ok(program) => return Ok(program),
        Err(error) => error,
    };
    // Once more, to be told why.
    let mut log = vec![0; LOG_BYTES];
    attr.log_level = 1;
    attr.log_size = log.len() as u32;
    attr.log_buf = log.as_mut_ptr() as u64;
    // SAFETY: as above; the kernel writes at most `log_size` bytes to the log.
    match descriptor(unsafe { bpf(BPF_PROG_LOAD, &attr) }) {
        Ok(program) => Ok(program),
        Err(_) => {
            let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
            Err((first, String::from_utf8_lossy(&log[..end]).into_owned()))
        }
    }
}

/// The part of `union bpf_attr` that makes a uprobe-multi link.
#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
    path: u64,
    offsets: u64,
    ref_ctr_offsets: u64,
    cookies: u64,
    cnt: u32,
    multi_flags: u32,
    pid: u32,
    pad: u32,
}

/// Puts breakpoints at these offsets of a file, in one process only.
pub(super) fn link(
    program: BorrowedFd<'_>,
    path: &CStr,
    offsets: &[u64],
    cookies: &[u64],
    pid: u32,
) -> io::Result<OwnedFd> {
    let create = LinkCreate {
        prog_fd: program.as_raw_fd() as u32,
        target_fd: 0,
        attach_type: BPF_TRACE_UPROBE_MULTI,
        flags: 0,
        path: path.as_ptr() as u64,
        offsets: offsets.as_ptr() as u64,
        ref_ctr_offsets: 0,
        cookies: cookies.as_ptr() as u64,
        cnt: offsets.len().min(cookies.len()) as u32,
        multi_flags: 0,
        pid,
        pad: 0,
    };
    // SAFETY: the kernel reads `create`, the path and `cnt` elements of both slices.
    descriptor(unsafe { bpf(BPF_LINK_CREATE, &create) })
}
