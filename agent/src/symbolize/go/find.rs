//! Where the table of an executable is, and what of Go's description of the executable (`moduledata`) belongs to it.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::Version;
use super::bytes::Bytes;
use crate::symbolize::Outcome;
use crate::symbolize::headers::{Headers, Place};

/// By linker: an executable at a fixed address, one that can be anywhere.
const TABLES: [&str; 2] = [".gopclntab", ".data.rel.ro.gopclntab"];
/// Where `moduledata` may be.
const MODULES: [&str; 5] = [
    ".go.module",
    ".noptrdata",
    ".data.rel.ro",
    ".data",
    ".data.rel.ro.local",
];
const RELOCATIONS: [&str; 2] = [".rela.dyn", ".rela"];
/// `R_X86_64_RELATIVE` and `R_AARCH64_RELATIVE`: the value is the addend.
const RELATIVE: [u64; 2] = [8, 1027];

/// What belongs together.
pub(super) struct Found {
    pub(super) version: Version,
    pub(super) table: Bytes,
    pub(super) text: u64,
    pub(super) inlined: Bytes,
}

/// The table of a file.
pub(super) fn table(file: &File, headers: &Headers, max_bytes: u64) -> Result<Option<Found>, Outcome> {
    let Some(place) = TABLES.iter().find_map(|name| headers.place(name)) else {
        return Ok(None);
    };
    if place.size > max_bytes {
        return Err(Outcome::TooLarge);
    }
    let table = Bytes::new(read(file, place.offset, place.size)?);
    let magic = table.u32(0).ok_or(Outcome::ElfError)?;
    let version = Version::of(magic).ok_or(Outcome::ElfError)?;
    // Two bytes of zero, the unit of code addresses, the size of a pointer.
    if table
        .u32(4)
        .is_none_or(|sizes| sizes & 0xff00_ffff != 0x0800_0000)
    {
        return Err(Outcome::ElfError);
    }
    let names = table.u64(32).ok_or(Outcome::ElfError)?;
    let module = Module::find(
        file,
        headers,
        (place.address, place.address.wrapping_add(names)),
        max_bytes,
    );
    let in_header = table.u64(24).filter(|text| *text != 0);
    let text = module.as_ref().and_then(|module| module.word(22)).or(in_header);
    let left = max_bytes - place.size;
    let inlined = module
        .and_then(|module| module.inlined(version))
        .and_then(|address| headers.rest_of_section(address))
        .filter(|(_, size)| *size <= left)
        .and_then(|(offset, size)| read(file, offset, size).ok());
    Ok(Some(Found {
        version,
        table,
        text: text.ok_or(Outcome::ElfError)?,
        inlined: Bytes::new(inlined.unwrap_or_default()),
    }))
}

fn read(file: &File, offset: u64, size: u64) -> Result<Vec<u8>, Outcome> {
    let mut bytes = vec![0; usize::try_from(size).map_err(|_| Outcome::TooLarge)?];
    file.read_exact_at(&mut bytes, offset)
        .map_err(|_| Outcome::ElfError)?;
    Ok(bytes)
}

/// The words of `moduledata`: as they are in the file, or as relocations make them.
struct Module([Option<u64>; WORDS]);

const WORDS: usize = 48;

impl Module {
    /// It begins with the addresses of the table and of the names in it.
    fn find(file: &File, headers: &Headers, begins_with: (u64, u64), max_bytes: u64) -> Option<Self> {
        let sections = MODULES.iter().filter_map(|name| headers.place(name));
        for place in sections.filter(|place| place.size <= max_bytes) {
            let Ok(bytes) = read(file, place.offset, place.size) else {
                continue;
            };
            let words = |bytes: &[u8]| -> Vec<u64> {
                let words = bytes.as_chunks().0.iter();
                words.map(|word| u64::from_le_bytes(*word)).collect()
            };
            let words = words(&bytes);
            let at = words
                .windows(2)
                .position(|pair| (pair[0], pair[1]) == begins_with);
            if let Some(at) = at {
                return Some(Self(std::array::from_fn(|word| words.get(at + word).copied())));
            }
        }
        let relocations = RELOCATIONS.iter().filter_map(|name| headers.place(name));
        relocations
            .filter(|place| place.size <= max_bytes)
            .find_map(|place| Self::relocated(file, headers, place, begins_with))
    }

    fn relocated(file: &File, headers: &Headers, place: Place, begins_with: (u64, u64)) -> Option<Self> {
        let bytes = read(file, place.offset, place.size).ok()?;
        // Offset, kind and symbol, addend (`Elf64_Rela`).
        let entries = bytes.as_chunks::<24>().0.iter().map(|entry| {
            let word = |at: usize| {
                entry[at..]
                    .first_chunk()
                    .map_or(0, |word| u64::from_le_bytes(*word))
            };
            (word(0), word(8), word(16))
        });
        let relative = entries.filter(|(_, kind, _)| RELATIVE.contains(kind));
        let start = relative
            .clone()
            .find(|(_, _, value)| *value == begins_with.0)
            .map(|(at, ..)| at)?;
        let mut words = [None; WORDS];
        if let Some((offset, left)) = headers.rest_of_section(start)
            && let Ok(there) = read(file, offset, left.min(8 * WORDS as u64))
        {
            for (word, bytes) in words.iter_mut().zip(there.as_chunks().0) {
                *word = Some(u64::from_le_bytes(*bytes));
            }
        }
        for (at, _, value) in relative {
            let word = at.checked_sub(start).map(|at| at / 8);
            if let Some(word) = word.and_then(|word| words.get_mut(usize::try_from(word).ok()?)) {
                *word = Some(value);
            }
        }
        ((words[0], words[1]) == (Some(begins_with.0), Some(begins_with.1))).then_some(Self(words))
    }

    fn word(&self, at: usize) -> Option<u64> {
        self.0.get(at).copied().flatten().filter(|word| *word != 0)
    }

    /// Address of what is known of functions (`gofunc`). Words came before it with Go 1.20 (`covctrs`) and with Go 1.27
    /// (`typedesclen`, a length where the end of the types was before, and two for itabs).
    fn inlined(&self, version: Version) -> Option<u64> {
        match version {
            Version::Go118 => self.word(38),
            Version::Go120 if self.word(38)? >= self.word(37)? => self.word(40),
            Version::Go120 => self.word(43),
        }
    }
}
