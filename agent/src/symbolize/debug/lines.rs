//! How large the tables of lines and files of a unit become.

use std::cell::LazyCell;
use std::fs::File;

use gimli::{AttributeValue, DebugLine, DebugLineOffset, EndianSlice, LittleEndian};

use super::nesting::{read, unit_length};
use crate::symbolize::Outcome;
use crate::symbolize::cpu_time::CpuTime;
use crate::symbolize::headers::Headers;

/// Longest table of lines of one unit, in bytes: each may become a row of 24 bytes. That of SQLite as one file is 1 MB.
const MAX_LINES: u64 = 4 << 20;
/// Most bytes of paths of one unit. Many files may name the same long string, and each gets a copy.
const MAX_PATHS: usize = 4 << 20;

type Slice<'a> = EndianSlice<'a, LittleEndian>;

/// Walks the headers of `.debug_line` of a copy.
pub(super) fn check(file: &File, headers: &Headers, until: CpuTime) -> Result<(), Outcome> {
    let Some((mut at, size)) = headers.range(".debug_line") else {
        return Ok(());
    };
    let section = |name| match headers.range(name) {
        Some((offset, size)) => read(file, offset, size),
        None => Ok(Vec::new()),
    };
    let strings = Strings {
        of_lines: section(".debug_line_str")?,
        of_all: LazyCell::new(Box::new(|| section(".debug_str"))),
    };
    let end = at.saturating_add(size);
    while at < end {
        // Padding at the end is no unit.
        let Ok(length) = unit_length(file, at, end) else {
            break;
        };
        if length > MAX_LINES {
            return Err(Outcome::TooLarge);
        }
        let unit = read(file, at, length)?;
        if strings.paths(&unit, until)? > MAX_PATHS {
            return Err(Outcome::TooLarge);
        }
        at += length;
    }
    Ok(())
}

type Read<'a> = Box<dyn FnOnce() -> Result<Vec<u8>, Outcome> + 'a>;

struct Strings<'a> {
    of_lines: Vec<u8>,
    /// Compilers hardly put paths there, and it is the largest section of many programs.
    of_all: LazyCell<Result<Vec<u8>, Outcome>, Read<'a>>,
}

impl Strings<'_> {
    /// Bytes of the paths of all files that a table names, counted to just above the limit.
    fn paths(&self, unit: &[u8], until: CpuTime) -> Result<usize, Outcome> {
        if CpuTime::now() > until {
            return Err(Outcome::TooSlow);
        }
        let lines = DebugLine::new(unit, LittleEndian);
        let Ok(program) = lines.program(DebugLineOffset(0), 8, None, None) else {
            // The reader cannot read it either.
            return Ok(0);
        };
        let header = program.header();
        let mut sum = 0usize;
        for file in header.file_names() {
            let directory = file
                .directory(header)
                .map_or(Ok(0), |directory| self.len(&directory))?;
            sum = sum
                .saturating_add(self.len(&file.path_name())?)
                .saturating_add(directory);
            if sum > MAX_PATHS {
                break;
            }
        }
        Ok(sum)
    }

    /// No longer than just above the limit, so that a long string costs no time.
    fn len(&self, value: &AttributeValue<Slice<'_>>) -> Result<usize, Outcome> {
        let (section, at) = match value {
            AttributeValue::String(text) => return Ok(text.len()),
            AttributeValue::DebugLineStrRef(at) => (&self.of_lines, at.0),
            AttributeValue::DebugStrRef(at) => (self.of_all.as_ref().map_err(|why| *why)?, at.0),
            _ => return Ok(0),
        };
        let text = section.get(at..).unwrap_or_default();
        let text = &text[..text.len().min(MAX_PATHS + 1)];
        Ok(text.iter().position(|byte| *byte == 0).unwrap_or(text.len()))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const LINE_STRP: u8 = 0x1f;
    const STRP: u8 = 0x0e;

    /// A table of DWARF 5 without lines: one directory, and `files` files that all name the string at 0.
    fn table(form: u8, files: u16) -> Vec<u8> {
        let mut header = vec![1, 1, 1, 0xfb, 14, 13, 0, 1, 1, 1, 1, 0, 0, 0, 1, 0, 0, 1];
        header.extend([1, 1, form, 1, 0, 0, 0, 0]);
        header.extend([1, 1, form]);
        header.extend([
            (files & 0x7f) as u8 | 0x80,
            (files >> 7 & 0x7f) as u8 | 0x80,
            (files >> 14) as u8,
        ]);
        header.extend(vec![0; usize::from(files) * 4]);
        let mut unit = vec![5, 0, 8, 0];
        unit.extend(u32::try_from(header.len()).unwrap().to_le_bytes());
        unit.extend(header);
        let mut all = u32::try_from(unit.len()).unwrap().to_le_bytes().to_vec();
        all.extend(unit);
        all
    }

    #[test]
    fn a_long_name_counts_for_each_file_that_has_it() {
        let mut name = vec![b'x'; 1000];
        name.push(0);
        let strings = Strings {
            of_lines: name.clone(),
            of_all: LazyCell::new(Box::new(|| Ok([&name[..3], &name[..]].concat()))),
        };
        let soon = CpuTime::now() + Duration::from_secs(60);
        // The directory is such a name, too.
        assert_eq!(strings.paths(&table(LINE_STRP, 3), soon), Ok(6000));
        assert_eq!(strings.paths(&table(STRP, 3), soon), Ok(6018));
        assert!(strings.paths(&table(LINE_STRP, 60_000), soon).unwrap() > MAX_PATHS);
        assert_eq!(strings.paths(b"nonsense", soon), Ok(0));
        let unreadable = Strings {
            of_lines: name.clone(),
            of_all: LazyCell::new(Box::new(|| Err(Outcome::ElfError))),
        };
        assert_eq!(unreadable.paths(&table(LINE_STRP, 3), soon), Ok(6000));
        assert_eq!(unreadable.paths(&table(STRP, 3), soon), Err(Outcome::ElfError));
    }
}
