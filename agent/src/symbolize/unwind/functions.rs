//! The functions of an executable, and the rows of their call frame information in one order.

use agent_ebpf::wire::unwind::{
    CFA_AT_SP, CFA_END, CFA_SP, FP_AT_SP, FP_SAME, RA_AT_CFA, RA_AT_SP, RULE_SIGNAL, Rule,
};
use gimli::{BaseAddresses, CieOrFde, EndianSlice, LittleEndian, UnwindContext, UnwindSection};

use super::super::cpu_time::CpuTime;
use super::cfi::rule;
use super::code::Understood;
use super::rules::{NONE, Rules, UNSUPPORTED};

type Bytes<'a> = EndianSlice<'a, LittleEndian>;

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
    /// Rows with a rule that cannot be expressed.
    pub(super) unsupported: u64,
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

/// Bytes of call frame information that are read between two looks at the clock.
const BETWEEN_LOOKS: usize = 256 << 10;
/// What an entry costs beside its bytes, in bytes.
const EACH_COSTS: usize = 1 << 10;

/// Rows of one function.
struct Function {
    start: u64,
    end: u64,
    rows: std::ops::Range<usize>,
}

/// All functions of an executable.
#[derive(Default)]
pub(super) struct Functions {
    functions: Vec<Function>,
    rows: Vec<Row>,
    pub(super) found: Found,
}

impl Functions {
    /// Reads those of a section. More than so many rows, or more time, are an error: a crafted file is not to take all memory,
    /// nor for ever.
    pub(super) fn read<'a, S>(
        &mut self,
        section: &S,
        bases: &BaseAddresses,
        rules: &mut Rules,
        (max, until): (usize, CpuTime),
    ) -> Result<(), Stopped>
    where
        S: UnwindSection<Bytes<'a>>,
        S::Offset: gimli::UnwindOffset<usize>,
    {
        let mut context = UnwindContext::new();
        let mut entries = section.entries(bases);
        let mut read = 0;
        while let Some(entry) = entries.next().map_err(|_| Stopped::Broken)? {
            read += EACH_COSTS;
            if read > BETWEEN_LOOKS {
                read = 0;
                if CpuTime::now() > until {
                    return Err(Stopped::TooSlow);
                }
            }
            let CieOrFde::Fde(partial) = entry else { continue };
            let Ok(fde) = partial.parse(S::cie_from_offset) else {
                self.found.broken += 1;
                continue;
            };
            // What all functions share is read again for each of them.
            read += fde.entry_len() + fde.cie().entry_len();
            let from = self.rows.len();
            let flags = if fde.is_signal_trampoline() {
                RULE_SIGNAL
            } else {
                0
            };
            let encoding = fde.cie().encoding();
            let whole = (|| {
                let mut table = fde.rows(section, bases, &mut context)?;
                while let Some(row) = table.next_row()? {
                    let mut rule = rule(section, encoding, row);
                    rule.flags |= flags;
                    self.found.unsupported += u64::from(rule.cfa == UNSUPPORTED.cfa);
                    self.rows.push(Row::new(row.start_address(), rules.number(rule)));
                    if self.rows.len() > max {
                        return Ok(false);
                    }
                }
                Ok::<_, gimli::Error>(true)
            })();
            match whole {
                Ok(true) if fde.initial_address() < fde.end_address() && fde.end_address() < Row::END => {
                    self.found.functions += 1;
                    self.functions.push(Function {
                        start: fde.initial_address(),
                        end: fde.end_address(),
                        rows: from..self.rows.len(),
                    });
                }
                Ok(false) => return Err(Stopped::TooMany),
                _ => {
                    self.rows.truncate(from);
                    self.found.broken += 1;
                }
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
        range: std::ops::Range<u64>,
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
                None => UNSUPPORTED,
            };
            self.found.unsupported += u64::from(rule.cfa == UNSUPPORTED.cfa);
            self.rows.push(Row::new(address, rules.number(rule)));
            if self.rows.len() > max {
                return Err(Stopped::TooMany);
            }
        }
        if self.rows.len() > from {
            self.found.functions += 1;
            self.functions.push(Function {
                start: range.start,
                end: range.end,
                rows: from..self.rows.len(),
            });
        }
        Ok(())
    }

    /// Stretches of a range that no function covers.
    pub(super) fn gaps(&mut self, range: std::ops::Range<u64>) -> Vec<std::ops::Range<u64>> {
        self.functions.sort_by_key(|function| function.start);
        let mut gaps = Vec::new();
        let mut at = range.start;
        for function in &self.functions {
            if function.start >= range.end {
                break;
            }
            if function.start > at {
                gaps.push(at..function.start);
            }
            at = at.max(function.end);
        }
        if at < range.end {
            gaps.push(at..range.end);
        }
        gaps
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
        self.functions.push(Function {
            start: function.start,
            end: function.end,
            rows: from..self.rows.len(),
        });
    }

    fn add(&mut self, address: u64, size: u64, rule: u16) {
        if address >= Row::END {
            return;
        }
        let rows = self.rows.len()..self.rows.len() + 1;
        self.rows.push(Row::new(address, rule));
        self.functions.push(Function {
            start: address,
            end: (address + size).min(Row::END - 1),
            rows,
        });
    }

    /// The rows of all of them, in the order of their addresses and each address once; where no function is, a row says so.
    pub(super) fn rows(mut self) -> Vec<Row> {
        self.functions.sort_by_key(|function| function.start);
        merge(&self.functions, &self.rows)
    }
}

