//! Rows in pages, as the kernel side reads them.

use std::collections::HashMap;
use std::ops::Range;

use agent_ebpf::wire::unwind::{MAX_PAGES, PAGE_BITS, PAGE_HEAD, PAGE_RULES, PART_BITS, Page, row};

use super::functions::Row;
use super::rules::UNSUPPORTED_NUMBER;

const PAGE: u64 = 1 << PAGE_BITS;
/// Words of a table at most: those of 4 million rows in 32,768 pages, more than twice of what Chromium has.
const MAX_WORDS: usize = 12 << 20;

/// The table of one executable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Address of the first page.
    pub base: u64,
    /// The pages, their words counted from the first of `words`.
    pub pages: Vec<Page>,
    /// Where in `words` each page begins; one more at the end.
    starts: Vec<u32>,
    /// The pages one after the other, as `agent_ebpf::wire::unwind` lays them out.
    words: Vec<u16>,
    /// Rows whose page had no room for their rule.
    pub(super) refused: u64,
}

impl Table {
    /// Packs rows that are sorted by address; `None` where the code has more pages than there can be, in which two functions at
    /// the two ends of the address space suffice, or a row for each byte.
    pub(super) fn pack(rows: &[Row]) -> Option<Self> {
        let mut packer = Packer::default();
        rows.iter().try_for_each(|row| packer.add(*row))?;
        packer.finish()
    }

    /// The page of code that begins at an address, with the rule in force there unless a row says another.
    fn push(&mut self, start: u64, rows: &[Row], rule: u16) -> Option<Page> {
        let (rule, rows) = match rows.split_first() {
            Some((first, rest)) if first.address() == start => (first.rule(), rest),
            _ => (rule, rows),
        };
        if rows.is_empty() {
            return Some(Page {
                first: u32::from(rule),
                rules: 0,
            });
        }
        let mut rules = Rules::default();
        let mut packed = vec![row(0, rules.number(rule).0)];
        let mut head = Vec::with_capacity(PAGE_HEAD as usize);
        for next in rows {
            let part = ((next.address() - start) >> PART_BITS) as usize;
            head.resize(head.len().max(part + 1), packed.len() as u16);
            let (number, found) = rules.number(next.rule());
            self.refused += u64::from(!found);
            packed.push(row(next.address(), number));
        }
        let end = u16::try_from(packed.len()).ok()?;
        head.resize(PAGE_HEAD as usize, end);
        let page = Page {
            first: u32::try_from(self.words.len()).ok()?,
            rules: rules.list.len() as u32,
        };
        self.words.extend(head);
        self.words.extend(rules.list);
        self.words.extend(packed);
        (self.words.len() <= MAX_WORDS).then_some(page)
    }

    /// Has other numbers for its rules; `numbers` holds the new ones by the old ones.
    pub(super) fn renumber(&mut self, numbers: &[u16]) {
        let new = |old: u16| {
            numbers
                .get(usize::from(old))
                .copied()
                .unwrap_or(UNSUPPORTED_NUMBER)
        };
        for (page, start) in self.pages.iter_mut().zip(&self.starts) {
            if page.rules == 0 {
                page.first = u32::from(new(page.first as u16));
            }
            let from = *start as usize + PAGE_HEAD as usize;
            for rule in self.words.iter_mut().skip(from).take(page.rules as usize) {
                *rule = new(*rule);
            }
        }
    }

    /// The words of some pages that follow each other.
    pub(super) fn words(&self, pages: Range<usize>) -> &[u16] {
        let start = |page: usize| self.starts.get(page).map_or(0, |start| *start as usize);
        self.words
            .get(start(pages.start)..start(pages.end))
            .unwrap_or_default()
    }

    /// Number of the rule at an address of the file: what the kernel side does, for tests and for what is not hot.
    #[must_use]
    pub fn find(&self, address: u64) -> Option<u16> {
        let at = address.checked_sub(self.base)?;
        let number = usize::try_from(at >> PAGE_BITS).ok()?;
        let page = self.pages.get(number)?;
        if page.rules == 0 {
            return u16::try_from(page.first).ok();
        }
        find(self.words(number..number + 1), page.rules, at as u16)
    }
}

/// Packs rows as they come, sorted by address: no more than those of a page are held.
#[derive(Default)]
pub(super) struct Packer {
    table: Table,
    /// Rows of the last page.
    rows: Vec<Row>,
    /// The rule in force where it begins.
    rule: u16,
}

impl Packer {
    /// Adds the next row; `None` as [`Table::pack`].
    pub(super) fn add(&mut self, row: Row) -> Option<()> {
        if self.table.starts.is_empty() {
            self.table.starts.push(0);
            self.table.base = row.address() & !(PAGE - 1);
        }
        let page = (row.address() - self.table.base) / PAGE;
        if page >= u64::from(MAX_PAGES) {
            return None;
        }
        while (self.table.pages.len() as u64) < page {
            self.page()?;
        }
        self.rows.push(row);
        Some(())
    }

    /// The page is whole.
    fn page(&mut self) -> Option<()> {
        let table = &mut self.table;
        let start = table.base + table.pages.len() as u64 * PAGE;
        let page = table.push(start, &self.rows, self.rule)?;
        table.pages.push(page);
        table.starts.push(u32::try_from(table.words.len()).ok()?);
        self.rule = self.rows.last().map_or(self.rule, |row| row.rule());
        self.rows.clear();
        Some(())
    }

