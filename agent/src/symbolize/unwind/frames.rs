//! Where a file holds its call frame information. The file belongs to somebody else: every size is bounded.

use std::borrow::Cow;

use gimli::BaseAddresses;
use object::elf;
use object::read::elf::ProgramHeader as _;
use object::{LittleEndian as Little, Object as _, ObjectSection as _, ReadRef};

use super::entries::Sections;
use super::read::{Elf, Refused};
use crate::host::Limited;

/// Largest section after unpacking.
const MAX_SECTION: u64 = 64 << 20;
/// By how much a section grows at most when it is unpacked: call frame information packs to a fifth, and memory is taken for what a
/// section claims.
const MAX_GROWTH: u64 = 100;
/// The call frame information of a file.
pub(super) struct Frames<'a> {
    bases: BaseAddresses,
    /// With its address.
    eh_frame: Option<(u64, Cow<'a, [u8]>)>,
    pub(super) debug_frame: Option<Cow<'a, [u8]>>,
}

impl Frames<'_> {
    pub(super) fn sections(&self) -> Sections<'_> {
        let eh_frame = self.eh_frame.as_ref().map(|(address, data)| (*address, &**data));
        Sections::new(eh_frame, self.debug_frame.as_deref(), &self.bases)
    }
}

impl<'a> Frames<'a> {
    /// Reads them; what is kept of the file is theirs alone.
    pub(super) fn read(elf: &Elf<'_>, kept: &'a Limited<'a>) -> Result<Self, Refused> {
        let mut bases = BaseAddresses::default();
        for section in elf.sections() {
            match section.name() {
                Ok(".text") => bases = bases.set_text(section.address()),
                Ok(".got") => bases = bases.set_got(section.address()),
                _ => {}
            }
        }
        let eh_frame = match elf.section_by_name(".eh_frame") {
            Some(section) => Some((section.address(), contents(&section, kept)?)),
            None => without_sections(elf, kept).map(|(address, data)| (address, Cow::Borrowed(data))),
        };
        let debug_frame = elf.section_by_name(".debug_frame");
        let debug_frame = debug_frame.map(|section| contents(&section, kept)).transpose()?;
        Ok(Self {
            bases,
            eh_frame,
            debug_frame,
        })
    }
}

/// What a section holds; linkers may compress what starts with `.debug`.
fn contents<'a, 'b>(
    section: &impl object::ObjectSection<'b>,
    kept: &'a Limited<'a>,
) -> Result<Cow<'a, [u8]>, Refused> {
    let range = section.compressed_file_range().map_err(|_| Refused::Malformed)?;
    let most = MAX_GROWTH.saturating_mul(range.compressed_size).min(MAX_SECTION);
    if section.size() > MAX_SECTION || range.uncompressed_size > most {
        return Err(Refused::TooLarge);
    }
    if range.format == object::CompressionFormat::None {
        let data = kept.read_bytes_at(range.offset, range.compressed_size);
        return data.map(Cow::Borrowed).map_err(|()| Refused::Malformed);
    }
    let data = section.compressed_data().map_err(|_| Refused::Malformed)?;
    let data = data.decompress().map_err(|_| Refused::Malformed)?;
    Ok(Cow::Owned(data.into_owned()))
}

/// `.eh_frame` of a file without section headers: its index is a segment of its own (`PT_GNU_EH_FRAME`; LSB 5.0, 10.6.2) and
/// begins with a pointer to it.
fn without_sections<'a>(elf: &Elf<'_>, limited: &'a Limited<'a>) -> Option<(u64, &'a [u8])> {
    let segments = elf.elf_program_headers();
    let index = segments
        .iter()
        .find(|segment| segment.p_type(Little) == elf::PT_GNU_EH_FRAME)?;
    let (offset, address) = (index.p_offset(Little), index.p_vaddr(Little));
    let head: [u8; 8] = limited.read_bytes_at(offset, 8).ok()?.try_into().ok()?;
    // Version 1, and the encoding that every linker uses: relative to itself, four signed bytes.
    if head[..2] != [1, 0x1b] {
        return None;
    }
    let relative = i32::from_le_bytes([head[4], head[5], head[6], head[7]]);
    let frame = address.checked_add(4)?.checked_add_signed(i64::from(relative))?;
    let inside = |segment: &&elf::ProgramHeader64<Little>| {
        segment.p_type(Little) == elf::PT_LOAD
            && frame
                .checked_sub(segment.p_vaddr(Little))
                .is_some_and(|at| at < segment.p_filesz(Little))
    };
    let segment = segments.iter().find(inside)?;
    let at = frame - segment.p_vaddr(Little);
    // To the end of its segment: a zero length ends the section before.
    let size = segment.p_filesz(Little).checked_sub(at)?;
    if size > MAX_SECTION {
        return None;
    }
    let data = limited
        .read_bytes_at(segment.p_offset(Little).checked_add(at)?, size)
        .ok()?;
    Some((frame, data))
}
