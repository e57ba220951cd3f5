//! The kernel's own file systems that tracing needs: mounted where they are missing.

use crate::command;
use anyhow::{Context as _, Result, bail};
use std::fs;

const WANTED: [(&str, &str); 3] = [
    ("tracefs", "/sys/kernel/tracing"),
    ("bpf", "/sys/fs/bpf"),
    ("securityfs", "/sys/kernel/security"),
];

/// Mounts what this kernel has and nobody has mounted.
pub(super) fn ensure() -> Result<()> {
    let mounted = fs::read_to_string("/proc/mounts").context("read /proc/mounts")?;
    let supported = fs::read_to_string("/proc/filesystems").context("read /proc/filesystems")?;
    for (kind, place) in missing(&mounted, &supported) {
        println!("setup: mount -t {kind} {kind} {place}");
        let Some(mut mount) = command::as_root("mount", []) else {
            bail!("not root, and there is no sudo; type as root: mount -t {kind} {kind} {place}");
        };
        command::checked(mount.args(["-t", kind, kind, place]))?;
    }
    Ok(())
}

fn missing(mounted: &str, supported: &str) -> Vec<(&'static str, &'static str)> {
    let is_mounted = |place: &str| mounted.lines().any(|line| line.split(' ').nth(1) == Some(place));
    let is_supported = |kind: &str| {
        supported
            .lines()
            .any(|line| line.split_whitespace().last() == Some(kind))
    };
    WANTED
        .into_iter()
        .filter(|(kind, place)| is_supported(kind) && !is_mounted(place))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::missing;

    #[test]
    fn only_what_the_kernel_has_and_nobody_mounted() {
        let mounted = "sysfs /sys sysfs rw 0 0\nnone /sys/fs/bpf bpf rw 0 0\n";
        let supported = "nodev\tsysfs\nnodev\ttracefs\nnodev\tbpf\n\text4\n";
        assert_eq!(missing(mounted, supported), [("tracefs", "/sys/kernel/tracing")]);
    }
}
