//! Exactly counted system calls.

use std::ffi::CString;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::json;

use super::{gate, raw};

#[inline(never)]
fn call_getppid(times: u64) {
    for _ in 0..times {
        raw::getppid();
    }
}

#[inline(never)]
fn call_openat(path: &CString, times: u64, error: i32) -> Result<()> {
    for _ in 0..times {
        let result = raw::openat(path, libc::O_RDONLY);
        ensure!(result == -(error as isize), "openat returned {result}");
    }
    Ok(())
}

/// Reads of `bytes` zeros each for some time: calls that do real work, several microseconds each.
pub fn zeros(time: Duration, bytes: usize) -> Result<()> {
    let file = std::fs::File::open("/dev/zero")?;
    let mut buffer = vec![0; bytes];
    gate::step("ready", &json!({}))?;
    let (began, mut times) = (Instant::now(), 0u64);
    while began.elapsed() < time {
        let got = raw::read(file.as_fd(), &mut buffer);
        ensure!(got == bytes as isize, "read returned {got}");
        times += 1;
    }
    gate::truth(&json!({ "read": times }))
}

/// `times` × getppid; then `failures` × openat of a missing file (ENOENT) and as many below a file (ENOTDIR).
pub fn counted(times: u64, failures: u64) -> Result<()> {
    let missing = CString::new("/nonexistent/tieback")?;
    let below_file = CString::new("/proc/self/status/tieback")?;
    gate::step("ready", &json!({}))?;
    call_getppid(times);
    call_openat(&missing, failures, libc::ENOENT)?;
    call_openat(&below_file, failures, libc::ENOTDIR)?;
    gate::truth(&json!({ "getppid": times, "openat_enoent": failures, "openat_enotdir": failures }))
}
