//! Names of the stubs that linkers put between a call and a function of another file (`.plt`, `.plt.sec`, `.plt.got`).
//!
//! No symbol covers them. Where one leads is known from the slot that its code jumps to and from the relocation that fills this
//! slot; of both only their numbers are kept, and the name is read from the copy of `.dynsym` when somebody asks.

mod code;
mod relocations;

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::Outcome;
use super::cpu_time::CpuTime;
use super::headers::{Headers, Place};
use super::image::Image;

use relocations::Wanted;

const CODE: [&str; 5] = [".plt", ".plt.sec", ".plt.got", ".plt.bnd", ".iplt"];
/// Stubs of one file at most: sixteen times those of LLVM's library, a file of 130 MB.
const MOST: usize = 65_536;
/// Code of one section at most.
const MAX_CODE: u64 = 24 * MOST as u64;
/// Longest name that is read.
const MAX_NAME: usize = 4096;
/// Size of `Elf64_Sym`.
const SYMBOL: u64 = 24;

/// Where a stub leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// To the function that this entry of `.dynsym` is bound to.
    Symbol(u32),
    /// To the one that the function at this address chooses (an indirect function of the same file).
    Chosen(u64),
}

#[derive(Clone, Copy, Debug)]
struct Stub {
    start: u64,
    len: u8,
    target: Target,
}

/// The stubs of one file.
#[derive(Debug, Default)]
pub(super) struct Stubs {
    sections: Vec<Range<u64>>,
    /// By address.
    stubs: Box<[Stub]>,
    symbols: Option<Place>,
    names: Option<Place>,
    /// Why some have no name.
    failed: Option<Outcome>,
}

impl Stubs {
    /// Reads what the stubs of a file lead to. What is too much of it, or cannot be read, is left out.
    pub(super) fn read(file: &File, headers: &Headers, until: CpuTime) -> Self {
        let mut stubs = Self::default();
        let sections: Vec<_> = CODE.iter().filter_map(|name| headers.place(name)).collect();
        let sections = sections.into_iter().filter(|place| place.size > 0);
        let Ok(len) = file.metadata().map(|metadata| metadata.len()) else {
            return stubs;
        };
        let mut found = Vec::new();
        for place in sections {
            let end = place.address.saturating_add(place.size);
            stubs.sections.push(place.address..end);
            match bytes(file, len, place, MAX_CODE) {
                Ok(code) if code::stubs(headers.machine, place.address, &code, MOST, &mut found) => {}
                Ok(_) => stubs.failed = Some(Outcome::TooLarge),
                Err(why) => stubs.failed = Some(why),
            }
        }
        if found.is_empty() {
            return stubs;
        }
        let mut wanted = Wanted::new(&found);
        if let Err(why) = wanted.find(file, headers, len, until) {
            stubs.failed = Some(why);
        }
        let targets = found.iter().zip(&wanted.targets);
        let known = targets.filter_map(|(stub, target)| {
            Some(Stub {
                start: stub.start,
                len: stub.len,
                target: (*target)?,
            })
        });
        let mut known: Vec<_> = known.collect();
        known.sort_unstable_by_key(|stub| stub.start);
        stubs.stubs = known.into();
        stubs.symbols = headers.place(".dynsym");
        stubs.names = headers.place(".dynstr");
        stubs
    }

    /// Bytes of memory they take.
    pub(super) fn bytes(&self) -> u64 {
        size_of_val(&*self.stubs) as u64
    }

    /// Where the stub at an address leads.
    pub(super) fn at(&self, address: u64) -> Option<Target> {
        let after = self.stubs.partition_point(|stub| stub.start <= address);
        let stub = self.stubs.get(after.checked_sub(1)?)?;
        (address - stub.start < u64::from(stub.len)).then_some(stub.target)
    }

    /// Why nothing is known of an address among the stubs.
    pub(super) fn failed(&self, address: u64) -> Option<Outcome> {
        let failed = self.failed?;
        let mut sections = self.sections.iter();
        sections.any(|range| range.contains(&address)).then_some(failed)
    }

    /// The name of a symbol, as it is in a copy of the file.
    pub(super) fn name(&self, image: &Image, symbol: u32) -> Option<String> {
        let (symbols, names) = (self.symbols?, self.names?);
        let entry = u64::from(symbol) * SYMBOL;
        if symbol == 0 || entry + SYMBOL > symbols.size {
            return None;
        }
        let mut at = [0; 4];
        image.read(symbols.offset.checked_add(entry)?, &mut at)?;
        let at = u64::from(u32::from_le_bytes(at));
        let left = names.size.checked_sub(at)?;
        let mut name = vec![0; usize::try_from(left).unwrap_or(MAX_NAME).min(MAX_NAME)];
        image.read(names.offset.checked_add(at)?, &mut name)?;
        let end = name.iter().position(|byte| *byte == 0)?;
        name.truncate(end);
        (!name.is_empty()).then(|| String::from_utf8_lossy(&name).into_owned())
    }
}

/// A part of a file with so many bytes; no memory is taken for what it cannot hold.
fn bytes(file: &File, len: u64, place: Place, most: u64) -> Result<Vec<u8>, Outcome> {
    if place.size > most {
        return Err(Outcome::TooLarge);
    }
    let end = place.offset.checked_add(place.size);
    if end.is_none_or(|end| end > len) {
        return Err(Outcome::ElfError);
    }
    let mut bytes = vec![0; usize::try_from(place.size).map_err(|_| Outcome::TooLarge)?];
    file.read_exact_at(&mut bytes, place.offset)
        .map_err(|_| Outcome::ElfError)?;
    Ok(bytes)
}
