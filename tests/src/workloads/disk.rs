//! Block I/O whose time and bytes the program knows itself.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::fs::{Advice, fadvise};
use serde_json::json;

use super::{cpu::Stopwatch, gate, raw};

const PAGE: usize = 4096;

#[inline(never)]
fn sync_file(fd: BorrowedFd<'_>) -> isize {
    raw::fsync(fd)
}

#[inline(never)]
fn read_cold(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> isize {
    raw::read(fd, buffer)
}

#[inline(never)]
fn write_direct(fd: BorrowedFd<'_>, buffer: &[u8]) -> isize {
    raw::write(fd, buffer)
}

#[inline(never)]
fn touch_page(memory: &[u8], offset: usize) -> u8 {
    // SAFETY: the offset is in bounds (indexing checks it); the read must really happen.
    unsafe { std::ptr::read_volatile(&raw const memory[offset]) }
}

/// Writes one page and syncs it, `times` times.
pub fn fsync_loop(path: &Path, times: u32) -> Result<()> {
    let mut file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
    gate::step("ready", &json!({}))?;
    let watch = Stopwatch::start()?;
    for round in 0..times {
        file.write_all(&[round as u8; PAGE])?;
        let got = sync_file(file.as_fd());
        ensure!(got == 0, "fsync returned {got}");
    }
    let took = watch.stop()?;
    gate::truth(&json!({
        "blocked_seconds": took.wall - took.cpu, "stolen_seconds": took.stolen,
        "calls": times, "written_bytes": u64::from(times) * PAGE as u64,
    }))
}

/// Reads a file that is not in the page cache, in `chunk` bytes a call and without read-ahead, and times the loop.
pub fn cold_read(path: &Path, chunk: usize) -> Result<()> {
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    drop_cache(&file)?;
    fadvise(&file, 0, None, Advice::Random)?;
    let mut buffer = vec![0; chunk];
    gate::step("ready", &json!({}))?;
    let (mut bytes, mut calls) = (0u64, 0u64);
    let watch = Stopwatch::start()?;
    loop {
        let got = read_cold(file.as_fd(), &mut buffer);
        ensure!(got >= 0, "read failed: {got}");
        if got == 0 {
            break;
        }
        bytes += got as u64;
        calls += 1;
    }
    let took = watch.stop()?;
    gate::truth(&json!({
        "blocked_seconds": took.wall - took.cpu, "stolen_seconds": took.stolen, "read_bytes": bytes, "calls": calls,
    }))
}

/// Maps a file that is not in the page cache and touches every `stride` bytes, without read-ahead.
pub fn fault_read(path: &Path, stride: usize) -> Result<()> {
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let len = usize::try_from(file.metadata()?.len())?;
    drop_cache(&file)?;
    let map = super::memory::Mapping::of_file(&file, len)?;
    map.advise_random()?;
    gate::step("ready", &json!({}))?;
    let before = major_faults();
    let watch = Stopwatch::start()?;
    let mut sum = 0u64;
    let mut touched = 0u64;
    for offset in (0..len).step_by(stride) {
        sum += u64::from(touch_page(map.bytes(), offset));
        touched += 1;
    }
    let took = watch.stop()?;
    gate::truth(&json!({
        "blocked_seconds": took.wall - took.cpu, "stolen_seconds": took.stolen,
        "touched": touched, "sum": sum, "major_faults": major_faults() - before,
    }))
}

/// Touches pages of a mapped file at random for some time, half of the touches in a tenth of it: some pages are worth keeping.
pub fn touch(path: &Path, seconds: f64) -> Result<()> {
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let len = usize::try_from(file.metadata()?.len())?;
    drop_cache(&file)?;
    let mapping = super::memory::Mapping::of_file(&file, len)?;
    gate::step("ready", &json!({}))?;
    let (before, start) = (major_faults(), Instant::now());
    let (mut seed, mut sum) = (1u64, 0u64);
    while start.elapsed().as_secs_f64() < seconds {
        for _ in 0..64 {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let part = if seed >> 63 == 0 { len } else { len / 10 };
            let at = (seed >> 20) as usize % part;
            sum += u64::from(std::hint::black_box(mapping.bytes()[at]));
        }
    }
    gate::truth(&json!({ "major_faults": major_faults() - before, "sum": sum }))
}

/// Writes `bytes` in `chunk`s past the page cache, each on the device when the call returns.
pub fn direct_write(path: &Path, bytes: u64, chunk: usize) -> Result<()> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .custom_flags(libc::O_DIRECT)
        .open(path)
        .with_context(|| format!("opening {}", path.display()))?;
    let buffer = super::memory::Mapping::anonymous(chunk)?;
    gate::step("ready", &json!({}))?;
    let (mut took, mut written, mut calls) = (Duration::ZERO, 0u64, 0u64);
    while written < bytes {
        let start = Instant::now();
        let got = write_direct(file.as_fd(), buffer.bytes());
        took += start.elapsed();
        ensure!(got == chunk as isize, "direct write returned {got}");
        written += chunk as u64;
        calls += 1;
    }
    gate::truth(&json!({ "disk_seconds": took.as_secs_f64(), "written_bytes": written, "calls": calls }))
}

/// Takes the file's clean pages out of the page cache.
fn drop_cache(file: &File) -> Result<()> {
    file.sync_all()?;
    Ok(fadvise(file, 0, None, Advice::DontNeed)?)
}

/// Major faults of this process until now.
fn major_faults() -> i64 {
    // SAFETY: an all-zero rusage is a valid value, and getrusage fills exactly one.
    unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &raw mut usage);
        usage.ru_majflt
    }
}
