//! How offsets in an executable become addresses.

/// Where a mapped part of the file is in its address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) offset: u64,
    pub(super) size: u64,
    pub(super) address: u64,
}

/// The loaded segments of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Segments(Vec<Segment>);

impl Segments {
    pub(super) fn new(segments: Vec<Segment>) -> Self {
        Self(segments)
    }

    /// The address, in the file's own address space, of an offset in the file.
    pub(super) fn address_of(&self, offset: u64) -> Option<u64> {
        let inside = |s: &&Segment| offset.checked_sub(s.offset).is_some_and(|at| at < s.size);
        let segment = self.0.iter().find(inside)?;
        segment.address.checked_add(offset - segment.offset)
    }

    /// What to add, wrapping, to an offset in the file at which a mapping begins for its address: mappings begin with a
    /// page, which may be a little before the segment.
    pub(super) fn delta(&self, offset: u64) -> Option<u64> {
        const PAGE: u64 = 4096;
        let covers = |s: &&Segment| {
            let from = s.offset & !(PAGE - 1);
            offset >= from && offset - from < s.size.saturating_add(s.offset - from)
        };
        // Of two segments in one page, the mapping is of the later one.
        let segment = self.0.iter().rev().find(covers)?;
        Some(segment.address.wrapping_sub(segment.offset))
    }
}
