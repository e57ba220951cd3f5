//! The functions of an executable: where each is, and what says its rows.
//!
//! Rows are decoded when the table is packed, function by function in the order of their addresses: those of a browser, all at
//! once, would take tens of megabytes for a moment.

use std::ops::Range;

use agent_ebpf::wire::unwind::{
    CFA_AT_SP, CFA_END, CFA_SP, FP_AT_SP, FP_SAME, RA_AT_CFA, RA_AT_SP, RULE_SIGNAL, Rule,
};
use gimli::{BaseAddresses, CieOrFde, UnwindOffset, UnwindSection};

use super::super::cpu_time::CpuTime;
use super::code::Understood;
use super::entries::{Bytes, Clock, Decoder, EACH_COSTS, Sections};
use super::merge::Merge;
use super::rules::{NONE, Rules, UNSUPPORTED};
use super::table::Table;
use super::unsupported::{Unsupported, UnsupportedRows};

/// From an address on, a rule holds. Eight bytes, because a browser has millions: the address above, the rule in the low bits,
/// so that rows are in the order of their addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Row(u64);

impl Row {
    const RULE_BITS: u32 = 16;
    /// Addresses from here on have no room; nothing is linked there.
    pub(super) const END: u64 = 1 << (64 - Self::RULE_BITS);

    pub(super) const fn new(address: u64, rule: u16) -> Self {
        Self(address << Self::RULE_BITS | rule as u64)
    }

    pub(super) const fn address(self) -> u64 {
        self.0 >> Self::RULE_BITS
    }

    pub(super) const fn rule(self) -> u16 {
        self.0 as u16
    }
}

/// What a section held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// Functions with rules.
    pub(super) functions: u64,
    /// Functions whose rules cannot be read.
    pub(super) broken: u64,
    /// Rows with a rule that cannot be expressed, by reason.
    pub(super) unsupported: UnsupportedRows,
}

/// Why not all functions were read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stopped {
    /// The section makes no sense.
    Broken,
    /// More rows than the limit.
    TooMany,
    /// More time than the limit.
    TooSlow,
}

/// One function.
#[derive(Clone, Copy)]
struct Function {
    start: u64,
    size: u32,
    /// An offset in `.eh_frame`; with [`DEBUG`], one in `.debug_frame`; with [`KEPT`], where its rows are in [`Functions::kept`].
    from: u32,
}

const DEBUG: u32 = 1 << 31;
const KEPT: u32 = 1 << 30;

impl Function {
    fn end(self) -> u64 {
        self.start + u64::from(self.size)
    }
}

/// How much work and memory a file may cost.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    /// Rows, and functions.
    pub(super) rows: usize,
    /// CPU time.
    pub(super) until: CpuTime,
}

/// All functions of an executable.
#[derive(Default)]
pub(super) struct Functions {
    functions: Vec<Function>,
    /// Rows of functions that no section describes.
    rows: Vec<Row>,
    /// Where in `rows` those of each such function are.
    kept: Vec<Range<u32>>,
    pub(super) found: Found,
}

impl Functions {
    /// Finds those of the sections. More than the limits is an error: a crafted file is not to take all memory, nor for ever.
    pub(super) fn read(&mut self, sections: &Sections<'_>, limits: Limits) -> Result<(), Stopped> {
        if let Some((section, bases)) = &sections.eh {
            self.find(section, bases, 0, limits)?;
        }
        // Start-up code has `.eh_frame` also where the program itself has the other, so the one does not rule out the other.
        if let Some((section, bases)) = &sections.debug {
            self.find(section, bases, DEBUG, limits)?;
        }
        Ok(())
    }

