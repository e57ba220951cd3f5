//! What the dynamic linker puts into the slots that stubs jump to.

use std::fs::File;

use super::code::{Found, Leads};
use super::{Target, bytes};
use crate::symbolize::Outcome;
use crate::symbolize::cpu_time::CpuTime;
use crate::symbolize::headers::{Headers, Place};

/// Size of `Elf64_Rela`.
const ENTRY: u64 = 24;
/// Entries that are read at one time.
const CHUNK: u64 = 4096;
/// Bytes of one section that are looked through at most.
const MAX_BYTES: u64 = 64 << 20;

/// `GLOB_DAT`, `JUMP_SLOT` and `IRELATIVE` of x86-64, and those of AArch64.
const BOUND: [u32; 4] = [6, 7, 1025, 1026];
const CHOSEN: [u32; 2] = [37, 1032];

/// Stubs, by what has to be known of each.
pub(super) struct Wanted {
    /// By address of the slot; the other is the stub.
    slots: Vec<(u64, usize)>,
    /// By number of the relocation.
    numbers: Vec<(u64, usize)>,
    /// What the stubs lead to.
    pub(super) targets: Vec<Option<Target>>,
    unknown_slots: usize,
}

impl Wanted {
    pub(super) fn new(found: &[Found]) -> Self {
        let (mut slots, mut numbers) = (Vec::new(), Vec::new());
        for (stub, found) in found.iter().enumerate() {
            match found.leads {
                Leads::Slot(slot) => slots.push((slot, stub)),
                Leads::Number(number) => numbers.push((u64::from(number), stub)),
            }
        }
        slots.sort_unstable();
        numbers.sort_unstable();
        Self {
            unknown_slots: slots.len(),
            targets: vec![None; found.len()],
            slots,
            numbers,
        }
    }

    /// Looks them up in the relocations of a file.
    pub(super) fn find(
        &mut self,
        file: &File,
        headers: &Headers,
        len: u64,
        until: CpuTime,
    ) -> Result<(), Outcome> {
        let mut end = Ok(());
        for (section, numbered) in [(".rela.plt", true), (".rela.iplt", false), (".rela.dyn", false)] {
            if let Some(place) = headers.place(section)
                && self.unfinished(numbered)
            {
                // What one does not tell, another may.
                end = end.and(self.look_through(file, place, len, numbered, until));
            }
        }
        end
    }

    /// Whether relocations of a section that are numbered, or are not, may still tell something.
    fn unfinished(&self, numbered: bool) -> bool {
        self.unknown_slots > 0 || (numbered && !self.numbers.is_empty())
    }

    /// From its end on: linkers put the many that have no symbol first.
    fn look_through(
        &mut self,
        file: &File,
        place: Place,
        len: u64,
        numbered: bool,
        until: CpuTime,
    ) -> Result<(), Outcome> {
        if place.size > MAX_BYTES {
            return Err(Outcome::TooLarge);
        }
        let mut left = place.size / ENTRY;
        while left > 0 && self.unfinished(numbered) {
            if CpuTime::now() > until {
                return Err(Outcome::TooSlow);
            }
            let count = left.min(CHUNK);
            left -= count;
            let part = Place {
                offset: place.offset.checked_add(left * ENTRY).ok_or(Outcome::ElfError)?,
                size: count * ENTRY,
                ..place
            };
            let chunk = bytes(file, len, part, part.size)?;
            for (number, entry) in (left..).zip(chunk.as_chunks::<{ ENTRY as usize }>().0) {
                self.relocation(numbered.then_some(number), entry);
            }
        }
        Ok(())
    }

    fn relocation(&mut self, number: Option<u64>, entry: &[u8; ENTRY as usize]) {
        let word = |at: usize| {
            let word = entry[at..].first_chunk().copied();
            word.map_or(0, u64::from_le_bytes)
        };
        let (slot, info, addend) = (word(0), word(8), word(16));
        // The kind is the lower half, the symbol the upper one.
        let half = |bits: u64| u32::try_from(bits & u64::from(u32::MAX)).unwrap_or(0);
        let (kind, symbol) = (half(info), half(info >> 32));
        let target = if BOUND.contains(&kind) && symbol != 0 {
            Target::Symbol(symbol)
        } else if CHOSEN.contains(&kind) {
            Target::Chosen(addend)
        } else {
            return;
        };
        self.unknown_slots -= settle(&self.slots, slot, target, &mut self.targets);
        if let Some(number) = number {
            settle(&self.numbers, number, target, &mut self.targets);
        }
    }
}

/// Says of all stubs with a key what they lead to; the first answer is the one that counts.
fn settle(wanted: &[(u64, usize)], key: u64, target: Target, targets: &mut [Option<Target>]) -> usize {
    let first = wanted.partition_point(|(each, _)| *each < key);
    let same = wanted[first..].iter().take_while(|(each, _)| *each == key);
    let mut settled = 0;
    for (_, stub) in same {
        // All of a key are settled at once, so that what is made to repeat itself costs one look.
        match targets.get_mut(*stub) {
            Some(unknown @ None) => *unknown = Some(target),
            _ => break,
        }
        settled += 1;
    }
    settled
}
