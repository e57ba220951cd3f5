//! How many ranges of addresses the functions of a file have together.
//!
//! Each function names a list, many may name the same one, and the library that reads them copies the list for each.

use std::fs::File;

use gimli::{
    Attribute, AttributeValue, DebugRanges, DebugRngLists, DebugRngListsBase, Encoding, EndianSlice,
    LittleEndian, RangeLists, RangeListsOffset,
};

use super::nesting::read;
use crate::symbolize::Outcome;
use crate::symbolize::cpu_time::CpuTime;
use crate::symbolize::headers::Headers;

/// Ranges at most, 24 bytes each. The debug information of LLVM's largest library has 2 million.
const MAX_RANGES: u64 = 6 << 20;

/// The sections with lists.
pub(super) struct Sections {
    old: Vec<u8>,
    new: Vec<u8>,
}

impl Sections {
    pub(super) fn read(file: &File, headers: &Headers) -> Result<Self, Outcome> {
        let section = |name| match headers.range(name) {
            Some((offset, size)) => read(file, offset, size),
            None => Ok(Vec::new()),
        };
        Ok(Self {
            old: section(".debug_ranges")?,
            new: section(".debug_rnglists")?,
        })
    }

    pub(super) fn counter(&self, until: CpuTime) -> Counter<'_> {
        let old = DebugRanges::new(&self.old, LittleEndian);
        let new = DebugRngLists::new(&self.new, LittleEndian);
        Counter {
            lists: RangeLists::new(old, new),
            base: DebugRngListsBase(0),
            count: 0,
            until,
        }
    }
}

/// Counts over all units.
pub(super) struct Counter<'a> {
    lists: RangeLists<EndianSlice<'a, LittleEndian>>,
    base: DebugRngListsBase<usize>,
    count: u64,
    until: CpuTime,
}

impl Counter<'_> {
    /// A unit begins; where its indices count from is told by its first entry.
    pub(super) fn unit(&mut self, encoding: Encoding) {
        self.base = DebugRngListsBase::default_for_encoding_and_file(encoding, gimli::DwarfFileType::Main);
    }

    /// Takes an attribute of an entry. Errors of the format are `None`.
    pub(super) fn add(
        &mut self,
        attribute: &Attribute<EndianSlice<'_, LittleEndian>>,
        encoding: Encoding,
    ) -> Result<(), Option<Outcome>> {
        let offset = match (attribute.name(), attribute.value()) {
            (gimli::DW_AT_rnglists_base, AttributeValue::DebugRngListsBase(base)) => {
                self.base = base;
                return Ok(());
            }
            (gimli::DW_AT_ranges, AttributeValue::RangeListsRef(offset)) => RangeListsOffset(offset.0),
            (gimli::DW_AT_ranges, AttributeValue::DebugRngListsIndex(index)) => self
                .lists
                .get_offset(encoding, self.base, index)
                .map_err(|_| None)?,
            _ => return Ok(()),
        };
        let mut list = self.lists.raw_ranges(offset, encoding).map_err(|_| None)?;
        while list.next().map_err(|_| None)?.is_some() {
            self.count += 1;
            if self.count > MAX_RANGES {
                return Err(Some(Outcome::TooLarge));
            }
            if self.count.is_multiple_of(1024) && CpuTime::now() > self.until {
                return Err(Some(Outcome::TooSlow));
            }
        }
        Ok(())
    }
}
