//! Go's own table of functions (`pclntab`), which Go programs keep even when they are stripped: names, lines and inlined calls.
//!
//! Its layout is that of Go's runtime (`runtime/symtab.go`, `internal/abi/symtab.go`), of Go 1.18 and later. Everything in it is an
//! offset that a file may lie about: what is outside of the copy is not there.

mod bytes;
mod find;
mod values;

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::Outcome;
use super::engine::Part;
use super::headers::Headers;
use super::name::Names;

/// Calls inlined in each other at most.
const MAX_INLINED: usize = 128;
/// `PCDATA_InlTreeIndex`: which inlined call an instruction is of.
const INLINED_AT: u32 = 2;
/// `FUNCDATA_InlTree`: the inlined calls of a function.
const INLINED_CALLS: u32 = 3;

/// The fields of the table and of its functions that moved between versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    /// Go 1.18 and 1.19.
    Go118,
    /// Since Go 1.20.
    Go120,
}

impl Version {
    /// By the magic number at the beginning of the table.
    fn of(magic: u32) -> Option<Self> {
        match magic {
            0xffff_fff0 => Some(Self::Go118),
            0xffff_fff1 => Some(Self::Go120),
            _ => None,
        }
    }

    /// Bytes of `_func` before its numbers of tables; the count of those of function data is the last of them.
    fn function_bytes(self) -> u64 {
        match self {
            Self::Go118 => 40,
            Self::Go120 => 44,
        }
    }

    /// Size of `inlinedCall`, and where in it the name and the instruction of the call are.
    fn inlined_call(self) -> (u64, u64, u64) {
        match self {
            Self::Go118 => (20, 12, 16),
            Self::Go120 => (16, 4, 8),
        }
    }
}

/// Where the parts of the table begin in it.
#[derive(Clone, Copy, Debug)]
struct Parts {
    functions: u64,
    names: u64,
    units: u64,
    files: u64,
    values: u64,
    lines: u64,
}

/// A copy of the table of one executable.
#[derive(Debug)]
pub(super) struct GoTable {
    version: Version,
    table: Bytes,
    parts: Parts,
    /// What is inlined where; empty where it was not found.
    inlined: Bytes,
    /// Where the code begins, in the file's own address space.
    text: u64,
}

/// A function: where it begins, and where its description is in the table.
#[derive(Clone, Copy, Debug)]
struct Function {
    start: u64,
    at: u64,
}

impl GoTable {
    /// Reads the table of a file; `None` where there is none.
    ///
    /// # Errors
    ///
    /// Too large a table, or one that is of an unknown version or makes no sense.
    pub(super) fn read(file: &File, headers: &Headers, max_bytes: u64) -> Result<Option<Self>, Outcome> {
        let Some(found) = find::table(file, headers, max_bytes)? else {
            return Ok(None);
        };
        let table = found.table;
        let version = found.version;
        let at = |word: u64| table.u64(8 + 8 * word).ok_or(Outcome::ElfError);
        let parts = Parts {
            functions: at(0)?,
            names: at(3)?,
            units: at(4)?,
            files: at(5)?,
            values: at(6)?,
            lines: at(7)?,
        };
        let len = table.len();
        let begins = [parts.names, parts.units, parts.files, parts.values, parts.lines];
        // The list of functions ends with the end of the last.
        let list = parts.functions.checked_mul(8).map(|size| size.saturating_add(4));
        if parts.functions == 0
            || begins.iter().any(|at| *at > len)
            || list.is_none_or(|list| list > len - parts.lines)
        {
            return Err(Outcome::ElfError);
        }
        Ok(Some(Self {
            version,
            table,
            parts,
            inlined: found.inlined,
            text: found.text,
        }))
    }

    /// Bytes of memory it takes.
    pub(super) fn bytes(&self) -> u64 {
        self.table.len() + self.inlined.len()
    }

    /// What is at an address, innermost first; `None` where no function of Go's is.
    pub(super) fn look_up(&self, names: &mut Names, address: u64) -> Option<Vec<Part>> {
        let function = self.function(address)?;
        let pc = address - function.start;
        let mut parts = Vec::with_capacity(1);
        let mut pc_there = pc;
        while parts.len() < MAX_INLINED
            && let Some((name, call)) = self.inlined_at(function, pc_there)
        {
            parts.push(self.part(names, function, name, pc_there, true));
            // The caller is where the call was.
            pc_there = call;
        }
        let name = self.table.u32(function.at + 4)?;
        parts.push(self.part(names, function, name, pc_there, false));
        Some(parts)
    }

