//! A private copy of the parts of an ELF file that hold symbols and debug information.
//!
//! The file itself is never mapped: whoever owns it may truncate it at any time, and a mapping would then kill the
//! agent (SIGBUS). The copy is a sparse memfd with the same offsets, so that it still is that ELF file to a reader.
//! Sections that name other files (`.gnu_debuglink` and the like) are left out: a file must not choose what is opened.

use std::fs::{File, Metadata};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

use rustix::fs::{MemfdFlags, memfd_create};

use super::Outcome;
use super::cpu_time::CpuTime;
use super::debug::{claimed, nesting, unpack};
pub(super) use super::segments::{Segment, Segments};

const SECTION_HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
const MAX_SECTIONS: usize = 65_536;
const MAX_SEGMENTS: usize = 256;
/// Section names together; those of a binary with a section a function stay below.
const MAX_NAMES: u64 = 8 << 20;
const SHT_NOTE: u32 = 7;
const SHT_NOBITS: u32 = 8;
const SHF_COMPRESSED: u64 = 0x800;
const PT_LOAD: u32 = 1;
const NT_GNU_BUILD_ID: u32 = 3;
const COPY: usize = 128 << 10;

const SYMBOLS: &[&str] = &[".symtab", ".strtab", ".dynsym", ".dynstr", ".symtab_shndx"];
/// What file:line and inlined functions need; locations of variables do not matter here.
const DEBUG: &[&str] = &[
    ".debug_info",
    ".debug_abbrev",
    ".debug_line",
    ".debug_line_str",
    ".debug_str",
    ".debug_str_offsets",
    ".debug_addr",
    ".debug_ranges",
    ".debug_rnglists",
    ".debug_aranges",
    ".debug_types",
];

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
    pub(super) build_id: Option<String>,
    names: Vec<String>,
    sections: Vec<Section>,
    table: Vec<u8>,
    table_offset: u64,
    names_index: usize,
    /// Offset and size of the program headers.
    segment_table: (u64, u64),
}

/// Where a section is, in the file and in its address space.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) offset: u64,
    pub(super) size: u64,
    pub(super) address: u64,
}

#[derive(Clone, Copy, Debug)]
struct Section {
    kind: u32,
    flags: u64,
    address: u64,
    offset: u64,
    size: u64,
}

/// A copy that can be read by its path.
#[derive(Debug)]
pub(super) struct Image {
    file: File,
    /// Bytes of memory it takes.
    pub(super) bytes: u64,
    /// Debug sections are there.
    pub(super) debug: bool,
    /// Why debug sections that were there are not used.
    pub(super) debug_skipped: Option<Outcome>,
}

