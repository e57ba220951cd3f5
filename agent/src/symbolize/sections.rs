//! Where the sections of a file are in its address space.

use std::ops::Range;

use super::headers::Headers;

/// The sections that are in memory when the file runs, by address.
#[derive(Clone, Debug, Default)]
pub(super) struct Sections(Box<[Range<u64>]>);

impl Sections {
    pub(super) fn of(headers: &Headers) -> Self {
        let mut ranges: Vec<_> = headers.in_memory().collect();
        ranges.sort_unstable_by_key(|range| (range.start, range.end));
        Self(ranges.into())
    }

    /// Bytes of memory it takes.
    pub(super) fn bytes(&self) -> u64 {
        size_of_val(&*self.0) as u64
    }

    /// Whether two addresses are in one section; true where nothing is known of sections.
    pub(super) fn share(&self, one: u64, other: u64) -> bool {
        let section = |address| {
            let after = self.0.partition_point(|range| range.start <= address);
            let range = self.0.get(after.checked_sub(1)?)?;
            range.contains(&address).then_some(range)
        };
        self.0.is_empty() || section(one).is_some_and(|range| range.contains(&other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_share_a_section_or_do_not() {
        let sections = Sections([0x1000..0x1017, 0x1020..0x1070, 0x1070..0x2000].into());
        assert!(sections.share(0x1020, 0x106f) && sections.share(0x1fff, 0x1070));
        for (one, other) in [
            (0x1020, 0x1000),
            (0x1070, 0x106f),
            (0x1018, 0x1000),
            (0xfff, 0x1000),
            (0x2000, 0x1fff),
        ] {
            assert!(!sections.share(one, other), "{one:x} {other:x}");
        }
        assert!(Sections::default().share(1, 2));
    }
}
