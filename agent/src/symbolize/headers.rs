//! The headers of an ELF file: its segments, its sections and its build id.

use std::fs::{File, Metadata};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};

use super::Outcome;
use super::segments::{Segment, Segments};

/// Size of an entry of the table of sections.
pub(super) const SECTION_HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
const MAX_SECTIONS: usize = 65_536;
const MAX_SEGMENTS: usize = 256;
/// Section names together; those of a binary with a section a function stay below.
const MAX_NAMES: u64 = 8 << 20;
const SHT_NOTE: u32 = 7;
pub(super) const SHT_NOBITS: u32 = 8;
const SHF_ALLOC: u64 = 2;
const SHF_TLS: u64 = 0x400;
const PT_LOAD: u32 = 1;
const NT_GNU_BUILD_ID: u32 = 3;

/// What tells whether two files are the same file.
pub(super) type FileIdentity = (u64, u64, u64, i64, i64);

/// Device, inode, size and time of the last change.
pub(super) fn identity(metadata: &Metadata) -> FileIdentity {
    (
        metadata.dev(),
        metadata.ino(),
        metadata.len(),
        metadata.mtime(),
        metadata.mtime_nsec(),
    )
}

/// The headers of an ELF file.
#[derive(Clone, Debug)]
pub(super) struct Headers {
    pub(super) segments: Segments,
    /// `e_machine`: what its code is for.
    pub(super) machine: u16,
    pub(super) build_id: Option<String>,
    pub(super) names: Vec<String>,
    pub(super) sections: Vec<Section>,
    pub(super) table: Vec<u8>,
    pub(super) table_offset: u64,
    pub(super) names_index: usize,
    /// Offset and size of the program headers.
    pub(super) segment_table: (u64, u64),
}

/// Where a section is, in the file and in its address space.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) offset: u64,
    pub(super) size: u64,
    pub(super) address: u64,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Section {
    pub(super) kind: u32,
    pub(super) flags: u64,
    address: u64,
    pub(super) offset: u64,
    pub(super) size: u64,
}

impl Headers {
    /// Reads the headers of a 64-bit little-endian ELF file, the byte order and width of every host the agent runs on.
    pub(super) fn read(file: &File) -> Result<Self, Outcome> {
        let mut header = [0; 64];
        file.read_exact_at(&mut header, 0)
            .map_err(|_| Outcome::ElfError)?;
        if header[..6] != *b"\x7fELF\x02\x01" {
            return Err(Outcome::ElfError);
        }
        let len = file.metadata().map_err(|_| Outcome::ElfError)?.len();
        let file = Measured { file, len };
        let (segment_table, table_offset) = (u64_at(&header, 32), u64_at(&header, 40));
        let (segment_len, segment_count) = (u16_at(&header, 54), u16_at(&header, 56));
        let (section_len, section_count) = (u16_at(&header, 58), u16_at(&header, 60));
        let names_index = usize::from(u16_at(&header, 62));
        let (mut segments, mut segment_bytes) = (Vec::new(), 0);
        if segment_count > 0 && usize::from(segment_len) == PROGRAM_HEADER {
            segment_bytes = u64::from(segment_len) * u64::from(segment_count);
            let count = usize::from(segment_count).min(MAX_SEGMENTS);
            let table = file.read(segment_table, count * PROGRAM_HEADER)?;
            for entry in table.chunks_exact(PROGRAM_HEADER) {
                if u32_at(entry, 0) == PT_LOAD {
                    segments.push(Segment {
                        offset: u64_at(entry, 8),
                        address: u64_at(entry, 16),
                        size: u64_at(entry, 32),
                    });
                }
            }
        }
        let mut headers = Self {
            segments: Segments::new(segments),
            machine: u16_at(&header, 18),
            build_id: None,
            names: Vec::new(),
            sections: Vec::new(),
            table: Vec::new(),
            table_offset,
            names_index,
            segment_table: (segment_table, segment_bytes),
        };
        if table_offset != 0 && section_count > 0 && usize::from(section_len) == SECTION_HEADER {
            headers.table = file.read(
                table_offset,
                usize::from(section_count).min(MAX_SECTIONS) * SECTION_HEADER,
            )?;
            headers.read_sections(&file)?;
        }
        Ok(headers)
    }

