//! Memory that known functions grow and give back in known ways, so that what is left of each is known.

use std::ffi::c_void;
use std::fs::File;

use anyhow::{Context, Result, ensure};
use rustix::mm::{Advice, MapFlags, MremapFlags, ProtFlags, madvise, mmap_anonymous, mremap, munmap};
use serde_json::json;

use super::gate;
use super::memory::HugePages;

const MIB: usize = 1 << 20;

/// A fresh mapping.
fn map(len: usize, huge: HugePages) -> Result<*mut c_void> {
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: at an address of the kernel's choice, so that nothing that exists is touched.
    let start =
        unsafe { mmap_anonymous(std::ptr::null_mut(), len, access, MapFlags::PRIVATE) }.context("mmap")?;
    advise(start, len, huge)?;
    Ok(start)
}

fn advise(start: *mut c_void, len: usize, huge: HugePages) -> Result<()> {
    let advice = match huge {
        HugePages::On => Advice::LinuxHugepage,
        HugePages::Off => Advice::LinuxNoHugepage,
    };
    // SAFETY: keeps the contents.
    unsafe { madvise(start, len, advice) }.context("madvise")
}

fn unmap(start: *mut c_void, len: usize) -> Result<()> {
    // SAFETY: the mapping is the caller's, and nobody refers to it.
    unsafe { munmap(start, len) }.context("munmap")
}

/// Writes one byte to each page of a mapping. A macro: the code belongs to the function that uses it.
macro_rules! touch {
    ($start:expr, $len:expr) => {
        for page in 0..$len / 4096 {
            // SAFETY: the callers stay inside of their mappings.
            unsafe { $start.cast::<u8>().add(page * 4096).write_volatile(1) };
        }
    };
}

/// Keeps all of it.
#[inline(never)]
fn net_kept(len: usize, huge: HugePages) -> Result<*mut c_void> {
    let start = map(len, huge)?;
    touch!(start, len);
    Ok(start)
}

/// Maps and unmaps, mostly at the same address.
#[inline(never)]
fn net_churned(len: usize, huge: HugePages) -> Result<()> {
    let start = map(len, huge)?;
    touch!(start, len);
    unmap(start, len)
}

/// Gives the first three quarters back and touches one of them again: half of it stays.
#[inline(never)]
fn net_halved(len: usize, huge: HugePages) -> Result<()> {
    let start = map(len, huge)?;
    touch!(start, len);
    // SAFETY: the contents are of no use.
    unsafe { madvise(start, len / 4 * 3, Advice::LinuxDontNeed) }.context("madvise")?;
    touch!(start, len / 4);
    Ok(())
}

/// Doubles a mapping until it has the length. Another one behind it keeps it from growing in place: its pages move.
#[inline(never)]
fn net_moved(len: usize, huge: HugePages) -> Result<()> {
    let mut have = MIB;
    let mut start = map(have, huge)?;
    touch!(start, have);
    while have < len {
        // SAFETY: the mapping is this function's.
        start = unsafe { mremap(start, have, 2 * have, MremapFlags::MAYMOVE) }.context("mremap")?;
        advise(start, 2 * have, huge)?;
        // SAFETY: within the mapping.
        let fresh = unsafe { start.cast::<u8>().add(have) };
        touch!(fresh, have);
        have *= 2;
    }
    Ok(())
}

/// Grows the heap and shrinks it again.
#[inline(never)]
fn net_heap(len: usize) -> Result<()> {
    // SAFETY: what is above the end of the heap is nobody's, and the allocator was not used in between.
    let start = unsafe { libc::sbrk(len as libc::intptr_t) };
    ensure!(start as isize != -1, "sbrk");
    touch!(start, len);
    // SAFETY: as above.
    unsafe { libc::sbrk(-(len as libc::intptr_t)) };
    Ok(())
}

/// Lets the kernel fill a fresh mapping.
#[inline(never)]
fn net_read(len: usize, huge: HugePages) -> Result<()> {
    let start = map(len, huge)?;
    // SAFETY: the mapping has this length and is this function's alone.
    let bytes = unsafe { std::slice::from_raw_parts_mut(start.cast::<u8>(), len) };
    for part in bytes.chunks_mut(64 << 10) {
        let read = rustix::io::read(&File::open("/dev/zero")?, &mut *part)?;
        ensure!(read == part.len(), "a short read");
    }
    Ok(())
}

/// Keeps all of it, too, much later.
#[inline(never)]
fn net_late(len: usize, huge: HugePages) -> Result<()> {
    let start = map(len, huge)?;
    touch!(start, len);
    Ok(())
}

/// Does all of it, then shares what is kept with a child, then gives it back, then grows once more.
pub fn net(huge: HugePages) -> Result<()> {
    let before = anonymous()?;
    gate::step("ready", &json!({}))?;
    let kept = net_kept(96 * MIB, huge)?;
    for _ in 0..100 {
        net_churned(8 * MIB, huge)?;
        net_heap(8 * MIB)?;
    }
    net_halved(128 * MIB, huge)?;
    net_moved(64 * MIB, huge)?;
    net_read(32 * MIB, huge)?;
    let mib = |count: usize| count * MIB;
    let facts = json!({
        "net_kept": mib(96), "net_churned": 0, "net_heap": 0, "net_halved": mib(64), "net_moved": mib(64), "net_read": mib(32),
        "growth": mib(96 + 800 + 800 + 128 + 32 + 64 + 32), "anonymous": anonymous()? - before, "huge": smaps("AnonHugePages:")?,
    });
    gate::step("grown", &facts)?;
    // SAFETY: the child touches memory of its own copy and leaves without anything else.
    match unsafe { libc::fork() } {
        0 => {
            touch!(kept, 48 * MIB);
            // SAFETY: ends the child.
            unsafe { libc::_exit(0) }
        }
        child => {
            ensure!(child > 0, "fork");
            let mut status = 0;
            // SAFETY: the status is this function's.
            let ended = unsafe { libc::waitpid(child, &raw mut status, 0) };
            ensure!(ended == child, "waitpid");
        }
    }
    gate::step("shared", &json!({ "anonymous": anonymous()? - before }))?;
    unmap(kept, 96 * MIB)?;
    gate::step("released", &json!({ "anonymous": anonymous()? - before }))?;
    net_late(48 * MIB, huge)?;
    gate::step("late", &json!({ "net_late": mib(48) }))?;
    gate::truth(&json!({}))
}

/// Anonymous memory of this process, page by page.
fn anonymous() -> Result<i64> {
    smaps("Anonymous:")
}

fn smaps(field: &str) -> Result<i64> {
    let text = std::fs::read_to_string("/proc/self/smaps_rollup")?;
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    let kib: i64 = line
        .context(field.to_owned())?
        .trim()
        .trim_end_matches("kB")
        .trim()
        .parse()?;
    Ok(kib * 1024)
}
