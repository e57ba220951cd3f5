//! A private copy of the parts of an ELF file that hold symbols and debug information.
//!
//! The file itself is never mapped: whoever owns it may truncate it at any time, and a mapping would then kill the
//! agent (SIGBUS). The copy is a sparse memfd with the same offsets, so that it still is that ELF file to a reader.
//! Sections that name other files (`.gnu_debuglink` and the like) are left out: a file must not choose what is opened.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use rustix::fs::{MemfdFlags, memfd_create};

use super::Outcome;
use super::cpu_time::CpuTime;
use super::debug::{claimed, nesting, unpack};
use super::headers::{Headers, SECTION_HEADER, SHT_NOBITS, Section};

const SHF_COMPRESSED: u64 = 0x800;
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

    /// Reads what is at an offset of the file, where that was copied; zeros elsewhere.
    pub(super) fn read(&self, offset: u64, bytes: &mut [u8]) -> Option<()> {
        self.file.read_exact_at(bytes, offset).ok()
    }
}

impl Headers {
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
    if size == 0 {
        return Ok(0);
    }
    let mut source = file;
    source
        .seek(SeekFrom::Start(offset))
        .map_err(|_| Outcome::ElfError)?;
    out.seek(SeekFrom::Start(offset)).map_err(|_| Outcome::ElfError)?;
    let mut buffer = vec![0; usize::try_from(size).unwrap_or(COPY).min(COPY)];
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
