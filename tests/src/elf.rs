//! What `readelf` says of executables: where their code is in the file, and where programs and threads begin.

use std::collections::HashMap;
use std::ops::Range;
use std::process::Command;

use anyhow::{Context, Result};

/// One file.
#[derive(Debug, Default)]
struct Elf {
    /// Addresses of a segment, and what to subtract for the offset in the file.
    segments: Vec<(Range<u64>, u64)>,
    /// Offsets of functions that say that nobody called them: their return address is undefined.
    entries: Vec<Range<u64>>,
    /// Offsets of all functions with call frame information, in order.
    described: Vec<Range<u64>>,
    /// Offsets of CPython's loop.
    python: Option<Range<u64>>,
}

/// Files that were asked for.
#[derive(Debug, Default)]
pub struct Files(HashMap<String, Elf>);

impl Files {
    /// The offset in a file at an address of it; the address itself where there is no file.
    pub fn offset(&mut self, module: &str, address: u64) -> Result<u64> {
        Ok(self.get(module)?.offset(address))
    }

    /// Whether a program or a thread begins here.
    pub fn is_entry(&mut self, module: &str, offset: u64) -> Result<bool> {
        let entries = &self.get(module)?.entries;
        Ok(entries.iter().any(|range| range.contains(&offset)))
    }

    /// Whether there is call frame information for a place: not for code that a program made itself, nor for V8's built-in functions.
    pub fn is_described(&mut self, module: &str, offset: u64) -> Result<bool> {
        let described = &self.get(module)?.described;
        let after = described.partition_point(|range| range.start <= offset);
        let found = after.checked_sub(1).and_then(|at| described.get(at));
        Ok(module == "[vdso]" || found.is_some_and(|range| range.contains(&offset)))
    }

    /// Whether a place is in the loop in which CPython runs functions.
    pub fn is_python(&mut self, module: &str, offset: u64) -> Result<bool> {
        let python = &self.get(module)?.python;
        Ok(python.as_ref().is_some_and(|range| range.contains(&offset)))
    }

    fn get(&mut self, module: &str) -> Result<&Elf> {
        if !self.0.contains_key(module) {
            let elf = if module.starts_with('/') {
                Elf::read(module)?
            } else {
                Elf::default()
            };
            self.0.insert(module.to_owned(), elf);
        }
        self.0.get(module).context("just put there")
    }
}

impl Elf {
    fn read(path: &str) -> Result<Self> {
        let mut elf = Self {
            segments: segments(&readelf(&["--program-headers"], path)?),
            ..Self::default()
        };
        let text = readelf(&["--debug-dump=frames-interp"], path)?;
        let offsets = |ranges: Vec<Range<u64>>| -> Vec<Range<u64>> {
            ranges
                .into_iter()
                .map(|range| {
                    let start = elf.offset(range.start);
                    start..start + (range.end - range.start)
                })
                .collect()
        };
        let (entries, mut described) = (offsets(entries(&text)), offsets(functions(&text)));
        described.sort_by_key(|range| range.start);
        elf.python = offsets(python(&readelf(&["--dyn-syms"], path)?)).pop();
        (elf.entries, elf.described) = (entries, described);
        Ok(elf)
    }

    fn offset(&self, address: u64) -> u64 {
        let segment = self.segments.iter().find(|(range, _)| range.contains(&address));
        segment.map_or(address, |(_, minus)| address.wrapping_sub(*minus))
    }
}

fn readelf(arguments: &[&str], path: &str) -> Result<String> {
    let output = Command::new("readelf")
        .arg("--wide")
        .args(arguments)
        .arg(path)
        .output();
    let output = output.context("start readelf: cargo xtask setup --tests")?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// `NUMBER: ADDRESS SIZE FUNC GLOBAL DEFAULT SECTION NAME`
fn python(text: &str) -> Vec<Range<u64>> {
    let line = text
        .lines()
        .find(|line| line.ends_with(" _PyEval_EvalFrameDefault"));
    let range = line.and_then(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let (start, size) = (hex(fields.next()?)?, fields.next()?.parse::<u64>().ok()?);
        Some(start..start + size)
    });
    range.into_iter().collect()
}

