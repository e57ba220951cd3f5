//! The allocator of an executable file: its functions, and where to probe them.

use std::collections::{BTreeMap, BTreeSet};

use object::read::elf::{ElfFile64, FileHeader as _, ProgramHeader as _};
use object::{
    Endianness, Object as _, ObjectSymbol as _, ObjectSymbolTable as _, RelocationTarget, SymbolKind, elf,
};

use super::code::{Sites, Text, sites};
use super::functions::Family;
use super::results::disputed;
use super::{ALLOC_RANGES, AllocCall, COUNTS_ELSEWHERE};
use crate::host::{Limited, OpenFile};

/// Bytes of a file that are read at most: its symbols, most of all.
const MOST_READ: u64 = 256 << 20;
/// Largest part of its code that is read: what holds the functions of an allocator, not the whole program.
const MOST_CODE: u64 = 8 << 20;
/// Functions that are this near to each other are of the same part of a program, with nobody else's in between.
const NEAR: u64 = 4096;
/// How much of the code behind a function is read: it may end with a jump to a part that has no symbol.
const BEYOND: u64 = 256 << 10;
/// Functions at most; no allocator has a quarter of them.
const MOST_FUNCTIONS: usize = 1024;
/// Pointers to functions that are read at most.
const MOST_POINTERS: usize = 1 << 16;

/// A function to probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// What it does.
    pub call: AllocCall,
    /// Where to probe it; addresses of the file.
    pub sites: Sites,
    /// It leaves allocations of nothing known (a null pointer) to another function.
    pub forwards_null: bool,
    /// It leaves allocations of usual alignment to another function.
    pub forwards_aligned: bool,
}

/// An allocator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allocator {
    /// Which one.
    pub family: Family,
    /// What to probe, in the order of addresses.
    pub functions: Vec<Function>,
    /// Functions that were not understood, and why.
    pub refused: Vec<(String, &'static str)>,
    /// Address ranges of its functions: who calls from there is the allocator itself.
    pub ranges: Vec<(u64, u64)>,
    segments: Vec<Segment>,
}

/// A part of the file that is mapped to be run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment {
    address: u64,
    offset: u64,
    size: u64,
}

impl Segment {
    /// First address behind it.
    fn end(&self) -> u64 {
        self.address.saturating_add(self.size)
    }
}

impl Allocator {
    /// Looks for an allocator in a file; `None` where it has none. The error says why it cannot be known.
    pub fn read(file: &OpenFile) -> Result<Option<Self>, String> {
        let limited = Limited::new(file, MOST_READ);
        let found = Self::find(&limited);
        if limited.is_over() {
            return Err("its symbols are too many".to_owned());
        }
        found
    }

    fn find(limited: &Limited<'_>) -> Result<Option<Self>, String> {
        let parsed = ElfFile64::<Endianness, _>::parse(limited).map_err(|error| error.to_string())?;
        let endian = parsed.endian();
        if parsed.elf_header().e_machine(endian) != elf::EM_X86_64 {
            return Err("its code is not x86-64".to_owned());
        }
        let defined = || {
            parsed
                .dynamic_symbols()
                .chain(parsed.symbols())
                .filter(|symbol| symbol.is_definition() && symbol.address() != 0)
        };
        let Some((family, prefix)) = Family::of(defined().filter_map(|symbol| symbol.name().ok())) else {
            return Ok(None);
        };
        // By address: many names are of the same function.
        let mut found: BTreeMap<u64, (String, AllocCall, u64)> = BTreeMap::new();
        for symbol in defined().filter(|symbol| matches!(symbol.kind(), SymbolKind::Text)) {
            if let Ok(name) = symbol.name()
                && let Some(call) = family.call(&prefix, name)
            {
                found
                    .entry(symbol.address())
                    .or_insert_with(|| (name.to_owned(), call, symbol.size()));
            }
        }
        if found.len() > MOST_FUNCTIONS {
            return Err("its functions are too many".to_owned());
        }
        let segments: Vec<Segment> = parsed
            .elf_program_headers()
            .iter()
            .filter(|header| header.p_type(endian) == elf::PT_LOAD && header.p_flags(endian) & elf::PF_X != 0)
            .map(|header| Segment {
                address: header.p_vaddr(endian),
                offset: header.p_offset(endian),
                size: header.p_filesz(endian),
            })
            .collect();
        let mut code = Code::read(limited, &segments, &found)?;
        for (address, relocation) in parsed
            .dynamic_relocations()
            .into_iter()
            .flatten()
            .take(MOST_POINTERS)
        {
            if let RelocationTarget::Symbol(index) = relocation.target()
                && let Some(symbol) = parsed
                    .dynamic_symbol_table()
                    .and_then(|t| t.symbol_by_index(index).ok())
                && symbol.is_definition()
            {
                code.pointers.insert(address, symbol.address());
            }
        }
        let mut allocator = Self {
            family,
            functions: Vec::new(),
            refused: Vec::new(),
            ranges: ranges(&found),
            segments,
        };
        allocator.look(&code, found);
        Ok(Some(allocator))
    }

