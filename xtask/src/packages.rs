//! Debian packages: installed where that is allowed, else the command to type.

use crate::command;
use anyhow::{Context as _, Result, bail};
use std::{
    ffi::OsStr,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

/// Another apt may hold dpkg's lock, a machine's first minutes are the usual case.
const DPKG_WAIT: &str = "DPkg::Lock::Timeout=120";

/// Installs those packages that are missing. Fails with the command to type where there is no apt or no way to become root.
pub(crate) fn install(packages: &[String]) -> Result<()> {
    let missing: Vec<&str> = packages
        .iter()
        .map(String::as_str)
        .filter(|package| !installed(package))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(" ");
    if command::find("apt-get").is_none() {
        bail!("this host has no apt-get; install by its own means what Debian calls: {names}");
    }
    let typed = format!("sudo apt-get update && sudo apt-get install --no-install-recommends {names}");
    let Some(mut apt) = apt_get() else {
        bail!(
            "not root, and there is no sudo; type as root: {}",
            typed.replace("sudo ", "")
        );
    };
    println!("setup: installing {names}");
    update()?;
    apt.args([
        "-o",
        DPKG_WAIT,
        "-o",
        "Dpkg::Use-Pty=0",
        "install",
        "--yes",
        "--quiet",
        "--no-install-recommends",
    ])
    .args(missing);
    command::checked(apt.stdin(Stdio::null())).with_context(|| format!("install packages; by hand: {typed}"))
}

fn installed(package: &str) -> bool {
    let status = Command::new("dpkg-query")
        .args(["--show", "--showformat=${db:Status-Status}", package])
        .output();
    status.is_ok_and(|output| output.stdout == b"installed")
}

/// Whether the lists that apt has name this package.
pub(crate) fn known(package: &str) -> bool {
    let policy = command::stdout(Command::new("apt-cache").args(["policy", package])).unwrap_or_default();
    policy.lines().any(|line| {
        line.trim()
            .strip_prefix("Candidate:")
            .is_some_and(|v| v.trim() != "(none)")
    })
}

/// Refreshes apt's lists. One source that is out of reach is no failure: the install tells whether it mattered.
pub(crate) fn update() -> Result<()> {
    const TRIES: u32 = 12;
    for _ in 0..TRIES {
        let Some(mut apt) = apt_get() else {
            bail!("not root, and there is no sudo; type as root: apt-get update")
        };
        let output = apt
            .args(["--quiet", "update"])
            .stdin(Stdio::null())
            .output()
            .context("start apt-get update")?;
        let errors = String::from_utf8_lossy(&output.stderr);
        // `DPkg::Lock::Timeout` does not cover the lock of the lists.
        if output.status.success() || !errors.contains("Could not get lock") {
            return Ok(());
        }
        thread::sleep(Duration::from_secs(10));
    }
    bail!("another apt-get holds the lock of the package lists")
}

fn apt_get() -> Option<Command> {
    command::as_root("apt-get", [("DEBIAN_FRONTEND", OsStr::new("noninteractive"))])
}
