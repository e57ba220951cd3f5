//! Reads of a file that belongs to somebody else, which are never more than a bounded part of it.

use std::cell::Cell;
use std::fs::File;
use std::ops::Range;

use object::{ReadCache, ReadRef};

/// What a piece of text costs beside its bytes: it is kept on its own.
const EACH_TEXT: u64 = 64;

/// A file whose parts are kept in memory once they were read, up to a limit for all of them; what is over it cannot be read.
#[derive(Debug)]
pub(crate) struct Limited<'a> {
    cache: ReadCache<&'a File>,
    left: Cell<u64>,
    over: Cell<bool>,
}

impl<'a> Limited<'a> {
    pub(crate) fn new(file: &'a File, bytes: u64) -> Self {
        Self {
            cache: ReadCache::new(file),
            left: Cell::new(bytes),
            over: Cell::new(false),
        }
    }

    fn take(&self, bytes: u64) -> Result<(), ()> {
        let left = self.left.get().checked_sub(bytes);
        self.over.set(self.over.get() || left.is_none());
        self.left.set(left.ok_or(())?);
        Ok(())
    }

    /// Whether something was not read because of the limit.
    pub(crate) fn is_over(&self) -> bool {
        self.over.get()
    }
}

impl<'a> ReadRef<'a> for &'a Limited<'_> {
    fn len(self) -> Result<u64, ()> {
        self.cache.len()
    }

    fn read_bytes_at(self, offset: u64, size: u64) -> Result<&'a [u8], ()> {
        self.take(size)?;
        self.cache.read_bytes_at(offset, size)
    }

    fn read_bytes_at_until(self, range: Range<u64>, delimiter: u8) -> Result<&'a [u8], ()> {
        // How long it is shows only when it was read, and kept.
        if self.is_over() {
            return Err(());
        }
        let found = self.cache.read_bytes_at_until(range, delimiter)?;
        self.take(found.len() as u64 + EACH_TEXT)?;
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_than_the_limit_is_read() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), [7; 100]).unwrap();
        let limited = Limited::new(file.as_file(), 50);
        assert_eq!((&limited).read_bytes_at(0, 40), Ok(&[7; 40][..]));
        assert!((&limited).read_bytes_at(90, 20).is_err());
        assert_eq!((&limited).read_bytes_at(40, 11), Err(()));
        assert!(limited.is_over());
        // Many short names are more than their bytes.
        std::fs::write(file.path(), [0; 100]).unwrap();
        let limited = Limited::new(file.as_file(), 200);
        let names = (0..100).filter(|at| (&limited).read_bytes_at_until(*at..100, 0).is_ok());
        assert_eq!(names.count(), 3);
    }
}