    /// The table.
    pub(super) fn finish(mut self) -> Option<Table> {
        if !self.rows.is_empty() {
            self.page()?;
        }
        let table = &mut self.table;
        table.words.shrink_to_fit();
        table.pages.shrink_to_fit();
        table.starts.shrink_to_fit();
        Some(self.table)
    }
}

/// Number of the rule at a place in a page with so many rules.
pub(super) fn find(words: &[u16], rules: u32, at: u16) -> Option<u16> {
    let part = usize::from(at >> PART_BITS);
    let (from, to) = (usize::from(*words.get(part)?), usize::from(*words.get(part + 1)?));
    let rules_at = PAGE_HEAD as usize;
    let rows = words.get(rules_at + rules as usize..)?;
    let low = |row: &u16| row & ((1 << PART_BITS) - 1);
    let after = rows.get(from..to)?.partition_point(|row| low(row) <= low(&at));
    let found = rows.get((from + after).checked_sub(1)?)?;
    words.get(rules_at + usize::from(found >> PART_BITS)).copied()
}

/// The rules of a page, numbered in the order in which they were met.
#[derive(Default)]
struct Rules {
    known: HashMap<u16, u8>,
    list: Vec<u16>,
}

impl Rules {
    /// Number of a rule in the page, and whether it is this rule's: where a page has more rules than there are numbers, the last
    /// one says that the rule cannot be expressed.
    fn number(&mut self, rule: u16) -> (u8, bool) {
        const LAST: u8 = (PAGE_RULES - 1) as u8;
        if let Some(number) = self.known.get(&rule) {
            return (*number, true);
        }
        let number = self.list.len() as u8;
        if self.list.len() > usize::from(LAST) {
            return (LAST, false);
        }
        if number == LAST {
            self.list.push(UNSUPPORTED_NUMBER);
            return (LAST, rule == UNSUPPORTED_NUMBER);
        }
        self.known.insert(rule, number);
        self.list.push(rule);
        (number, true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_page_begins_with_the_rule_in_force() {
        let rows = [(0x1_2000, 2), (0x1_ffff, 3), (0x4_0000, 4), (0x4_0010, 0)]
            .map(|(address, rule)| Row::new(address, rule));
        let table = Table::pack(&rows).unwrap();
        assert_eq!(table.base, 0x1_0000);
        let rules: Vec<u32> = table.pages.iter().map(|page| page.rules).collect();
        assert_eq!(rules, [3, 0, 0, 2]);
        assert_eq!((table.pages[1].first, table.pages[2].first), (3, 3));
        // Words for the rules and the rows; a row at a page's first byte is the one in force there.
        let words = [3 + 3 + PAGE_HEAD, 0, 0, 2 + 2 + PAGE_HEAD].map(|words| words as usize);
        let found: Vec<usize> = (0..4).map(|page| table.words(page..page + 1).len()).collect();
        assert_eq!(found, words);
        let found: Vec<_> = [
            0xffff, 0x1_0000, 0x1_2000, 0x1_fffe, 0x1_ffff, 0x2_0000, 0x3_ffff, 0x4_000f, 0x4_ffff, 0x5_0000,
        ]
        .into_iter()
        .map(|address| table.find(address))
        .collect();
        let some = |rule| Some(rule);
        assert_eq!(
            found,
            [
                None,
                some(0),
                some(2),
                some(2),
                some(3),
                some(3),
                some(3),
                some(4),
                some(0),
                None
            ]
        );
        let mut other = table.clone();
        other.renumber(&[5, 1, 4, 3, 2]);
        let found: Vec<_> = [0x1_0000, 0x1_2000, 0x1_ffff, 0x2_0000, 0x4_000f, 0x4_ffff]
            .into_iter()
            .map(|address| other.find(address))
            .collect();
        assert_eq!(found, [5, 4, 3, 3, 2, 5].map(Some));
        assert_eq!(Table::pack(&[]).unwrap().find(0), None);
        let far = [(0x1000, 2), (0x1000 + (PAGE << 16), 0)].map(|(address, rule)| Row::new(address, rule));
        assert_eq!(Table::pack(&far), None);
    }

    #[test]
    fn rows_of_all_parts_are_found_and_a_page_has_so_many_rules() {
        // Parts with none, one, some, and as many rows as bytes; 300 rules are more than a page has.
        let addresses = [0x10, 0x13, 0x50, 0x9ff, 0xa00, 0xa01, 0xfffe]
            .into_iter()
            .chain(0x3000..0x3100)
            .chain((0x8000..0x8000 + 300 * 8).step_by(8))
            .chain([0xffff]);
        let mut rows: Vec<Row> = (10..)
            .zip(addresses)
            .map(|(rule, at)| Row::new(at, rule))
            .collect();
        rows.sort_unstable();
        let table = Table::pack(&rows).unwrap();
        assert_eq!(table.pages[0].rules, PAGE_RULES);
        let mut refused = 0;
        for address in 0..=0xffff_u64 {
            let at = rows.partition_point(|row| row.address() <= address);
            let rule = at.checked_sub(1).map_or(0, |at| rows[at].rule());
            let found = table.find(address).unwrap();
            assert!(
                found == rule || found == UNSUPPORTED_NUMBER,
                "{address:#x}: {found}"
            );
            let begins = rows.binary_search_by_key(&address, |row| row.address()).is_ok();
            refused += u64::from(begins && found != rule);
        }
        // 565 rules with that of the beginning.
        assert_eq!((refused, table.refused), (565 - 255, 565 - 255));
        let full: Vec<Row> = (0..PAGE).map(|at| Row::new(at, (at % 2) as u16)).collect();
        assert_eq!(Table::pack(&full), None);
        assert!(Table::pack(&full[2..]).is_some());
    }
}