    fn read_sections(&mut self, file: &Measured<'_>) -> Result<(), Outcome> {
        self.sections = self
            .table
            .chunks_exact(SECTION_HEADER)
            .map(|entry| Section {
                kind: u32_at(entry, 4),
                flags: u64_at(entry, 8),
                address: u64_at(entry, 16),
                offset: u64_at(entry, 24),
                size: u64_at(entry, 32),
            })
            .collect();
        let names = match self.sections.get(self.names_index) {
            Some(section) if section.size > MAX_NAMES => return Err(Outcome::TooLarge),
            Some(section) if section.kind != SHT_NOBITS => {
                file.read(section.offset, usize::try_from(section.size).unwrap_or(0))?
            }
            _ => Vec::new(),
        };
        self.names = self
            .table
            .chunks_exact(SECTION_HEADER)
            .map(|e| c_str(&names, u32_at(e, 0)))
            .collect();
        for (section, name) in self.sections.iter().zip(&self.names) {
            if section.kind == SHT_NOTE && name == ".note.gnu.build-id" && section.size <= 4096 {
                let note = file.read(section.offset, usize::try_from(section.size).unwrap_or(0))?;
                self.build_id = build_id(&note);
            }
        }
        Ok(())
    }

    /// Whether it has a section with something in it.
    pub(super) fn has(&self, name: &str) -> bool {
        self.range(name).is_some_and(|(_, size)| size > 0)
    }

    /// Offset and size of a section that is in the file.
    pub(super) fn range(&self, name: &str) -> Option<(u64, u64)> {
        self.named(&[name])
            .next()
            .map(|section| (section.offset, section.size))
    }

    /// A section that is in the file.
    pub(super) fn place(&self, name: &str) -> Option<Place> {
        self.named(&[name]).next().map(|section| Place {
            offset: section.offset,
            size: section.size,
            address: section.address,
        })
    }

    /// Where in memory its sections are. What each thread has of its own is not there: that of the file only says what is in it
    /// at first, and where there is nothing in it, other sections have its addresses.
    pub(super) fn in_memory(&self) -> impl Iterator<Item = Range<u64>> {
        let sections = self
            .sections
            .iter()
            .filter(|section| section.flags & (SHF_ALLOC | SHF_TLS) == SHF_ALLOC && section.size > 0);
        sections.map(|section| section.address..section.address.saturating_add(section.size))
    }

    /// Offset and size of what is in the file of a section from an address on.
    pub(super) fn rest_of_section(&self, address: u64) -> Option<(u64, u64)> {
        let inside = |section: &&Section| {
            let at = address.checked_sub(section.address);
            section.kind != SHT_NOBITS && section.address != 0 && at.is_some_and(|at| at < section.size)
        };
        let section = self.sections.iter().find(inside)?;
        let at = address - section.address;
        Some((section.offset.checked_add(at)?, section.size - at))
    }

    pub(super) fn named<'a>(&'a self, wanted: &'a [&'a str]) -> impl Iterator<Item = &'a Section> {
        self.sections
            .iter()
            .zip(&self.names)
            .filter(move |(section, name)| section.kind != SHT_NOBITS && wanted.contains(&name.as_str()))
            .map(|(section, _)| section)
    }
}

fn build_id(note: &[u8]) -> Option<String> {
    let name_len = usize::try_from(u32_at(note.get(..12)?, 0)).ok()?;
    let len = usize::try_from(u32_at(note, 4)).ok()?;
    if u32_at(note, 8) != NT_GNU_BUILD_ID || note.get(12..16)? != b"GNU\0" || name_len != 4 {
        return None;
    }
    let id = note.get(16..16usize.checked_add(len)?)?;
    (!id.is_empty() && id.len() <= 64).then(|| id.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// A file and its size.
struct Measured<'a> {
    file: &'a File,
    len: u64,
}

impl Measured<'_> {
    /// A part of it; no memory is taken for what it cannot hold.
    fn read(&self, offset: u64, len: usize) -> Result<Vec<u8>, Outcome> {
        if offset.checked_add(len as u64).is_none_or(|end| end > self.len) {
            return Err(Outcome::ElfError);
        }
        let mut bytes = vec![0; len];
        self.file
            .read_exact_at(&mut bytes, offset)
            .map_err(|_| Outcome::ElfError)?;
        Ok(bytes)
    }
}

fn c_str(table: &[u8], at: u32) -> String {
    let tail = usize::try_from(at)
        .ok()
        .and_then(|at| table.get(at..))
        .unwrap_or_default();
    let name = tail.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(&name[..name.len().min(64)]).into_owned()
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes
        .get(at..at + 2)
        .and_then(|b| b.try_into().ok())
        .map_or(0, u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..at + 4)
        .and_then(|b| b.try_into().ok())
        .map_or(0, u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes
        .get(at..at + 8)
        .and_then(|b| b.try_into().ok())
        .map_or(0, u64::from_le_bytes)
}
