//! Rows in pages, as the kernel side reads them.

use agent_ebpf::wire::unwind::{MAX_PAGES, PAGE_BITS, row};

use super::functions::Row;

const PAGE: u64 = 1 << PAGE_BITS;

/// The table of one executable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Address of the first page.
    pub base: u64,
    /// Where in `rows` each page begins; one more at the end.
    pub pages: Vec<u32>,
    /// Rows as `agent_ebpf::wire::unwind` packs them; each page's first holds from its first byte on.
    pub rows: Vec<u32>,
}

impl Table {
    /// Packs rows that are sorted by address; `None` where the code has more pages than there can be, in which two functions at
    /// the two ends of the address space suffice.
    pub(super) fn pack(rows: &[Row]) -> Option<Self> {
        let (Some(first), Some(last)) = (rows.first(), rows.last()) else {
            return Some(Self::default());
        };
        let base = first.address() & !(PAGE - 1);
        if (last.address() - base) / PAGE >= u64::from(MAX_PAGES) {
            return None;
        }
        let mut table = Self {
            base,
            pages: vec![0],
            rows: Vec::with_capacity(rows.len() + rows.len() / 64),
        };
        let (mut page, mut rule) = (base, 0);
        if first.address() > page {
            table.rows.push(row(page, 0));
        }
        for next in rows {
            while next.address() >= page + PAGE {
                page += PAGE;
                table.pages.push(table.rows.len() as u32);
                if next.address() > page {
                    table.rows.push(row(page, rule));
                }
            }
            table.rows.push(row(next.address(), next.rule()));
            rule = next.rule();
        }
        table.pages.push(table.rows.len() as u32);
        Some(table)
    }

    /// Number of the rule at an address of the file: what the kernel side does, for tests and for what is not hot.
    #[must_use]
    pub fn find(&self, address: u64) -> Option<u16> {
        let at = address.checked_sub(self.base)?;
        let page = usize::try_from(at >> PAGE_BITS).ok()?;
        let (from, to) = (*self.pages.get(page)?, *self.pages.get(page + 1)?);
        let rows = self.rows.get(from as usize..to as usize)?;
        let low = (at & (PAGE - 1)) as u32;
        let after = rows.partition_point(|row| row & (PAGE as u32 - 1) <= low);
        let found = rows.get(after.checked_sub(1)?)?;
        Some((found >> PAGE_BITS) as u16)
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
        assert_eq!(table.pages, [0, 3, 4, 5, 7]);
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
        assert_eq!(Table::pack(&[]).unwrap().find(0), None);
        let far = [(0x1000, 2), (0x1000 + (PAGE << 16), 0)].map(|(address, rule)| Row::new(address, rule));
        assert_eq!(Table::pack(&far), None);
    }
}
