//! How much memory a process may have.

use super::Host;

impl Host {
    /// Memory limit of a process in bytes: the lowest of its cgroup and those above it, version 1 or 2, else the host's memory.
    #[must_use]
    pub fn memory_limit(&self, pid: u32) -> Option<u64> {
        let text = self.text(&format!("proc/{pid}/cgroup")).ok()?;
        let mut lowest: Option<u64> = None;
        for line in text.lines() {
            let mut fields = line.splitn(3, ':');
            let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next())
            else {
                continue;
            };
            let (roots, file): (&[&str], _) = if controllers.is_empty() {
                (&["sys/fs/cgroup", "sys/fs/cgroup/unified"], "memory.max")
            } else if controllers.split(',').any(|controller| controller == "memory") {
                (&["sys/fs/cgroup/memory"], "memory.limit_in_bytes")
            } else {
                continue;
            };
            for root in roots {
                let mut below = path;
                loop {
                    // `max` is no number, and no limit.
                    let limit = self.text(&format!("{root}{below}/{file}")).ok();
                    let limit = limit.and_then(|text| text.trim().parse::<u64>().ok());
                    lowest = lowest.into_iter().chain(limit).min();
                    match below.rfind('/') {
                        Some(at) if !below.is_empty() => below = &below[..at],
                        _ => break,
                    }
                }
            }
        }
        lowest.into_iter().chain(self.memory_total()).min()
    }

    fn memory_total(&self) -> Option<u64> {
        let text = self.text("proc/meminfo").ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kib << 10)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn the_lowest_limit_on_the_way_up_counts() {
        let root = tempfile::tempdir().unwrap();
        let host = Host::new(root.path());
        let root = root.path();
        write(root, "proc/meminfo", "MemTotal:       16384 kB\nMemFree: 1 kB\n");
        write(
            root,
            "proc/7/cgroup",
            "4:memory:/pods/a\n2:cpu,cpuacct:/x\n0::/pods/b\n",
        );
        assert_eq!(host.memory_limit(7), Some(16 << 20));
        write(
            root,
            "sys/fs/cgroup/memory/pods/memory.limit_in_bytes",
            "8388608\n",
        );
        write(
            root,
            "sys/fs/cgroup/memory/pods/a/memory.limit_in_bytes",
            "9223372036854771712\n",
        );
        assert_eq!(host.memory_limit(7), Some(8 << 20));
        write(root, "sys/fs/cgroup/unified/pods/b/memory.max", "4194304\n");
        write(root, "sys/fs/cgroup/unified/pods/memory.max", "max\n");
        assert_eq!(host.memory_limit(7), Some(4 << 20));
        assert_eq!(host.memory_limit(8), None);
    }
}