    fn look(&mut self, code: &Code, found: BTreeMap<u64, (String, AllocCall, u64)>) {
        let calls: BTreeMap<u64, AllocCall> = found.iter().map(|(at, (_, call, _))| (*at, *call)).collect();
        let watched: BTreeSet<u64> = calls.keys().copied().collect();
        for (address, (name, call, size)) in found {
            let sites = match sites(code, address, size, call, &watched) {
                Ok(sites) => sites,
                Err(why) => {
                    self.refused.push((name, why));
                    continue;
                }
            };
            // `calloc` may end in `memset`, and C++ ends in its handlers where there is no memory.
            let elsewhere = sites.returns.is_empty() || call == AllocCall::Reallocarray;
            if elsewhere && call != AllocCall::Free && !sites.exits.is_empty() {
                self.refused
                    .push((name, "it leaves its work to code that only its run tells"));
                continue;
            }
            let mut function = Function {
                name,
                call,
                sites,
                forwards_null: false,
                forwards_aligned: false,
            };
            let to: BTreeSet<AllocCall> = function
                .sites
                .forwards
                .iter()
                .filter_map(|target| calls.get(target).copied())
                .collect();
            match call {
                AllocCall::Realloc if to == BTreeSet::from([AllocCall::Malloc]) => {
                    function.forwards_null = true;
                }
                AllocCall::Aligned | AllocCall::PosixMemalign
                    if to == BTreeSet::from([AllocCall::Malloc]) =>
                {
                    function.forwards_aligned = true;
                }
                // Freeing twice changes nothing.
                AllocCall::Free => {}
                _ if !to.is_empty() => {
                    self.refused.push((function.name, COUNTS_ELSEWHERE));
                    continue;
                }
                _ => {}
            }
            self.functions.push(function);
        }
        let disputed = disputed(self.functions.iter().map(|function| &function.sites.results));
        for function in &mut self.functions {
            function.sites.leave_to_returns(&disputed);
        }
    }

    /// Offset in the file of an address.
    #[must_use]
    pub fn offset(&self, address: u64) -> Option<u64> {
        let segment = self
            .segments
            .iter()
            .find(|segment| (segment.address..segment.end()).contains(&address))?;
        (address - segment.address).checked_add(segment.offset)
    }

    /// What to add to addresses of the file where the part of it that begins at `offset` is mapped at `start`.
    #[must_use]
    pub fn bias(&self, start: u64, offset: u64) -> Option<u64> {
        let segment = self.segments.iter().find(|segment| {
            let page = segment.offset & !0xfff;
            (page..segment.offset.saturating_add(segment.size)).contains(&offset)
        })?;
        let address = segment.address.wrapping_sub(segment.offset).wrapping_add(offset);
        Some(start.wrapping_sub(address))
    }
}

/// Merges functions that stand together.
fn ranges(found: &BTreeMap<u64, (String, AllocCall, u64)>) -> Vec<(u64, u64)> {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for (&from, (_, _, size)) in found {
        let to = from.saturating_add((*size).max(1));
        match ranges.last_mut() {
            Some(last) if from.saturating_sub(last.1) <= NEAR => last.1 = last.1.max(to),
            _ => ranges.push((from, to)),
        }
    }
    ranges.truncate(ALLOC_RANGES);
    ranges
}

/// The code around the functions.
struct Code {
    parts: Vec<(u64, Vec<u8>)>,
    /// Functions of this file by the address of a pointer that is set to them.
    pointers: BTreeMap<u64, u64>,
}

