//! The files behind the mappings of a process: what tells them apart, and what their tables will cost.

use std::fs::File;

use agent_ebpf::wire::unwind::MAX_MODULES;

use super::super::SymbolizerConfig;
use super::super::headers::{FileIdentity, Headers};
use super::super::lru::Lru;
use super::super::maps::{self, Mapping};
use super::super::module::{Via, open, own_vdso};
use super::super::segments::Segments;

/// Largest `/proc/PID/maps` that is read, in bytes.
const MAX_MAPS: u64 = 32 << 20;
/// Mappings of a process at most: as many as the kernel side searches.
const MAX_MAPPINGS: usize = 4095;
/// Files whose headers are remembered: as many as there are tables.
const MAX_KNOWN: usize = MAX_MODULES as usize;

/// What tells executables apart: the build id where there is one, because the same file is another one in each container.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(in super::super) enum FileKey {
    /// Build id.
    Build(String),
    /// Device, inode, size and time of the last change.
    Identity(FileIdentity),
    /// None: trampolines of CPython, so many bytes apart.
    Trampolines(u8),
}

/// What the headers of a file say.
#[derive(Clone, Debug)]
pub(in super::super) struct Known {
    pub(super) key: FileKey,
    /// What its table is made from, in bytes of `.eh_frame`, to which the time that this takes is about proportional.
    pub(super) cost: u64,
    segments: Segments,
}

impl Known {
    /// What to add to an address in the mapping for that of the file.
    pub(in super::super) fn bias(&self, mapping: &Mapping) -> Option<u64> {
        let delta = self.segments.delta(mapping.offset)?;
        Some(
            mapping
                .offset
                .wrapping_add(delta)
                .wrapping_sub(mapping.range.start),
        )
    }
}

/// Opens files, and remembers their headers.
#[derive(Debug)]
pub(in super::super) struct Files {
    pub(in super::super) config: SymbolizerConfig,
    known: Lru<FileIdentity, Known>,
}

impl Files {
    pub(in super::super) fn new(config: SymbolizerConfig) -> Self {
        Self {
            config,
            known: Lru::new(MAX_KNOWN),
        }
    }

    /// The executable mappings of a process.
    pub(in super::super) fn mappings(&self, pid: u32) -> Option<Vec<Mapping>> {
        use std::io::Read as _;
        let mut text = Vec::new();
        let file = File::open(self.config.proc.join(pid.to_string()).join("maps")).ok()?;
        file.take(MAX_MAPS).read_to_end(&mut text).ok()?;
        let mut mappings = maps::parse(&String::from_utf8_lossy(&text));
        // `[vsyscall]` is in the kernel's half of the addresses, which the kernel side's search leaves out.
        mappings.retain(|mapping| mapping.range.start >> 63 == 0);
        mappings.truncate(MAX_MAPPINGS);
        (!mappings.is_empty()).then_some(mappings)
    }

    /// The file behind a mapping.
    pub(in super::super) fn open(&self, pid: u32, mapping: &Mapping) -> Option<(File, FileIdentity)> {
        if &*mapping.path == "[vdso]" {
            let file = own_vdso(&self.config.proc).ok()?;
            return Some((file, (0, 0, 0, 0, 0)));
        }
        if !mapping.is_file() {
            return None;
        }
        let via = Via {
            pid,
            alive: true,
            mapping,
        };
        open(&self.config, via).ok()
    }

    /// What its headers say. They are read once, and not for each process that has the file mapped.
    pub(in super::super) fn headers(&mut self, file: &File, identity: FileIdentity) -> Option<Known> {
        if let Some(known) = self.known.get(&identity) {
            return Some(known.clone());
        }
        let headers = Headers::read(file).ok()?;
        let cost = cost(&headers, identity.2);
        let key = headers
            .build_id
            .map_or(FileKey::Identity(identity), FileKey::Build);
        let known = Known {
            key,
            cost,
            segments: headers.segments,
        };
        self.known.insert(identity, known.clone());
        Some(known)
    }
}

/// What the table of a file is made from; measured on 400 files of a host with compilers, browsers' engines and Go programs: 45 ns
/// a byte of `.eh_frame`, 7 a byte of Go's table.
fn cost(headers: &Headers, len: u64) -> u64 {
    const COMPRESSED: u64 = 0x800;
    if headers.sections.is_empty() {
        // Found by the program headers; a tenth of a file is usual.
        return len / 10;
    }
    let sum = |names: &[&str]| {
        let sizes = headers.named(names).map(|section| {
            let times = if section.flags & COMPRESSED == 0 { 1 } else { 4 };
            section.size.min(len) * times
        });
        sizes.fold(0, u64::saturating_add)
    };
    let go = sum(&[".gopclntab", ".data.rel.ro.gopclntab"]);
    sum(&[".eh_frame", ".debug_frame"]).saturating_add(go / 6)
}
