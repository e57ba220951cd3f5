//! Whether debug information can be read without harm, to the stack above all.
//!
//! The library that reads it descends into functions inlined in functions inlined in functions by recursion, and nobody
//! can stop it once it has begun. A stack that overflows ends the process. So every entry is walked once before, with a
//! counter in place of a stack and a clock at hand.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use gimli::{Abbreviations, DebugAbbrev, DebugInfo, LittleEndian};

use super::lines;
use super::ranges::{Counter, Sections};
use crate::symbolize::Outcome;
use crate::symbolize::cpu_time::CpuTime;
use crate::symbolize::headers::Headers;

/// Functions inlined in each other at most. The deepest of LLVM and Chromium are below 100.
const MAX_INLINED: usize = 256;

/// Walks the debug information of a copy.
pub(in super::super) fn check(file: &File, until: CpuTime) -> Result<(), Outcome> {
    let headers = Headers::read(file)?;
    let Some((mut at, size)) = headers.range(".debug_info") else {
        // It was there, and could not be unpacked.
        return Err(Outcome::ElfError);
    };
    let abbrev = match headers.range(".debug_abbrev") {
        Some((offset, size)) => read(file, offset, size)?,
        None => Vec::new(),
    };
    let abbrev = DebugAbbrev::new(&abbrev, LittleEndian);
    let sections = Sections::read(file, &headers)?;
    let mut ranges = sections.counter(until);
    let end = at.saturating_add(size);
    let mut last = None;
    while at < end {
        let length = unit_length(file, at, end)?;
        let unit = read(file, at, length)?;
        walk(&unit, &abbrev, &mut last, &mut ranges, until)
            .map_err(|why| why.unwrap_or(Outcome::ElfError))?;
        at += length;
    }
    lines::check(file, &headers, until)
}

/// Units share their abbreviations where a linker merged them.
type Shared = Option<(usize, Arc<Abbreviations>)>;

/// Errors of the format are `None`.
fn walk(
    unit: &[u8],
    abbrev: &DebugAbbrev<gimli::EndianSlice<'_, LittleEndian>>,
    last: &mut Shared,
    ranges: &mut Counter<'_>,
    until: CpuTime,
) -> Result<(), Option<Outcome>> {
    let malformed = |_| None;
    let Some(header) = DebugInfo::new(unit, LittleEndian)
        .units()
        .next()
        .map_err(malformed)?
    else {
        return Ok(());
    };
    let offset = header.debug_abbrev_offset().0;
    let abbreviations = match last {
        Some((known, abbreviations)) if *known == offset => Arc::clone(abbreviations),
        _ => Arc::new(header.abbreviations(abbrev).map_err(malformed)?),
    };
    *last = Some((offset, Arc::clone(&abbreviations)));
    let encoding = header.encoding();
    ranges.unit(encoding);
    let mut entries = header.entries_raw(&abbreviations, None).map_err(malformed)?;
    let mut inlined: Vec<isize> = Vec::new();
    let mut count = 0u32;
    while !entries.is_empty() {
        let depth = entries.next_depth();
        count += 1;
        if count.is_multiple_of(1024) && CpuTime::now() > until {
            return Err(Some(Outcome::TooSlow));
        }
        let Some(abbreviation) = entries.read_abbreviation().map_err(malformed)? else {
            continue;
        };
        let of_ranges = |name| [gimli::DW_AT_ranges, gimli::DW_AT_rnglists_base].contains(&name);
        if abbreviation
            .attributes()
            .iter()
            .any(|spec| of_ranges(spec.name()))
        {
            let mut own = None;
            for spec in abbreviation.attributes() {
                let attribute = entries.read_attribute(*spec).map_err(malformed)?;
                match attribute.name() {
                    gimli::DW_AT_ranges => own = Some(attribute),
                    _ => ranges.add(&attribute, encoding)?,
                }
            }
            // An index counts from a base that may come after it.
            if let Some(attribute) = own {
                ranges.add(&attribute, encoding)?;
            }
        } else {
            entries
                .skip_attributes(abbreviation.attributes())
                .map_err(malformed)?;
        }
        if abbreviation.tag() == gimli::DW_TAG_inlined_subroutine {
            while inlined.last().is_some_and(|outer| *outer >= depth) {
                inlined.pop();
            }
            inlined.push(depth);
            if inlined.len() > MAX_INLINED {
                return Err(Some(Outcome::TooLarge));
            }
        }
    }
    if CpuTime::now() > until {
        return Err(Some(Outcome::TooSlow));
    }
    Ok(())
}

/// With its own length, as 32 or 64 bits (DWARF 5, 7.4).
pub(super) fn unit_length(file: &File, at: u64, end: u64) -> Result<u64, Outcome> {
    let mut bytes = [0; 12];
    let there = usize::try_from(end - at).unwrap_or(12).min(12);
    file.read_exact_at(&mut bytes[..there], at)
        .map_err(|_| Outcome::ElfError)?;
    let [a, b, c, d, rest @ ..] = bytes;
    let length = match u32::from_le_bytes([a, b, c, d]) {
        u32::MAX => u64::from_le_bytes(rest).checked_add(12),
        length => Some(u64::from(length) + 4),
    };
    length
        .filter(|length| *length <= end - at)
        .ok_or(Outcome::ElfError)
}

pub(super) fn read(file: &File, offset: u64, size: u64) -> Result<Vec<u8>, Outcome> {
    // The file is a copy whose sections are within the limit.
    if size > file.metadata().map_err(|_| Outcome::ElfError)?.len() {
        return Err(Outcome::ElfError);
    }
    let mut bytes = vec![0; usize::try_from(size).map_err(|_| Outcome::TooLarge)?];
    file.read_exact_at(&mut bytes, offset)
        .map_err(|_| Outcome::ElfError)?;
    Ok(bytes)
}