impl Image {
    /// A path that opens the copy in this process.
    pub(super) fn path(&self, proc: &std::path::Path) -> PathBuf {
        proc.join(format!("self/fd/{}", self.file.as_raw_fd()))
    }
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
        let (segment_table, table_offset) = (u64_at(&header, 32), u64_at(&header, 40));
        let (segment_len, segment_count) = (u16_at(&header, 54), u16_at(&header, 56));
        let (section_len, section_count) = (u16_at(&header, 58), u16_at(&header, 60));
        let names_index = usize::from(u16_at(&header, 62));
        let mut segments = Vec::new();
        if segment_count > 0 && usize::from(segment_len) == PROGRAM_HEADER {
            let count = usize::from(segment_count).min(MAX_SEGMENTS);
            let table = read_at(file, segment_table, count * PROGRAM_HEADER)?;
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
            build_id: None,
            names: Vec::new(),
            sections: Vec::new(),
            table: Vec::new(),
            table_offset,
            names_index,
            segment_table: (segment_table, u64::from(segment_len) * u64::from(segment_count)),
        };
        if table_offset != 0 && section_count > 0 && usize::from(section_len) == SECTION_HEADER {
            headers.table = read_at(
                file,
                table_offset,
                usize::from(section_count).min(MAX_SECTIONS) * SECTION_HEADER,
            )?;
            headers.read_sections(file)?;
        }
        Ok(headers)
    }

    fn read_sections(&mut self, file: &File) -> Result<(), Outcome> {
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
                read_at(file, section.offset, usize::try_from(section.size).unwrap_or(0))?
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
                let note = read_at(file, section.offset, usize::try_from(section.size).unwrap_or(0))?;
                self.build_id = build_id(&note);
            }
        }
        Ok(())
    }

    /// Copies what [`SYMBOLS`] and, as far as `max_bytes` and the time allow, [`DEBUG`] name.
    pub(super) fn copy(
        &self,
        file: &File,
        file_bytes: u64,
        max_bytes: u64,
        until: CpuTime,
    ) -> Result<Image, Outcome> {
        let size_of = |wanted: &[&str]| {
            self.named(wanted)
                .try_fold(0u64, |sum, section| sum.checked_add(self.held(file, section)))
        };
        let symbols = size_of(SYMBOLS).ok_or(Outcome::ElfError)?;
        if symbols > max_bytes {
            return Err(Outcome::TooLarge);
        }
        let has_debug = self.has(".debug_info");
        let small = size_of(DEBUG).is_some_and(|size| size <= max_bytes - symbols);
        let mut image = self.copy_sections(file, file_bytes, has_debug && small, until)?;
        if !has_debug {
            return Ok(image);
        }
        let judged = if small {
            nesting::check(&image.file, until)
        } else {
            Err(Outcome::TooLarge)
        };
        image.debug = judged.is_ok();
        image.debug_skipped = judged.err();
        Ok(image)
    }

    fn copy_sections(
        &self,
        file: &File,
        file_bytes: u64,
        debug: bool,
        until: CpuTime,
    ) -> Result<Image, Outcome> {
        let flags = MemfdFlags::CLOEXEC;
        let mut out: File = memfd_create("tieback-symbols", flags)
            .map_err(|_| Outcome::ElfError)?
            .into();
        out.set_len(file_bytes).map_err(|_| Outcome::ElfError)?;
        let mut bytes = copy_range(file, &mut out, 0, 64, file_bytes)?;
        let mut end = file_bytes.next_multiple_of(16);
        let mut table = self.table.clone();
        for (index, entry) in table.chunks_exact_mut(SECTION_HEADER).enumerate() {
            let name = self.names.get(index).map_or("", String::as_str);
            let Some(section) = self.sections.get(index) else {
                continue;
            };
            let wanted = SYMBOLS.contains(&name) || (debug && DEBUG.contains(&name));
            let there = section.kind != SHT_NOBITS;
            if wanted && there && section.flags & SHF_COMPRESSED != 0 {
                match unpack(file, (section.offset, section.size), &out, end, until) {
                    Ok(size) => {
                        entry[8..16].copy_from_slice(&(section.flags & !SHF_COMPRESSED).to_le_bytes());
                        entry[24..32].copy_from_slice(&end.to_le_bytes());
                        entry[32..40].copy_from_slice(&size.to_le_bytes());
                        bytes += size;
                        end = end.saturating_add(size).next_multiple_of(16);
                    }
                    Err(Outcome::TooSlow) => return Err(Outcome::TooSlow),
                    Err(_) => entry[..8].fill(0),
                }
            } else if there && (wanted || index == self.names_index) {
                bytes += copy_range(file, &mut out, section.offset, section.size, file_bytes)?;
            } else if wanted || name.contains("debug") {
                // Without a name and a kind no reader finds it: debug links, debug sections left out, and what a debug
                // file left in the file that it was made from.
                entry[..8].fill(0);
            }
        }
        out.write_all_at(&table, self.table_offset)
            .map_err(|_| Outcome::ElfError)?;
        bytes += copy_range(
            file,
            &mut out,
            self.segment_table.0,
            self.segment_table.1,
            file_bytes,
        )?;
        Ok(Image {
            file: out,
            bytes,
            debug: false,
            debug_skipped: None,
        })
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

    fn named<'a>(&'a self, wanted: &'a [&'a str]) -> impl Iterator<Item = &'a Section> {
        self.sections
            .iter()
            .zip(&self.names)
            .filter(move |(section, name)| section.kind != SHT_NOBITS && wanted.contains(&name.as_str()))
            .map(|(section, _)| section)
    }

    /// Memory that a section takes in the end: a compressed one says its size in its first bytes (`Elf64_Chdr`).
    fn held(&self, file: &File, section: &Section) -> u64 {
        if section.flags & SHF_COMPRESSED == 0 {
            return section.size;
        }
        let mut header = [0; 24];
        match file.read_exact_at(&mut header, section.offset) {
            Ok(()) => section.size.max(claimed(&header)),
            Err(_) => u64::MAX,
        }
    }
}

/// A copy of bytes that already are a whole ELF file (the vDSO).
pub(super) fn from_bytes(bytes: &[u8]) -> Result<File, Outcome> {
    let mut file: File = memfd_create("tieback-vdso", MemfdFlags::CLOEXEC)
        .map_err(|_| Outcome::ElfError)?
        .into();
    file.write_all(bytes).map_err(|_| Outcome::ElfError)?;
    Ok(file)
}

fn copy_range(file: &File, out: &mut File, offset: u64, size: u64, file_bytes: u64) -> Result<u64, Outcome> {
    let size = size.min(file_bytes.saturating_sub(offset));
    let mut source = file;
    source
        .seek(SeekFrom::Start(offset))
        .map_err(|_| Outcome::ElfError)?;
    out.seek(SeekFrom::Start(offset)).map_err(|_| Outcome::ElfError)?;
    let mut buffer = vec![0; COPY];
    let mut left = size;
    while left > 0 {
        let want = usize::try_from(left).unwrap_or(COPY).min(COPY);
        let got = source.read(&mut buffer[..want]).map_err(|_| Outcome::ElfError)?;
        if got == 0 {
            return Err(Outcome::ElfError);
        }
        out.write_all(&buffer[..got]).map_err(|_| Outcome::ElfError)?;
        left -= got as u64;
    }
    Ok(size)
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

fn read_at(file: &File, offset: u64, len: usize) -> Result<Vec<u8>, Outcome> {
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, offset)
        .map_err(|_| Outcome::ElfError)?;
    Ok(bytes)
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
