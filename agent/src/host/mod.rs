//! Every read of `/proc`, `/sys` and `/etc` goes through here, under a root that tests replace.

#[cfg(test)]
pub(crate) mod damage;
#[cfg(test)]
mod damaged;
mod executable;
mod handle;
mod limited;
mod mapped;
mod memory;
mod memory_limit;
mod privileges;
mod process;

use std::fs;
use std::io::{self, Read as _};
use std::path::PathBuf;

pub use executable::{Executable, FileId};
pub(crate) use handle::open_by_number;
pub(crate) use limited::Limited;
pub use mapped::{MappedFile, OpenFile};
pub use memory::{Pages, ProcessMemory};
pub use privileges::Privileges;
#[cfg(test)]
pub(crate) use process::cgroups;
pub use process::{OtelEnv, ProcessFacts};

/// CPUs that a kernel can be built for (`NR_CPUS`).
const MOST_CPUS: u32 = 8192;

/// The host, as its pseudo file systems show it.
#[derive(Clone, Debug)]
pub struct Host {
    root: PathBuf,
}

impl Host {
    /// `/` in production, a fixture in tests.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    fn path(&self, below: &str) -> PathBuf {
        self.root.join(below)
    }

    /// Reads at most `limit` bytes of a file.
    fn read(&self, below: &str, limit: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        fs::File::open(self.path(below))?
            .take(limit)
            .read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn text(&self, below: &str) -> io::Result<String> {
        Ok(String::from_utf8_lossy(&self.read(below, 1 << 20)?).into_owned())
    }

    /// The running kernel's type information.
    pub fn btf(&self) -> io::Result<Vec<u8>> {
        self.read("sys/kernel/btf/vmlinux", 256 << 20)
    }

    /// Upper bound of process ids.
    pub fn pid_max(&self) -> io::Result<u32> {
        self.text("proc/sys/kernel/pid_max")?
            .trim()
            .parse()
            .map_err(io::Error::other)
    }

    /// Context switches of all CPUs since the start.
    pub fn context_switches(&self) -> io::Result<u64> {
        let text = self.text("proc/stat")?;
        let line = text.lines().find_map(|line| line.strip_prefix("ctxt "));
        line.and_then(|count| count.trim().parse().ok())
            .ok_or_else(|| io::Error::other("/proc/stat has no line ctxt"))
    }

    /// Whether BPF programs are interpreted here, which few kernels still can.
    #[must_use]
    pub fn interprets_bpf(&self) -> bool {
        self.text("proc/sys/net/core/bpf_jit_enable")
            .is_ok_and(|text| text.trim() == "0")
    }

    /// Release of the kernel, like `uname -r`.
    pub fn kernel_release(&self) -> io::Result<String> {
        Ok(self.text("proc/sys/kernel/osrelease")?.trim().to_owned())
    }

    /// Online CPUs.
    pub fn online_cpus(&self) -> io::Result<Vec<u32>> {
        let text = self.text("sys/devices/system/cpu/online")?;
        let mut cpus = Vec::new();
        for part in text.trim().split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let first: u32 = first.parse().map_err(io::Error::other)?;
            let last: u32 = last.parse().map_err(io::Error::other)?;
            if last >= MOST_CPUS {
                return Err(io::Error::other("more CPUs than a kernel can have"));
            }
            cpus.extend(first..=last);
        }
        Ok(cpus)
    }

    /// Address of a kernel symbol, 0 if it is missing or hidden by `kptr_restrict`.
    pub fn kernel_symbol(&self, wanted: &str) -> io::Result<u64> {
        let text = self.read("proc/kallsyms", 64 << 20)?;
        let address = text.split(|byte| *byte == b'\n').find_map(|line| {
            let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
            let address = words.next()?;
            (words.nth(1)? == wanted).then(|| u64::from_str_radix(address, 16).unwrap_or(0))
        });
        Ok(address.unwrap_or(0))
    }

    /// Resident bytes of the agent itself.
    pub fn own_resident_bytes(&self) -> io::Result<u64> {
        let text = self.text("proc/self/statm")?;
        let pages: u64 = text
            .split(' ')
            .nth(1)
            .unwrap_or_default()
            .parse()
            .map_err(io::Error::other)?;
        Ok(pages * 4096)
    }

    /// CPU seconds of the agent itself, from the scheduler's own account in nanoseconds.
    pub fn own_cpu_seconds(&self) -> io::Result<f64> {
        let mut total = 0.0;
        for task in fs::read_dir(self.path("proc/self/task"))? {
            let stat = fs::read_to_string(task?.path().join("schedstat"))?;
            total += stat
                .split(' ')
                .next()
                .unwrap_or_default()
                .parse::<f64>()
                .map_err(io::Error::other)?
                / 1e9;
        }
        Ok(total)
    }

    /// Memory of one of the agent's own BPF maps in bytes, by its descriptor.
    pub fn map_memory(&self, fd: i32) -> io::Result<u64> {
        self.about_own(fd, "memlock:")
    }

    /// How often one of the agent's own BPF programs was not run because it was running on that CPU already, by its descriptor
    /// (`recursion_misses` of `struct bpf_prog_info`).
    pub fn program_misses(&self, fd: i32) -> io::Result<u64> {
        self.about_own(fd, "recursion_misses:")
    }

    /// A number that the kernel tells of one of the agent's own descriptors.
    fn about_own(&self, fd: i32, name: &str) -> io::Result<u64> {
        let text = self.text(&format!("proc/self/fdinfo/{fd}"))?;
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
            .ok_or_else(|| io::Error::other(format!("fdinfo has no {name} line")))
    }

    /// Whether a file exists: the kill switch.
    #[must_use]
    pub fn exists(&self, path: &std::path::Path) -> bool {
        path.exists()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_cpus() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("sys/devices/system/cpu");
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("online"), "0-2,5\n").unwrap();
        assert_eq!(Host::new(root.path()).online_cpus().unwrap(), [0, 1, 2, 5]);
    }

    #[test]
    fn facts_of_own_descriptors() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("proc/self/fdinfo");
        fs::create_dir_all(&dir).unwrap();
        fs::write(
            dir.join("7"),
            "pos:\t0\nmemlock:\t4096\nrun_cnt:\t9\nrecursion_misses:\t3\n",
        )
        .unwrap();
        let host = Host::new(root.path());
        assert_eq!(host.map_memory(7).unwrap(), 4096);
        assert_eq!(host.program_misses(7).unwrap(), 3);
        fs::write(dir.join("8"), "pos:\t0\n").unwrap();
        assert!(host.program_misses(8).is_err());
        assert!(host.program_misses(9).is_err());
    }

    #[test]
    fn this_process_is_read() {
        let facts = Host::new("/").process(std::process::id()).unwrap();
        assert_eq!(facts.pid, std::process::id());
        assert!(facts.start_time > 0);
        assert!(!facts.exe.is_empty());
        assert!(Host::new("/").process(u32::MAX).is_err());
    }
}
