//! The executable of a process, read at chosen places and never more than a bounded part of it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};

use super::Host;

/// Bytes that are read of one file at most: headers, notes and Go's build information need a few pages.
const BUDGET: u64 = 4 << 20;

/// Which file it is, and in which state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileId {
    device: u64,
    inode: u64,
    /// Seconds and nanoseconds: an executable that is written anew in place keeps its inode.
    modified: (i64, i64),
}

/// An open executable. Reading more than the budget is an error, so that no crafted file costs memory or time.
#[derive(Debug)]
pub struct Executable {
    file: File,
    id: FileId,
    left: u64,
}

impl Executable {
    /// Which file it is.
    #[must_use]
    pub fn id(&self) -> FileId {
        self.id
    }

    /// The same with another budget, for what is known to need more: a symbol table.
    #[must_use]
    pub fn with_budget(self, bytes: u64) -> Self {
        Self { left: bytes, ..self }
    }
}

impl Host {
    /// Opens what a process runs, also where its path is gone or lies in another mount namespace.
    pub fn executable(&self, pid: u32) -> io::Result<Executable> {
        // What is no regular file must not hold the agent up.
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(self.path(&format!("proc/{pid}/exe")))?;
        let about = file.metadata()?;
        if !about.is_file() {
            return Err(io::Error::other("not a regular file"));
        }
        let id = FileId {
            device: about.dev(),
            inode: about.ino(),
            modified: (about.mtime(), about.mtime_nsec()),
        };
        Ok(Executable {
            file,
            id,
            left: BUDGET,
        })
    }
}

impl Read for Executable {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.left = self
            .left
            .checked_sub(into.len() as u64)
            .ok_or_else(|| io::Error::other("asks for too much of the file"))?;
        self.file.read(into)
    }
}

impl Seek for Executable {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_ends() {
        let mut own = Host::new("/").executable(std::process::id()).unwrap();
        let mut page = vec![0; 1 << 20];
        own.read_exact(&mut page[..4]).unwrap();
        assert_eq!(&page[..4], b"\x7fELF");
        for _ in 0..3 {
            own.seek(SeekFrom::Start(0)).unwrap();
            own.read_exact(&mut page).unwrap();
        }
        own.seek(SeekFrom::Start(0)).unwrap();
        assert!(own.read_exact(&mut page).is_err());
    }

    #[test]
    fn only_regular_files_are_executables() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("proc/7")).unwrap();
        std::os::unix::fs::symlink("/dev/zero", root.path().join("proc/7/exe")).unwrap();
        assert!(Host::new(root.path()).executable(7).is_err());
    }
}
