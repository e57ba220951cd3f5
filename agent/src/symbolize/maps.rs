//! The executable mappings of a process.

use std::ops::Range;
use std::sync::Arc;

use agent_ebpf::wire::unwind::CODE_GROWTH;

use super::captured::Found;

/// One executable mapping, as `/proc/PID/maps` has it (`proc_pid_maps(5)`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mapping {
    /// Addresses in the process.
    pub(super) range: Range<u64>,
    /// Offset of `range.start` in the file.
    pub(super) offset: u64,
    /// Device of the file, `major:minor` in hex.
    pub(super) device: Arc<str>,
    /// Inode of the file, 0 without one.
    pub(super) inode: u64,
    /// Path or name such as `[vdso]`; empty for anonymous memory. ` (deleted)` is cut off.
    pub(super) path: Arc<str>,
    /// It was captured with a sample, and its file was found so.
    pub(super) found: Option<Arc<Found>>,
}

impl Mapping {
    /// A file that may be ELF is mapped here; the rest is memory that holds generated code.
    pub(super) fn is_file(&self) -> bool {
        self.inode != 0 && self.path.starts_with('/') && !self.path.starts_with("/dev/zero")
    }

    /// Memory without a file and a name: generated code, which may grow.
    pub(super) fn is_memory(&self) -> bool {
        self.inode == 0 && self.path.is_empty()
    }

    /// It was captured with a sample, and its file was not found.
    pub(super) fn is_lost(&self) -> bool {
        self.inode != 0 && self.path.is_empty()
    }
}

/// Mappings kept of one process at most; a process may have 65,530 of them by default, few of which are executable.
const MAX_MAPPINGS: usize = 16_384;

/// Executable mappings in the order of their addresses.
pub(super) fn parse(text: &str) -> Vec<Mapping> {
    text.lines().filter_map(parse_line).take(MAX_MAPPINGS).collect()
}

/// The mapping that covers an address.
pub(super) fn find(mappings: &[Mapping], address: u64) -> Option<&Mapping> {
    let after = mappings.partition_point(|mapping| mapping.range.start <= address);
    mappings[..after]
        .last()
        .filter(|mapping| mapping.range.contains(&address))
}

/// The mapping of an address that is in none: generated code next to it, made executable since the map was read.
pub(super) fn find_grown(mappings: &[Mapping], address: u64) -> Option<&Mapping> {
    let after = mappings.partition_point(|mapping| mapping.range.start <= address);
    mappings[..after]
        .last()
        .filter(|mapping| mapping.is_memory() && address.saturating_sub(mapping.range.end) < CODE_GROWTH)
}

fn parse_line(line: &str) -> Option<Mapping> {
    let mut fields = line.splitn(6, ' ');
    let (start, end) = fields.next()?.split_once('-')?;
    if fields.next()?.as_bytes().get(2) != Some(&b'x') {
        return None;
    }
    let offset = u64::from_str_radix(fields.next()?, 16).ok()?;
    let device = fields.next()?;
    let inode = fields.next()?.parse().ok()?;
    let path = fields.next().unwrap_or_default().trim_start();
    let start = u64::from_str_radix(start, 16).ok()?;
    let end = u64::from_str_radix(end, 16).ok()?;
    Some(Mapping {
        range: start..end,
        offset,
        device: device.into(),
        inode,
        path: path.strip_suffix(" (deleted)").unwrap_or(path).into(),
        found: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::damage::{Bounds, harmless};

    const MAPS: &str = "\
55d0c0000000-55d0c0002000 r--p 00000000 fe:01 42                         /usr/bin/a b
55d0c0002000-55d0c0005000 r-xp 00002000 fe:01 42                         /usr/bin/a b
7f0000000000-7f0000001000 rwxp 00000000 00:00 0
7f0000010000-7f0000020000 r-xp 00010000 00:1f 99                         /app/lib.so (deleted)
7ffd00000000-7ffd00002000 r-xp 00000000 00:00 0                          [vdso]
bad line
";

    #[test]
    fn keeps_what_is_executable() {
        let maps = parse(MAPS);
        let paths: Vec<_> = maps
            .iter()
            .map(|m| (&*m.path, m.offset, m.inode, m.is_file()))
            .collect();
        assert_eq!(
            paths,
            [
                ("/usr/bin/a b", 0x2000, 42, true),
                ("", 0, 0, false),
                ("/app/lib.so", 0x10000, 99, true),
                ("[vdso]", 0, 0, false)
            ]
        );
        assert_eq!(&*maps[2].device, "00:1f");
    }

    #[test]
    fn finds_by_half_open_range() {
        let maps = parse(MAPS);
        assert_eq!(find(&maps, 0x55d0_c000_2000).unwrap().inode, 42);
        assert_eq!(find(&maps, 0x55d0_c000_4fff).unwrap().inode, 42);
        assert_eq!(find(&maps, 0x55d0_c000_5000), None);
        assert_eq!(find(&maps, 0x1000), None);
        assert_eq!(&*find(&maps, 0x7ffd_0000_0fff).unwrap().path, "[vdso]");
    }

    #[test]
    fn what_is_behind_generated_code_has_been_added_to_it() {
        let maps = parse(MAPS);
        let end = 0x7f00_0000_1000;
        assert_eq!(find(&maps, end), None);
        assert_eq!(find_grown(&maps, end).unwrap().range.end, end);
        assert_eq!(find_grown(&maps, end - 0x1001), None);
        // Behind a file, or too far away.
        assert_eq!(find_grown(&maps, 0x7f00_0002_0000), None);
        let alone = &maps[..2];
        assert!(find_grown(alone, end + CODE_GROWTH - 1).is_some());
        assert_eq!(find_grown(alone, end + CODE_GROWTH), None);
    }

    #[test]
    fn damaged_lines_harm_nobody() {
        let bounds = Bounds {
            bytes: 16 * MAPS.len(),
            allocations: 200,
        };
        harmless(5_000, MAPS.as_bytes(), &[], bounds, |damaged| {
            let maps = parse(&String::from_utf8_lossy(damaged));
            assert!(maps.len() <= MAPS.len());
            for mapping in &maps {
                let _any = (mapping.is_file(), find(&maps, mapping.range.start));
            }
            maps.len() == 4
        })
        .both_often();
    }
}
