//! What an executable says of its own release. Nothing in it is trusted: every size is bounded.

#[cfg(test)]
mod tests;

use object::elf::{self, FileHeader32, FileHeader64};
use object::read::elf::{FileHeader, NoteIterator, ProgramHeader as _, SectionHeader as _, SectionTable};
use object::{Endianness, FileKind, ReadCache, ReadRef};
use serde::Deserialize;

use crate::host::Executable;

/// Largest piece that is read at once; real tables and notes are far smaller.
const PIECE: u64 = 1 << 20;
/// Where Go's build information is looked for in a file without sections.
const DATA: u64 = 64 << 10;
/// Notes that are read at most: real files have a dozen, a crafted one may have the same ones in thousands of sections.
const NOTES: usize = 4096;
/// Digits of an id that tell releases apart; as many as people know from Git.
const ID_DIGITS: usize = 12;
/// `NT_FDO_PACKAGING_METADATA`, systemd's "Package Metadata for Executable Files".
const PACKAGE_NOTE: u32 = 0xcafe_1a7e;
/// Go's note with its own build id (cmd/internal/buildid).
const GO_BUILD_ID: u32 = 4;

/// What was found in an executable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Build {
    /// Built by Go.
    pub(super) go: bool,
    /// The release that it was built as.
    pub(super) release: Option<String>,
    /// Some part of it contradicts itself.
    pub(super) malformed: bool,
}

/// Refuses large pieces before memory is taken for them.
#[derive(Clone, Copy)]
struct Pieces<R>(R);

impl<'data, R: ReadRef<'data>> ReadRef<'data> for Pieces<R> {
    fn len(self) -> Result<u64, ()> {
        self.0.len()
    }

    fn read_bytes_at(self, offset: u64, size: u64) -> Result<&'data [u8], ()> {
        if size > PIECE {
            return Err(());
        }
        self.0.read_bytes_at(offset, size)
    }

    fn read_bytes_at_until(self, range: std::ops::Range<u64>, delimiter: u8) -> Result<&'data [u8], ()> {
        self.0.read_bytes_at_until(range, delimiter)
    }
}

/// Everything that may tell a release, as it stands in the file.
#[derive(Default)]
struct Finds {
    go_info: Option<Vec<u8>>,
    go_id: Option<String>,
    package: Option<String>,
    gnu_id: Option<String>,
    malformed: bool,
    notes: usize,
}

/// Reads an executable.
pub(super) fn read(executable: Executable) -> Build {
    parse(Pieces(&ReadCache::new(executable)))
}

fn parse<'data>(data: impl ReadRef<'data>) -> Build {
    let mut finds = Finds::default();
    match FileKind::parse(data) {
        Ok(FileKind::Elf64) => finds.file::<FileHeader64<Endianness>, _>(data),
        Ok(FileKind::Elf32) => finds.file::<FileHeader32<Endianness>, _>(data),
        Ok(_) | Err(_) => finds.malformed = true,
    }
    let go = finds.go_info.is_some() || finds.go_id.is_some();
    let release = finds
        .go_info
        .as_deref()
        .and_then(go_release)
        .or(finds.package)
        .or(finds.gnu_id)
        .or(finds.go_id);
    Build {
        go,
        release,
        malformed: finds.malformed,
    }
}

impl Finds {
    /// A part that cannot be read costs a mark; the other parts are read all the same.
    fn sound<T>(&mut self, part: object::Result<T>) -> Option<T> {
        self.malformed |= part.is_err();
        part.ok()
    }

    fn file<'data, Elf, R>(&mut self, data: R)
    where
        Elf: FileHeader<Endian = Endianness>,
        R: ReadRef<'data>,
    {
        let Some(header) = self.sound(Elf::parse(data)) else {
            return;
        };
        let Some(endian) = self.sound(header.endian()) else {
            return;
        };
        let sections = self.sound(header.sections(endian, data));
        for section in sections.iter().flat_map(SectionTable::iter) {
            if let Some(Some(notes)) = self.sound(section.notes(endian, data)) {
                self.notes(endian, notes);
            }
            let name = sections
                .as_ref()
                .and_then(|table| table.section_name(endian, section).ok());
            if name == Some(b".go.buildinfo".as_slice())
                && let Some(bytes) = self.sound(section.data(endian, data))
            {
                self.go_info = Some(bytes.to_vec());
            }
        }
        // Sections can be stripped, segments cannot.
        let segments = self
            .sound(header.program_headers(endian, data))
            .unwrap_or_default();
        for segment in segments {
            if let Some(Some(notes)) = self.sound(segment.notes(endian, data)) {
                self.notes(endian, notes);
            }
            if self.go_info.is_none()
                && segment.p_type(endian) == elf::PT_LOAD
                && segment.p_flags(endian) & elf::PF_W != 0
            {
                let (at, size) = segment.file_range(endian);
                let bytes = data.read_bytes_at(at, size.min(DATA)).ok();
                self.go_info = bytes.and_then(find_go_info).map(<[u8]>::to_vec);
            }
        }
    }