impl Code {
    fn read(
        limited: &Limited<'_>,
        segments: &[Segment],
        found: &BTreeMap<u64, (String, AllocCall, u64)>,
    ) -> Result<Self, String> {
        use object::ReadRef as _;
        let mut parts = Vec::new();
        for segment in segments {
            let inside = |address: &u64| (segment.address..segment.end()).contains(address);
            let mut of_segment = found.iter().filter(|(address, _)| inside(address));
            let Some((first, _)) = of_segment.next() else {
                continue;
            };
            let last = of_segment.next_back().map_or(*first, |(address, _)| *address);
            let from = first.saturating_sub(BEYOND).max(segment.address);
            let to = last.saturating_add(BEYOND).min(segment.end());
            if to - from > MOST_CODE {
                return Err("its functions are too far apart".to_owned());
            }
            let bytes = limited
                .read_bytes_at(segment.offset.saturating_add(from - segment.address), to - from)
                .map_err(|()| "its code cannot be read".to_owned())?;
            parts.push((from, bytes.to_vec()));
        }
        Ok(Self {
            parts,
            pointers: BTreeMap::new(),
        })
    }
}

impl Text for Code {
    fn bytes(&self, address: u64, len: usize) -> &[u8] {
        let part = self
            .parts
            .iter()
            .find(|(from, bytes)| address >= *from && address - from < bytes.len() as u64);
        part.map_or(&[], |(from, bytes)| {
            let rest = &bytes[usize::try_from(address - from).unwrap_or(bytes.len())..];
            &rest[..rest.len().min(len)]
        })
    }

    fn pointer(&self, address: u64) -> Option<u64> {
        self.pointers.get(&address).copied()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    /// The C library that this test runs with.
    fn libc() -> File {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let path = maps.lines().find_map(|line| {
            let path = line.rsplit(' ').next()?;
            path.contains("libc.so").then(|| path.to_owned())
        });
        File::open(path.expect("a C library")).unwrap()
    }

    #[test]
    fn glibc_is_understood() {
        let allocator = Allocator::read(&libc()).unwrap().expect("an allocator");
        assert_eq!(allocator.family, Family::Glibc);
        for name in ["malloc", "calloc", "realloc", "free", "posix_memalign"] {
            let function = allocator
                .functions
                .iter()
                .find(|function| function.name.ends_with(name))
                .unwrap_or_else(|| panic!("no {name}: {:?}", allocator.refused));
            assert!(function.sites.emulated, "{function:?}");
            assert!(!function.sites.jumps_anywhere, "{function:?}");
            assert!(!function.sites.returns.is_empty(), "{function:?}");
            // Of this one, the pointer is stored, not returned.
            let stepped = name == "posix_memalign" || function.sites.results.stepped.is_empty();
            assert!(stepped, "{function:x?}");
            let offset = allocator.offset(function.sites.entry).unwrap();
            let segment = allocator.segments[0];
            assert_eq!(
                allocator
                    .bias(0x7000_0000, segment.offset & !0xfff)
                    .unwrap()
                    .wrapping_add(function.sites.entry),
                0x7000_0000 + (offset - (segment.offset & !0xfff))
            );
        }
        // malloc.c is one piece of code.
        assert_eq!(allocator.ranges.len(), 1, "{:x?}", allocator.ranges);
    }

    /// Libraries that Debian has; `cargo xtask setup --tests` installs them.
    #[test]
    fn other_allocators_are_understood() {
        for (library, family) in [
            ("libjemalloc.so.2", Family::Jemalloc),
            ("libtcmalloc_minimal.so.4", Family::Tcmalloc),
            ("libmimalloc.so.2", Family::Mimalloc),
        ] {
            let folders = ["/usr/lib/x86_64-linux-gnu", "/usr/lib64"];
            let Some(file) = folders
                .iter()
                .find_map(|folder| File::open(format!("{folder}/{library}")).ok())
            else {
                continue;
            };
            let allocator = Allocator::read(&file).unwrap().expect("an allocator");
            assert_eq!(allocator.family, family);
            // A function has many names, of which one is kept.
            for names in [
                ["malloc", "malloc"],
                ["calloc", "calloc"],
                ["realloc", "realloc"],
                ["posix_memalign", "posix_memalign"],
                ["free", "free"],
                ["_Znwm", "_new"],
            ] {
                let found = |function: &Function| names.iter().any(|name| function.name.contains(name));
                assert!(
                    allocator.functions.iter().any(found),
                    "{names:?} of {library}: {:?}, {:?}",
                    allocator
                        .functions
                        .iter()
                        .map(|function| &function.name)
                        .collect::<Vec<_>>(),
                    allocator.refused
                );
            }
        }
    }

    #[test]
    fn files_without_an_allocator_and_no_files_are_told_apart() {
        let shell = File::open("/bin/sh").unwrap();
        assert_eq!(Allocator::read(&shell), Ok(None));
        let mut text = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut text, b"#!/bin/sh\n").unwrap();
        assert!(Allocator::read(&text).is_err());
    }
}
