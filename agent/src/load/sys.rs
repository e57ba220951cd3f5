//! The bpf(2) calls that aya lacks, and one that rustix lacks.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

const BPF_MAP_DELETE_ELEM: libc::c_long = 3;
const BPF_PROG_TEST_RUN: libc::c_long = 10;
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
const BPF_MAP_DELETE_BATCH: libc::c_long = 27;

/// Calls bpf(2).
///
/// # Safety
///
/// `attr` must be the part of `union bpf_attr` that the command reads, and what it points to must live until the call returns.
pub(super) unsafe fn bpf<T>(command: libc::c_long, attr: &T) -> libc::c_long {
    // SAFETY: the caller's promise.
    unsafe { libc::syscall(libc::SYS_bpf, command, core::ptr::from_ref(attr), size_of::<T>()) }
}

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
    if unsafe { bpf(BPF_MAP_DELETE_ELEM, &element) } < 0 {
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
pub(super) fn run(program: BorrowedFd<'_>, arguments: &[u64]) -> io::Result<()> {
    let mut run = Run {
        prog_fd: program.as_raw_fd() as u32,
        ctx_size_in: size_of_val(arguments) as u32,
        ctx_in: arguments.as_ptr() as u64,
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

/// A descriptor that signals can be read from, of which it takes none. (rustix 1 has no such call.)
pub(super) fn signalfd() -> io::Result<OwnedFd> {
    // SAFETY: the set of signals is emptied before it is used, and lives until the call returns.
    let fd = unsafe {
        let mut none = MaybeUninit::uninit();
        libc::sigemptyset(none.as_mut_ptr());
        libc::signalfd(-1, none.as_ptr(), libc::SFD_CLOEXEC)
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is new, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The part of `union bpf_attr` that reads or deletes many elements.
#[repr(C)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

impl Batch {
    fn new(map: BorrowedFd<'_>, count: usize) -> Self {
        Self {
            in_batch: 0,
            out_batch: 0,
            keys: 0,
            values: 0,
            count: u32::try_from(count).unwrap_or(u32::MAX),
            map_fd: map.as_raw_fd() as u32,
            elem_flags: 0,
            flags: 0,
        }
    }

    /// Calls bpf(2), which writes `count`, also where it fails half-way.
    ///
    /// # Safety
    ///
    /// There must be as many keys and values as `count` says, and what is pointed to must live until the call returns.
    unsafe fn run(&mut self, command: libc::c_long) -> Option<io::Error> {
        // SAFETY: the caller's promise.
        let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *self, size_of::<Self>()) };
        (result < 0).then(io::Error::last_os_error)
    }
}

/// Bytes of a hash map that are read with one call, at first.
const AT_ONCE: usize = 256 << 10;
/// Elements of it at least: all of a bucket must fit.
const LEAST: usize = 64;

/// All elements of a hash map: a fifth to an eleventh of the cost of reading one after the other. Those that are added or
/// removed meanwhile may be missing.
pub(super) fn lookup_all<K: aya::Pod, V: aya::Pod>(map: BorrowedFd<'_>) -> io::Result<Vec<(K, V)>> {
    let mut all = Vec::new();
    lookup_batches(map, |keys: &[K], values: &[V]| {
        all.extend(keys.iter().copied().zip(values.iter().copied()));
        Ok(())
    })?;
    Ok(all)
}

/// The same, some at a time.
pub(super) fn lookup_batches<K: aya::Pod, V: aya::Pod>(
    map: BorrowedFd<'_>,
    mut some: impl FnMut(&[K], &[V]) -> io::Result<()>,
) -> io::Result<()> {
    let mut room = LEAST.max(AT_ONCE / (size_of::<K>() + size_of::<V>()).max(1));
    let (mut position, mut next) = (0u64, 0u64);
    let mut begun = false;
    let (mut keys, mut values): (Vec<K>, Vec<V>) = (Vec::new(), Vec::new());
    loop {
        keys.clear();
        values.clear();
        keys.reserve(room);
        values.reserve(room);
        let mut batch = Batch {
            in_batch: if begun { (&raw const position) as u64 } else { 0 },
            out_batch: (&raw mut next) as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            ..Batch::new(map, room)
        };
        // SAFETY: the kernel writes at most `count` keys and values, for which there is room, where it read on (four bytes), and
        // how many it wrote.
        let error = unsafe { batch.run(BPF_MAP_LOOKUP_BATCH) };
        match error.as_ref().and_then(io::Error::raw_os_error) {
            Some(libc::ENOSPC) if room < 1 << 20 => {
                room *= 2;
                continue;
            }
            Some(libc::ENOENT) | None => {}
            _ => return Err(error.unwrap_or_else(|| io::Error::other("bpf"))),
        }
        let count = (batch.count as usize).min(room);
        // SAFETY: the kernel wrote so many of both.
        unsafe {
            keys.set_len(count);
            values.set_len(count);
        }
        some(&keys, &values)?;
        if error.is_some() {
            return Ok(());
        }
        (position, begun) = (next, true);
    }
}

/// Takes elements out of a hash map. Those that are not there are no error.
pub(super) fn delete_all<K: aya::Pod>(map: BorrowedFd<'_>, mut keys: &[K]) -> io::Result<()> {
    while !keys.is_empty() {
        let mut batch = Batch {
            keys: keys.as_ptr() as u64,
            ..Batch::new(map, keys.len())
        };
        // SAFETY: the kernel reads `count` keys, which are there.
        let error = unsafe { batch.run(BPF_MAP_DELETE_BATCH) };
        let mut done = (batch.count as usize).min(keys.len());
        match error {
            None => {}
            // The first that was not there ended it.
            Some(error) if error.raw_os_error() == Some(libc::ENOENT) => done = (done + 1).min(keys.len()),
            Some(error) => return Err(error),
        }
        keys = &keys[done..];
    }
    Ok(())
}
