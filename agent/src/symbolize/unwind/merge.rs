//! The rows of functions that come in the order of their addresses, as one list with each address once.

use std::ops::Range;

use super::functions::Row;
use super::table::{Packer, Table};

/// Puts functions together: of those that overlap (a linker may fold identical ones) the first one's rows count, and where no
/// function is, a row says so.
#[derive(Default)]
pub(super) struct Merge {
    packer: Packer,
    /// The last row, which the next one may still replace.
    last: Option<Row>,
    end: u64,
}

impl Merge {
    /// Where the functions so far end.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// Adds a function that ends after [`Self::end`]; `None` where there are more pages than a table can have.
    pub(super) fn function(&mut self, range: Range<u64>, rows: &[Row]) -> Option<()> {
        if range.start > self.end && self.last.is_some() {
            self.push(Row::new(self.end, 0))?;
        }
        let from = self.end.max(range.start);
        // The rule in force where the previous function ended, then those after it.
        let started = rows.partition_point(|row| row.address() <= from);
        if let Some(first) = started.checked_sub(1).and_then(|at| rows.get(at)) {
            self.push(Row::new(from, first.rule()))?;
        }
        let after = rows.get(started..).unwrap_or_default();
        for row in after.iter().filter(|row| row.address() < range.end) {
            self.push(*row)?;
        }
        self.end = range.end;
        Some(())
    }

    fn push(&mut self, row: Row) -> Option<()> {
        match self.last {
            Some(last) if last.rule() == row.rule() => {}
            Some(last) if last.address() >= row.address() => {
                self.last = Some(Row::new(last.address(), row.rule()));
            }
            Some(last) => {
                self.packer.add(last)?;
                self.last = Some(row);
            }
            None => self.last = Some(row),
        }
        Some(())
    }

    /// The table, where there is one.
    pub(super) fn finish(mut self) -> Option<Table> {
        if self.last.is_some() {
            self.push(Row::new(self.end, 0))?;
        }
        if let Some(last) = self.last {
            self.packer.add(last)?;
        }
        self.packer.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row((address, rule): (u64, u16)) -> Row {
        Row::new(address, rule)
    }

    type Rows<'a> = &'a [(u64, u16)];

    fn merged(functions: &[(Range<u64>, Rows<'_>)]) -> Table {
        let mut merge = Merge::default();
        for (range, rows) in functions {
            let rows: Vec<Row> = rows.iter().copied().map(row).collect();
            merge.function(range.clone(), &rows).unwrap();
        }
        merge.finish().unwrap()
    }

    fn packed(rows: &[(u64, u16)]) -> Table {
        Table::pack(&rows.iter().copied().map(row).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn gaps_have_no_rule_and_neighbours_share_a_row() {
        assert_eq!(
            merged(&[
                (0x10..0x20, &[(0x10, 2), (0x14, 3)]),
                (0x20..0x30, &[(0x20, 3), (0x28, 2)]),
                (0x40..0x50, &[(0x40, 2)]),
            ]),
            packed(&[(0x10, 2), (0x14, 3), (0x28, 2), (0x30, 0), (0x40, 2), (0x50, 0)])
        );
    }

    #[test]
    fn of_overlapping_functions_the_first_counts() {
        assert_eq!(
            merged(&[
                (0x10..0x20, &[(0x10, 2), (0x18, 3)]),
                (0x14..0x30, &[(0x14, 4), (0x1c, 5), (0x24, 6)]),
            ]),
            packed(&[(0x10, 2), (0x18, 3), (0x20, 5), (0x24, 6), (0x30, 0)])
        );
    }

    #[test]
    fn nothing_is_an_empty_table() {
        assert_eq!(merged(&[]), Table::default());
    }
}