    /// The function that an address is in.
    fn function(&self, address: u64) -> Option<Function> {
        let offset = u32::try_from(address.checked_sub(self.text)?).ok()?;
        let start = |index: u64| self.table.u32(self.parts.lines + 8 * index);
        let (mut low, mut high) = (0, self.parts.functions);
        if start(0)? > offset || start(high)? <= offset {
            return None;
        }
        while high - low > 1 {
            let middle = low.midpoint(high);
            if start(middle)? <= offset {
                low = middle;
            } else {
                high = middle;
            }
        }
        let description = self.table.u32(self.parts.lines + 8 * low + 4)?;
        Some(Function {
            start: self.text.checked_add(u64::from(start(low)?))?,
            at: self.parts.lines + u64::from(description),
        })
    }

    /// All functions in the order of their addresses: where each begins and ends, and where its description is.
    fn functions(&self) -> impl Iterator<Item = (Function, u64)> {
        let entry = |index: u64| self.parts.lines + 8 * index;
        let address = move |index: u64| self.text.checked_add(u64::from(self.table.u32(entry(index))?));
        (0..self.parts.functions).filter_map(move |index| {
            let at = self.parts.lines + u64::from(self.table.u32(entry(index) + 4)?);
            let function = Function {
                start: address(index)?,
                at,
            };
            Some((function, address(index + 1)?))
        })
    }

    /// Calls `each` with the range of each function, its name, and how many bytes lie between the stack pointer and the return
    /// address, from which instruction on; until it says that this is enough (`false`).
    pub(super) fn frames(
        &self,
        mut each: impl FnMut(Range<u64>, &str, &mut dyn Iterator<Item = (u64, i64)>) -> bool,
    ) {
        for (function, end) in self.functions() {
            let name = self.table.u32(function.at + 4);
            let name = name.and_then(|name| self.table.text(self.parts.names + u64::from(name)));
            let depths = self.table.u32(function.at + 16).filter(|values| *values != 0);
            let depths = depths.and_then(|values| self.table.from(self.parts.values + u64::from(values)));
            let mut from = function.start;
            let mut depths = values::all(depths.unwrap_or_default())
                .take_while(|(until, _)| function.start.checked_add(*until).is_some())
                .map(|(until, depth)| {
                    let here = from;
                    from = function.start + until;
                    (here, depth)
                });
            let name = name.as_deref().unwrap_or_default();
            if !each(function.start..end, name, &mut depths) {
                return;
            }
        }
    }

    /// Name and instruction (from the function's beginning) of the call whose inlined code an instruction is.
    fn inlined_at(&self, function: Function, pc: u64) -> Option<(u32, u64)> {
        let fixed = self.version.function_bytes();
        let tables = u64::from(self.table.u32(function.at + 28)?);
        let datas = self.table.u8(function.at + fixed - 1)?;
        if tables <= u64::from(INLINED_AT) || u32::from(datas) <= INLINED_CALLS {
            return None;
        }
        let calls = self
            .table
            .u32(function.at + fixed + 4 * (tables + u64::from(INLINED_CALLS)))?;
        let index = self.table.u32(function.at + fixed + 4 * u64::from(INLINED_AT))?;
        let index = u64::try_from(self.value(index, pc)?).ok()?;
        let (size, name, call) = self.version.inlined_call();
        let entry = u64::from(calls).checked_add(index.checked_mul(size)?)?;
        // All ones: the function has none.
        (calls != u32::MAX).then_some(())?;
        Some((
            self.inlined.u32(entry.checked_add(name)?)?,
            u64::from(self.inlined.u32(entry.checked_add(call)?)?),
        ))
    }

    fn part(&self, names: &mut Names, function: Function, name: u32, pc: u64, inlined: bool) -> Part {
        let name = self.table.text(self.parts.names + u64::from(name));
        let function_name = name.and_then(|name| names.share(&name));
        let line = self
            .table
            .u32(function.at + 24)
            .and_then(|values| self.value(values, pc));
        Part {
            function: function_name,
            file: self.file(names, function, pc),
            line: line.and_then(|line| u32::try_from(line).ok()).unwrap_or(0),
            inlined,
        }
    }

    fn file(&self, names: &mut Names, function: Function, pc: u64) -> Option<Arc<str>> {
        let values = self.table.u32(function.at + 20)?;
        let number = u64::try_from(self.value(values, pc)?).ok()?;
        let unit = u64::from(self.table.u32(function.at + 32)?);
        let entry = self.table.u32(self.parts.units + 4 * (unit + number))?;
        // All ones: no code of that file is left.
        (entry != u32::MAX).then_some(())?;
        names.share(&self.table.text(self.parts.files + u64::from(entry))?)
    }

    /// What a table of values has for an instruction.
    fn value(&self, values: u32, pc: u64) -> Option<i64> {
        (values != 0).then_some(())?;
        values::at(self.table.from(self.parts.values + u64::from(values))?, pc)
    }
}