fn hex(text: &str) -> Option<u64> {
    u64::from_str_radix(text.trim_start_matches("0x"), 16).ok()
}

/// `LOAD OFFSET ADDRESS PHYSICAL SIZE-IN-FILE ...`
fn segments(text: &str) -> Vec<(Range<u64>, u64)> {
    let segment = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let ["LOAD", offset, address, _, size, ..] = fields[..] else {
            return None;
        };
        let (offset, address, size) = (hex(offset)?, hex(address)?, hex(size)?);
        Some((address..address + size, address.wrapping_sub(offset)))
    };
    text.lines().filter_map(segment).collect()
}

/// The addresses that a line of a function's says it is for.
fn function(line: &str) -> Option<Range<u64>> {
    let (_, range) = line.split_once(" FDE ")?.1.split_once("pc=")?;
    let (from, to) = range.split_once("..")?;
    Some(hex(from)?..hex(to.trim())?)
}

/// All functions with a table.
fn functions(text: &str) -> Vec<Range<u64>> {
    text.lines().filter_map(function).collect()
}

/// Functions in whose table the last column, that of the return address, says `u`: there, or in what they have in common.
fn entries(text: &str) -> Vec<Range<u64>> {
    let (mut entries, mut common, mut function, mut name) = (Vec::new(), Vec::new(), None, "");
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if line.contains(" CIE ") {
            (function, name) = (None, words.next().unwrap_or_default());
        } else if let Some((_, range)) = line
            .split_once(" FDE ")
            .and_then(|(_, rest)| rest.split_once("pc="))
        {
            function = range
                .split_once("..")
                .and_then(|(from, to)| Some(hex(from)?..hex(to.trim())?));
            let of = line
                .split_once("cie=")
                .map_or("", |(_, rest)| rest.get(..8).unwrap_or_default());
            entries.extend(function.clone().filter(|_| common.contains(&of)));
        } else if line.trim_end().ends_with(" u") && words.next().and_then(hex).is_some() {
            match &function {
                Some(range) if entries.last() != Some(range) => entries.push(range.clone()),
                Some(_) => {}
                None => common.push(name),
            }
        }
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAMES: &str = "\
00000000 0000000000000014 00000000 CIE \"zR\" cf=1 df=-8 ra=16
   LOC           CFA      ra
0000000000000000 rsp+8    u

00000018 0000000000000014 0000001c FDE cie=00000000 pc=0000000000025410..0000000000025432

00000030 0000000000000014 00000000 CIE \"zR\" cf=1 df=-8 ra=16
   LOC           CFA      ra
0000000000000000 rsp+8    c-8

00000048 0000000000000024 0000001c FDE cie=00000030 pc=0000000000025020..0000000000025380
   LOC           CFA      rbp   ra
0000000000025020 rsp+16   u     c-8
0000000000025026 rsp+24   u     c-8

00000070 0000000000000014 00000044 FDE cie=00000030 pc=0000000000026000..0000000000026040
   LOC           CFA      ra
0000000000026000 rsp+8    c-8
0000000000026010 rsp+8    u
";

    #[test]
    fn entries_are_where_the_return_address_is_undefined() {
        assert_eq!(entries(FRAMES), [0x25410..0x25432, 0x26000..0x26040]);
        assert_eq!(
            functions(FRAMES),
            [0x25410..0x25432, 0x25020..0x25380, 0x26000..0x26040]
        );
    }

    #[test]
    fn offsets_are_by_segment() {
        let text =
            "  LOAD           0x020000 0x0000000000420000 0x0000000000420000 0x2b1000 0x2b1000 R E 0x1000\n";
        let elf = Elf {
            segments: segments(text),
            ..Elf::default()
        };
        assert_eq!((elf.offset(0x42_0f10), elf.offset(0x10)), (0x2_0f10, 0x10));
    }
}
