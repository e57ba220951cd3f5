//! Memory growth of known size by known functions.

use std::fs::File;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::ValueEnum;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};
use serde_json::json;

use super::gate;

/// Whether the kernel may back the memory with huge pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum HugePages {
    /// `MADV_HUGEPAGE`.
    On,
    /// `MADV_NOHUGEPAGE`.
    Off,
}

/// A private mapping that is released when dropped.
pub struct Mapping {
    start: *mut std::ffi::c_void,
    len: usize,
}

impl Mapping {
    /// Anonymous memory, zero-filled, not yet resident.
    pub fn anonymous(len: usize) -> Result<Self> {
        let flags = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a fresh mapping at an address of the kernel's choice touches nothing that exists.
        let start =
            unsafe { mmap_anonymous(std::ptr::null_mut(), len, flags, MapFlags::PRIVATE) }.context("mmap")?;
        Ok(Self { start, len })
    }

    /// The first `len` bytes of a file, read only.
    pub fn of_file(file: &File, len: usize) -> Result<Self> {
        // SAFETY: as above; nobody truncates the file while the workload runs.
        let start = unsafe {
            mmap(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ,
                MapFlags::PRIVATE,
                file,
                0,
            )
        };
        Ok(Self {
            start: start.context("mmap")?,
            len,
        })
    }

    /// The mapped bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping is readable, `len` long and lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.start.cast(), self.len) }
    }

    /// Turns read-ahead off.
    pub fn advise_random(&self) -> Result<()> {
        self.advise(Advice::Random)
    }

    fn advise(&self, advice: Advice) -> Result<()> {
        // SAFETY: the advice keeps the contents of the mapping.
        unsafe { madvise(self.start, self.len, advice) }.context("madvise")
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nobody holds a reference to it any more.
        let _unmapped = unsafe { munmap(self.start, self.len) };
    }
}

/// Writes one byte to each of `$pages` pages of 4 KiB from page `$first` on. A macro: the code belongs to the function that uses it,
/// where a function that is inlined would be named itself.
macro_rules! touch {
    ($map:expr, $first:expr, $pages:expr) => {
        for index in $first..$first + $pages {
            // SAFETY: the callers stay inside of the mapping, which is writable.
            unsafe { $map.start.cast::<u8>().add(index * 4096).write_volatile(1) };
        }
    };
}

#[inline(never)]
fn grow_three(map: &Mapping, first: usize, pages: usize) {
    touch!(map, first, pages);
}

#[inline(never)]
fn grow_one(map: &Mapping, first: usize, pages: usize) {
    touch!(map, first, pages);
}

/// Grows by `bytes`: three quarters in `grow_three`, one in `grow_one`, in 64 turns; then holds the memory until told.
pub fn grow(bytes: usize, huge: HugePages) -> Result<()> {
    const HUGE: usize = 2 << 20;
    let map = Mapping::anonymous(bytes + HUGE)?;
    map.advise(if huge == HugePages::On {
        Advice::LinuxHugepage
    } else {
        Advice::LinuxNoHugepage
    })?;
    gate::step("ready", &json!({ "resident_bytes": resident()? }))?;
    let before = resident()?;
    // Start at a huge page's boundary and take turns of whole huge pages, else one function pays for the other's.
    let skip = (HUGE - (map.start as usize % HUGE)) % HUGE / 4096;
    let turn = (bytes / 4 / 16 / HUGE).max(1) * HUGE / 4096;
    let (mut at, end, mut one, mut three) = (skip, skip + bytes / 4096, 0, 0);
    while at < end {
        let pages = (3 * turn).min(end - at);
        grow_three(&map, at, pages);
        (at, three) = (at + pages, three + pages);
        let pages = turn.min(end - at);
        grow_one(&map, at, pages);
        (at, one) = (at + pages, one + pages);
    }
    let after = resident()?;
    gate::step(
        "grown",
        &json!({ "grow_three_bytes": three * 4096, "grow_one_bytes": one * 4096,
        "grown_bytes": (three + one) * 4096, "resident_growth_bytes": after.saturating_sub(before) }),
    )?;
    drop(map);
    gate::step("released", &json!({ "resident_bytes": resident()? }))?;
    gate::truth(&json!({}))
}

#[inline(never)]
fn grow_much(map: &Mapping, pages: usize) {
    touch!(map, 0, pages);
}

#[inline(never)]
fn grow_little(map: &Mapping, pages: usize) {
    touch!(map, 0, pages);
}

/// Grows until the kernel kills the process: 6 MiB in `grow_much` for every 2 MiB in `grow_little`, at some 100 MiB/s: of a
/// program that is gone before the agent has looked at it, the bytes are known and not the functions.
pub fn grow_until_killed() -> Result<()> {
    gate::step("ready", &json!({}))?;
    let mut held = Vec::new();
    loop {
        for (grow, pages) in [(grow_much as fn(&Mapping, usize), 1536), (grow_little, 512)] {
            let map = Mapping::anonymous(pages * 4096)?;
            map.advise(Advice::LinuxNoHugepage)?;
            grow(&map, pages);
            held.push(map);
        }
        super::raw::nanosleep(Duration::from_millis(75));
    }
}

/// Resident anonymous bytes of this process.
fn resident() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/self/status")?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))
        .context("no RssAnon in status")?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib * 1024)
}
