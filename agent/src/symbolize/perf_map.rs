//! Functions of JIT runtimes, as they list them in `/tmp/perf-PID.map` (`START SIZE NAME`, hexadecimal).

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::SymbolizerConfig;
use super::cpu_time::CpuTime;
use super::headers::{self, FileIdentity};
use super::name::Names;
use super::open::open_in_root;

/// Functions of one process at most.
const MAX_ENTRIES: usize = 100_000;
/// The file is looked at for changes this often at most; sooner where reading it is cheap.
const CHECK_EVERY: Duration = Duration::from_secs(5);
/// But no more often than this.
const LEAST: Duration = Duration::from_millis(100);
/// The pause between two looks is so many times what the last one took.
const PAUSE: u32 = 100;

/// What a list says of a function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Function {
    /// Its name.
    pub(super) name: Arc<str>,
    /// Its source file.
    pub(super) file: Option<Arc<str>>,
}

/// The list of one process.
#[derive(Debug, Default)]
pub(super) struct PerfMap {
    entries: BTreeMap<u64, (u64, Function)>,
    identity: Option<FileIdentity>,
    checked: Option<Instant>,
    took: Duration,
}

impl PerfMap {
    /// The function at an address. Later lines win over earlier ones at the same start.
    pub(super) fn find(&self, address: u64) -> Option<&Function> {
        let (start, (size, function)) = self.entries.range(..=address).next_back()?;
        (address - start < *size).then_some(function)
    }

    /// Reads the file again if it changed. Like perf, it trusts the file only if it belongs to the process's user or
    /// to root.
    pub(super) fn refresh(&mut self, config: &SymbolizerConfig, pid: u32) {
        let pause = (self.took * PAUSE).clamp(LEAST, CHECK_EVERY);
        if self.checked.is_some_and(|at| at.elapsed() < pause) {
            return;
        }
        let began = CpuTime::now();
        self.read(config, pid);
        self.took = began.elapsed();
        self.checked = Some(Instant::now());
    }

    fn read(&mut self, config: &SymbolizerConfig, pid: u32) {
        let process = config.proc.join(pid.to_string());
        let Some((owner, inner)) = identity_of(&process) else {
            return;
        };
        let path = format!("/tmp/perf-{inner}.map");
        let Ok((file, metadata)) = open_in_root(
            &config.proc,
            &process.join("root"),
            &path,
            config.max_perf_map_bytes,
        ) else {
            return;
        };
        let identity = headers::identity(&metadata);
        if self.identity == Some(identity) || ![0, owner].contains(&metadata.uid()) {
            return;
        }
        let mut bytes = Vec::new();
        if file
            .take(config.max_perf_map_bytes)
            .read_to_end(&mut bytes)
            .is_ok()
        {
            self.entries = parse(&String::from_utf8_lossy(&bytes));
            self.identity = Some(identity);
        }
    }
}

/// The user that a process runs as, and the id that the process itself sees.
fn identity_of(process: &Path) -> Option<(u32, u32)> {
    let owner = std::fs::metadata(process).ok()?.uid();
    let status = std::fs::read(process.join("status")).ok()?;
    let status = String::from_utf8_lossy(&status);
    let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    Some((owner, ids.split_whitespace().next_back()?.parse().ok()?))
}

fn parse(text: &str) -> BTreeMap<u64, (u64, Function)> {
    let mut names = Names::default();
    let mut entries = BTreeMap::new();
    for line in text.lines() {
        let mut fields = line.trim_start().splitn(3, ' ');
        let mut number = || {
            let field = fields.next()?;
            u64::from_str_radix(field.strip_prefix("0x").unwrap_or(field), 16).ok()
        };
        let (Some(start), Some(size)) = (number(), number()) else {
            continue;
        };
        let (name, file) = python(fields.next().unwrap_or_default());
        let Some(name) = names.share(name) else {
            continue;
        };
        let file = file.and_then(|file| names.share(file));
        if entries.len() < MAX_ENTRIES || entries.contains_key(&start) {
            entries.insert(start, (size, Function { name, file }));
        }
    }
    entries
}

/// What CPython writes with `-X perf` is `py::FUNCTION:FILE`.
fn python(name: &str) -> (&str, Option<&str>) {
    match name.strip_prefix("py::").and_then(|name| name.split_once(':')) {
        Some((function, file)) => (function, Some(file)),
        None => (name, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::damage::{Bounds, harmless};

    #[test]
    fn later_lines_win() {
        let entries =
            parse("1000 20 LazyCompile:*a x.js:1\nrubbish\n0x2000 10 b\n1000 10 c d\nzz 1 e\n3000 5\n");
        let map = PerfMap {
            entries,
            ..PerfMap::default()
        };
        assert_eq!(map.find(0x100f).map(|found| &*found.name), Some("c d"));
        assert_eq!(map.find(0x1010), None);
        assert_eq!(map.find(0x2000).map(|found| &*found.name), Some("b"));
        assert_eq!(map.find(0xfff), None);
        assert_eq!(map.entries.len(), 2);
    }

    #[test]
    fn python_says_the_file_too() {
        let entries = parse("1000 b py::Shop.load.<locals>.<lambda>:/srv/shop/a:b.py\n2000 b py::odd\n");
        let found: Vec<_> = entries
            .values()
            .map(|(_, function)| (&*function.name, function.file.as_deref()))
            .collect();
        assert_eq!(
            found,
            [
                ("Shop.load.<locals>.<lambda>", Some("/srv/shop/a:b.py")),
                ("py::odd", None)
            ]
        );
    }

    #[test]
    fn read_through_the_root_of_the_process() {
        let proc = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/proc/self", proc.path().join("self")).unwrap();
        let process = proc.path().join("77");
        std::fs::create_dir_all(process.join("root/tmp")).unwrap();
        std::fs::write(process.join("status"), "Name:\tnode\nNSpid:\t77\t5\n").unwrap();
        std::fs::write(process.join("root/tmp/perf-5.map"), "1000 10 handler\n").unwrap();
        let config = SymbolizerConfig {
            proc: proc.path().into(),
            ..SymbolizerConfig::default()
        };
        let mut map = PerfMap::default();
        map.refresh(&config, 77);
        assert_eq!(map.find(0x1001).map(|found| &*found.name), Some("handler"));
        let small = SymbolizerConfig {
            max_perf_map_bytes: 5,
            ..config
        };
        let mut map = PerfMap::default();
        map.refresh(&small, 77);
        assert_eq!(map.find(0x1001), None);
    }

    #[test]
    fn damaged_lists_harm_nobody() {
        let list = "7f0000001000 20 LazyCompile:*a x.js:1\n0x7f0000002000 10 b\nffffffffffffffff ffffffffffffffff c d\n";
        let bounds = Bounds {
            bytes: 16 * list.len() + 4096,
            allocations: 300,
        };
        harmless(5_000, list.as_bytes(), &[], bounds, |damaged| {
            let map = PerfMap {
                entries: parse(&String::from_utf8_lossy(damaged)),
                ..PerfMap::default()
            };
            for address in [0, 0x7f00_0000_1008, u64::MAX] {
                let name = map.find(address).map_or("", |found| &found.name);
                assert!(!name.contains(char::is_control), "{name:?}");
            }
            map.entries.len() == 3
        })
        .both_often();
    }
}