    fn notes<Elf: FileHeader>(&mut self, endian: Elf::Endian, mut notes: NoteIterator<'_, Elf>) {
        while let Some(Some(note)) = self.sound(notes.next()) {
            self.notes += 1;
            if self.notes > NOTES {
                self.malformed = true;
                return;
            }
            let desc = note.desc();
            match (note.name(), note.n_type(endian)) {
                (b"GNU", elf::NT_GNU_BUILD_ID) if !desc.is_empty() => {
                    let hex: String = desc.iter().map(|byte| format!("{byte:02x}")).collect();
                    self.gnu_id = Some(hex.chars().take(ID_DIGITS).collect());
                }
                (b"FDO", PACKAGE_NOTE) => self.package = package_version(desc).or(self.package.take()),
                // The last of its four parts is the hash of what the executable holds.
                (b"Go", GO_BUILD_ID) => {
                    let id = String::from_utf8_lossy(desc);
                    let content = id.trim_end_matches('\0').rsplit('/').next().unwrap_or_default();
                    self.go_id = (!content.is_empty()).then(|| content.chars().take(ID_DIGITS).collect());
                }
                _ => {}
            }
        }
    }
}

fn package_version(json: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Package {
        version: String,
    }
    let text = json.split(|byte| *byte == 0).next()?;
    let package: Package = serde_json::from_slice(text).ok()?;
    (!package.version.is_empty()).then_some(package.version)
}

const GO_MAGIC: &[u8] = b"\xff Go buildinf:";
/// Size of the header, and what it is aligned to (debug/buildinfo).
const GO_HEADER: usize = 32;
const GO_ALIGN: usize = 16;

fn find_go_info(data: &[u8]) -> Option<&[u8]> {
    let at = (0..data.len())
        .step_by(GO_ALIGN)
        .find(|at| data.get(*at..).is_some_and(|rest| rest.starts_with(GO_MAGIC)))?;
    data.get(at..)
}

/// A string after its length as a varint, and what follows; cut where the bytes end.
fn go_string(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut length = 0usize;
    for (i, byte) in data.iter().enumerate().take(5) {
        length |= usize::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            let rest = data.get(i + 1..)?;
            return Some(rest.split_at(length.min(rest.len())));
        }
    }
    None
}

/// Version of the main module, or the commit where the module has none.
fn go_release(info: &[u8]) -> Option<String> {
    // Bit 1: the strings follow the header. Go before 1.18 (2022) wrote pointers to them.
    let inline = info.starts_with(GO_MAGIC) && info.get(15)? & 2 != 0;
    let (_, rest) = go_string(info.get(GO_HEADER..).filter(|_| inline)?)?;
    let (module, _) = go_string(rest)?;
    // 16 bytes on either side mark the module's text for debuggers.
    let text = String::from_utf8_lossy(module.get(16..)?);
    let mut version = None;
    let mut revision = None;
    let mut modified = "";
    for line in text.lines() {
        let mut fields = line.split('\t');
        match (fields.next(), fields.next(), fields.next()) {
            (Some("mod"), Some(_), found) => version = found,
            (Some("build"), Some(setting), _) => match setting.split_once('=') {
                Some(("vcs.revision", value)) => revision = Some(value),
                Some(("vcs.modified", "true")) => modified = "+dirty",
                _ => {}
            },
            _ => {}
        }
    }
    match version {
        Some(version) if !matches!(version, "" | "(devel)") => Some(version.to_owned()),
        _ => {
            let short: String = revision?.chars().take(ID_DIGITS).collect();
            Some(short + modified)
        }
    }
}