/// One sorted list of rows: functions that overlap (a linker may fold identical ones) keep the first one's rows.
fn merge(functions: &[Function], all: &[Row]) -> Vec<Row> {
    let mut merged: Vec<Row> = Vec::with_capacity(all.len());
    let mut end = 0;
    for function in functions {
        if function.end <= end {
            continue;
        }
        if function.start > end && !merged.is_empty() {
            push(&mut merged, Row::new(end, 0));
        }
        let from = end.max(function.start);
        let rows = &all[function.rows.clone()];
        // The rule in force where the previous function ended, then those after it.
        let started = rows.partition_point(|row| row.address() <= from);
        if let Some(first) = started.checked_sub(1).and_then(|at| rows.get(at)) {
            push(&mut merged, Row::new(from, first.rule()));
        }
        for row in rows[started..].iter().filter(|row| row.address() < function.end) {
            push(&mut merged, *row);
        }
        end = function.end;
    }
    if !merged.is_empty() {
        push(&mut merged, Row::new(end, 0));
    }
    merged
}

fn push(rows: &mut Vec<Row>, row: Row) {
    match rows.last_mut() {
        Some(last) if last.rule() == row.rule() => {}
        Some(last) if last.address() >= row.address() => *last = Row::new(last.address(), row.rule()),
        _ => rows.push(row),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function(start: u64, end: u64, rows: std::ops::Range<usize>) -> Function {
        Function { start, end, rows }
    }

    fn row(address: u64, rule: u16) -> Row {
        Row::new(address, rule)
    }

    #[test]
    fn gaps_have_no_rule_and_neighbours_share_a_row() {
        let all = [
            row(0x10, 2),
            row(0x14, 3),
            row(0x20, 3),
            row(0x28, 2),
            row(0x40, 2),
        ];
        let functions = [
            function(0x10, 0x20, 0..2),
            function(0x20, 0x30, 2..4),
            function(0x40, 0x50, 4..5),
        ];
        let merged = merge(&functions, &all);
        assert_eq!(
            merged,
            [
                row(0x10, 2),
                row(0x14, 3),
                row(0x28, 2),
                row(0x30, 0),
                row(0x40, 2),
                row(0x50, 0)
            ]
        );
    }

    #[test]
    fn of_overlapping_functions_the_first_counts() {
        let all = [
            row(0x10, 2),
            row(0x18, 3),
            row(0x14, 4),
            row(0x1c, 5),
            row(0x24, 6),
        ];
        let functions = [function(0x10, 0x20, 0..2), function(0x14, 0x30, 2..5)];
        assert_eq!(
            merge(&functions, &all),
            [
                row(0x10, 2),
                row(0x18, 3),
                row(0x20, 5),
                row(0x24, 6),
                row(0x30, 0)
            ]
        );
    }
}
