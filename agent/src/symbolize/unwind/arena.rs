//! Ranges of a table of fixed size.

use std::collections::BTreeMap;

/// Hands out ranges, first fit. What is given back rests until [`Arena::settle`]: the kernel side may still read there.
#[derive(Debug)]
pub(super) struct Arena {
    free: BTreeMap<u32, u32>,
    resting: Vec<(u32, u32)>,
}

impl Arena {
    pub(super) fn new(size: u32) -> Self {
        Self {
            free: BTreeMap::from([(0, size)]),
            resting: Vec::new(),
        }
    }

    /// The first of `len` free places in a row.
    pub(super) fn take(&mut self, len: u32) -> Option<u32> {
        let (start, room) = self
            .free
            .iter()
            .find(|(_, room)| **room >= len)
            .map(|(start, room)| (*start, *room))?;
        self.free.remove(&start);
        if room > len {
            self.free.insert(start + len, room - len);
        }
        Some(start)
    }

    pub(super) fn give_back(&mut self, start: u32, len: u32) {
        if len > 0 {
            self.resting.push((start, len));
        }
    }

    /// Nobody reads any more what was given back before.
    pub(super) fn settle(&mut self) {
        for (start, len) in std::mem::take(&mut self.resting) {
            self.join(start, len);
        }
    }

    fn join(&mut self, mut start: u32, mut len: u32) {
        if let Some(after) = self.free.remove(&(start + len)) {
            len += after;
        }
        if let Some((before, room)) = self.free.range(..start).next_back().map(|(b, r)| (*b, *r))
            && before + room == start
        {
            start = before;
            len += room;
        }
        self.free.insert(start, len);
    }

    /// Free places.
    pub(super) fn room(&self) -> u32 {
        self.free.values().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_given_back_rests_and_joins_its_neighbours() {
        let mut arena = Arena::new(10);
        let taken = [arena.take(3), arena.take(3), arena.take(4), arena.take(1)];
        assert_eq!(taken, [Some(0), Some(3), Some(6), None]);
        arena.give_back(3, 3);
        assert_eq!(arena.take(1), None);
        arena.settle();
        assert_eq!(arena.take(1), Some(3));
        arena.give_back(0, 3);
        arena.give_back(6, 4);
        arena.give_back(3, 1);
        arena.settle();
        assert_eq!((arena.room(), arena.free.len()), (10, 1));
        assert_eq!(arena.take(10), Some(0));
    }
}
