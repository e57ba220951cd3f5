//! A storm of short-lived children.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use super::{cpu::thread_cpu, gate, raw};

/// Calls of `getppid` in each child.
pub const CALLS_PER_CHILD: u64 = 10;

/// What a child does: a known number of calls.
#[inline(never)]
fn live_briefly() {
    for _ in 0..CALLS_PER_CHILD {
        raw::getppid();
    }
}

/// CPU time of this process (`RUSAGE_SELF`) or of all its children that were waited for (`RUSAGE_CHILDREN`).
pub(super) fn used(who: libc::c_int) -> Result<Duration> {
    // SAFETY: all zeroes is a valid rusage.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is valid for writes.
    let failed = unsafe { libc::getrusage(who, &raw mut usage) };
    ensure!(failed == 0, "getrusage: {}", std::io::Error::last_os_error());
    let time = |time: libc::timeval| {
        Duration::from_secs(time.tv_sec as u64) + Duration::from_micros(time.tv_usec as u64)
    };
    Ok(time(usage.ru_utime) + time(usage.ru_stime))
}

/// Forks `children` one after the other, each living a few calls; with `exec`, each runs this program again.
///
/// Children that run this program again compute for about `work` first, and say how long it was.
pub fn storm(children: u32, exec: bool, work: Duration) -> Result<()> {
    let itself = std::env::current_exe().context("own path")?;
    let turns = turns_in(work).to_string();
    let mut worked = 0.0;
    gate::step("ready", &json!({}))?;
    for _ in 0..children {
        if exec {
            let child = std::process::Command::new(&itself)
                .args(["brief", "--turns", &turns])
                .stderr(std::process::Stdio::inherit())
                .output()
                .context("running a child")?;
            ensure!(child.status.success(), "a child failed");
            let said = String::from_utf8_lossy(&child.stdout);
            worked += said.trim().parse::<f64>().context("what a child worked")?;
            continue;
        }
        // SAFETY: this process has one thread, and the child only makes system calls before `_exit`.
        match unsafe { libc::fork() } {
            -1 => bail!("fork: {}", std::io::Error::last_os_error()),
            0 => {
                live_briefly();
                // SAFETY: ends the child at once, without running the parent's exit handlers.
                unsafe { libc::_exit(0) }
            }
            child => ensure!(raw::wait4(child) == child as isize, "wait4 failed"),
        }
    }
    gate::step(
        "done",
        &json!({
            "children": children,
            "getppid": u64::from(children) * CALLS_PER_CHILD,
            "worked_seconds": worked,
            "children_seconds": used(libc::RUSAGE_CHILDREN)?.as_secs_f64(),
            "parent_seconds": used(libc::RUSAGE_SELF)?.as_secs_f64(),
        }),
    )?;
    gate::truth(&json!({}))
}

/// Computes for so many turns, all of it in this function itself: without calls, also where nothing is optimized.
#[inline(never)]
fn work_briefly(turns: u64) {
    let (mut mixed, mut turn) = (1u64, 0);
    while turn < turns {
        turn += 1;
        mixed ^= mixed << 13;
        mixed ^= mixed >> 7;
    }
    std::hint::black_box(mixed);
}

/// Turns that take so long on this machine.
fn turns_in(work: Duration) -> u64 {
    const TURNS: u64 = 100_000;
    // The shortest of some: the others were disturbed.
    let once = (0..10).map(|_| {
        let before = thread_cpu();
        work_briefly(TURNS);
        thread_cpu() - before
    });
    (TURNS as f64 * work.as_secs_f64() / once.fold(f64::INFINITY, f64::min)) as u64
}

/// The child of the storm with `exec`. How many turns it works is given, not how long: a child that works until its clock says so
/// ends early where the clock goes on without it. In an emulator its part of the samples was 2.4 to 2.7 times that of its time.
pub fn brief(turns: u64) {
    let before = thread_cpu();
    work_briefly(turns);
    let worked = thread_cpu() - before;
    live_briefly();
    println!("{worked}");
}
