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

/// Forks `children` one after the other, each living a few calls; with `exec`, each runs this program again.
///
/// Children that run this program again compute for `work` first.
pub fn storm(children: u32, exec: bool, work: Duration) -> Result<()> {
    let itself = std::env::current_exe().context("own path")?;
    gate::step("ready", &json!({}))?;
    for _ in 0..children {
        if exec {
            let status = std::process::Command::new(&itself)
                .args(["brief", "--work-ms", &work.as_millis().to_string()])
                .status()
                .context("running a child")?;
            ensure!(status.success(), "a child failed");
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
        &json!({ "children": children, "getppid": u64::from(children) * CALLS_PER_CHILD }),
    )?;
    gate::truth(&json!({}))
}

/// Computes for some time, almost all of it in this function itself: without calls, also where nothing is optimized.
#[inline(never)]
fn work_briefly(work: Duration) {
    // Its own time on the CPU: others may run meanwhile.
    let (until, mut mixed) = (thread_cpu() + work.as_secs_f64(), 1u64);
    while thread_cpu() < until {
        let mut turns = 0u32;
        while turns < 100_000 {
            turns += 1;
            mixed ^= mixed << 13;
            mixed ^= mixed >> 7;
        }
    }
    std::hint::black_box(mixed);
}

/// The child of the storm with `exec`.
pub fn brief(work: Duration) {
    work_briefly(work);
    live_briefly();
}