    fn find<'a, S>(
        &mut self,
        section: &S,
        bases: &BaseAddresses,
        mark: u32,
        limits: Limits,
    ) -> Result<(), Stopped>
    where
        S: UnwindSection<Bytes<'a>>,
        S::Offset: UnwindOffset<usize>,
    {
        let mut entries = section.entries(bases);
        let mut clock = Clock::new(limits.until);
        while let Some(entry) = entries.next().map_err(|_| Stopped::Broken)? {
            clock.passed(EACH_COSTS)?;
            let CieOrFde::Fde(partial) = entry else { continue };
            let Ok(fde) = partial.parse(S::cie_from_offset) else {
                self.found.broken += 1;
                continue;
            };
            // What all functions share is read again for each of them.
            clock.passed(fde.cie().entry_len())?;
            let (start, end) = (fde.initial_address(), fde.end_address());
            let size = end.checked_sub(start).and_then(|size| u32::try_from(size).ok());
            let from = u32::try_from(fde.offset()).ok().filter(|offset| *offset < KEPT);
            match size.zip(from) {
                Some((size, from)) if size > 0 && end < Row::END => {
                    self.found.functions += 1;
                    self.functions.push(Function {
                        start,
                        size,
                        from: from | mark,
                    });
                }
                _ => self.found.broken += 1,
            }
            if self.functions.len() > limits.rows {
                return Err(Stopped::TooMany);
            }
        }
        Ok(())
    }

    /// Adds the code to which the kernel lets a signal handler return, before what its section says. What was interrupted
    /// is in `ucontext`, to which the stack pointer points (arch/x86/include/asm/sigframe.h).
    pub(super) fn signal_return(&mut self, address: u64, rules: &mut Rules) {
        const REGISTERS: i32 = 40;
        let saved = |index: i32| REGISTERS + 8 * index;
        let rule = rules.number(Rule {
            cfa: CFA_AT_SP,
            cfa_offset: saved(15),
            fp: FP_AT_SP,
            fp_offset: saved(10),
            ra: RA_AT_SP,
            ra_offset: saved(16),
            flags: RULE_SIGNAL,
        });
        // Nobody called it, but what looks for a caller looks at the byte before.
        self.add(address.saturating_sub(1), 10, rule);
    }

    /// Adds a function that nobody calls, before what its section says.
    pub(super) fn entry(&mut self, address: u64, size: u64, rules: &mut Rules) {
        let rule = rules.number(Rule { cfa: CFA_END, ..NONE });
        self.add(address, size, rule);
    }

    /// Adds a function of Go's with the depths of its frame, each from an address on. More than `max` rows in all are an error.
    pub(super) fn of_go(
        &mut self,
        range: Range<u64>,
        depths: &mut dyn Iterator<Item = (u64, i64)>,
        rules: &mut Rules,
        max: usize,
    ) -> Result<(), Stopped> {
        if range.is_empty() || range.end >= Row::END {
            self.found.broken += 1;
            return Ok(());
        }
        let from = self.rows.len();
        for (address, depth) in depths.take_while(|(address, _)| range.contains(address)) {
            let cfa_offset = depth.checked_add(8).and_then(|depth| i32::try_from(depth).ok());
            let rule = match cfa_offset.filter(|offset| *offset >= 8) {
                Some(cfa_offset) => Rule {
                    cfa: CFA_SP,
                    cfa_offset,
                    fp: FP_SAME,
                    ra: RA_AT_CFA,
                    ra_offset: -8,
                    ..NONE
                },
                None => {
                    Unsupported::Depth.count(&mut self.found.unsupported, 1);
                    UNSUPPORTED
                }
            };
            self.rows.push(Row::new(address, rules.number(rule)));
            if self.rows.len() > max {
                return Err(Stopped::TooMany);
            }
        }
        if self.rows.len() > from {
            self.found.functions += 1;
            self.keep(range, from);
        }
        Ok(())
    }

    /// Stretches of a range that no function covers, of those functions that are known now.
    pub(super) fn gaps(&mut self, range: Range<u64>) -> Gaps {
        self.functions.sort_by_key(|function| function.start);
        Gaps {
            next: 0,
            sorted: self.functions.len(),
            left: range,
        }
    }

    /// Adds a function whose instructions were understood.
    pub(super) fn understood(&mut self, function: &Understood, rules: &mut Rules) {
        if function.end >= Row::END {
            return;
        }
        let from = self.rows.len();
        let row = |(address, rule): &(u64, Rule)| Row::new(*address, rules.number(*rule));
        self.rows.extend(function.rows.iter().map(row));
        self.found.functions += 1;
        self.keep(function.start..function.end, from);
    }

    fn add(&mut self, address: u64, size: u64, rule: u16) {
        if address >= Row::END {
            return;
        }
        let from = self.rows.len();
        self.rows.push(Row::new(address, rule));
        self.keep(address..(address + size).min(Row::END - 1), from);
    }

    /// Adds a function whose rows are those from there on.
    fn keep(&mut self, range: Range<u64>, from: usize) {
        let place = u32::try_from(from).ok().zip(u32::try_from(self.rows.len()).ok());
        let index = u32::try_from(self.kept.len()).ok().filter(|index| *index < KEPT);
        let size = u32::try_from(range.end.saturating_sub(range.start)).unwrap_or(u32::MAX);
        if let Some(((from, to), index)) = place.zip(index) {
            self.kept.push(from..to);
            self.functions.push(Function {
                start: range.start,
                size,
                from: index | KEPT,
            });
        }
    }

    /// The table of all of them, and what was found on the way; `None` where it would have more pages than there can be.
    pub(super) fn table(
        mut self,
        sections: &Sections<'_>,
        rules: &mut Rules,
        limits: Limits,
    ) -> Result<(Option<Table>, Found), Stopped> {
        self.functions.sort_by_key(|function| function.start);
        let mut merge = Merge::default();
        let mut decoder = Decoder::new(rules, limits, self.found);
        for function in &self.functions {
            if function.end() <= merge.end() {
                continue;
            }
            let at = (function.from & (KEPT - 1)) as usize;
            let rows = if function.from & DEBUG != 0 {
                decoder.rows_of(sections.debug.as_ref(), at)?
            } else if function.from & KEPT != 0 {
                let kept = self
                    .kept
                    .get(at)
                    .map(|kept| kept.start as usize..kept.end as usize);
                kept.and_then(|kept| self.rows.get(kept))
            } else {
                decoder.rows_of(sections.eh.as_ref(), at)?
            };
            if let Some(rows) = rows
                && merge.function(function.start..function.end(), rows).is_none()
            {
                return Ok((None, decoder.found));
            }
        }
        Ok((merge.finish(), decoder.found))
    }
}

/// The stretches between functions, one after the other: a large file has very many.
pub(super) struct Gaps {
    next: usize,
    sorted: usize,
    left: Range<u64>,
}

impl Gaps {
    /// The next one. Functions that were added since are not looked at.
    pub(super) fn next(&mut self, functions: &Functions) -> Option<Range<u64>> {
        let known = functions.functions.get(..self.sorted)?;
        while let Some(function) = known.get(self.next) {
            if function.start >= self.left.end {
                break;
            }
            self.next += 1;
            let gap = self.left.start..function.start;
            self.left.start = self.left.start.max(function.end());
            if !gap.is_empty() {
                return Some(gap);
            }
        }
        let last = std::mem::replace(&mut self.left.start, self.left.end)..self.left.end;
        (!last.is_empty()).then_some(last)
    }
}
