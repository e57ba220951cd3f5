//! A storm of short-lived children.

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use super::{gate, raw};

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
pub fn storm(children: u32, exec: bool) -> Result<()> {
    let itself = std::env::current_exe().context("own path")?;
    gate::step("ready", &json!({}))?;
    for _ in 0..children {
        if exec {
            let status = std::process::Command::new(&itself)
                .arg("brief")
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

/// The child of the storm with `exec`.
pub fn brief() {
    live_briefly();
}
